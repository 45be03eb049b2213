"""`consilium site check`: the whole intake on a hospital's own data, and exactly what would leave."""

from __future__ import annotations

import json as jsonlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from consilium.output import Json, print_json, reporting_refusals, screen
from consilium.study import find_study
from contracts.errors import ConsiliumError
from contracts.signing import SigningKey
from contracts.study import StudyProtocol, load_study

if TYPE_CHECKING:
    from site_runtime.config import SiteConfig
    from site_runtime.intake import Intake


def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with site.yaml, or that file.")],
    study: Annotated[str, typer.Option("--study", help="A study file, or the name of one that ships.")],
    json: Json = False,
) -> None:
    """Run the whole intake on your own data, keep nothing, and print exactly what would leave.

    Uses no network. Ends with exit code 1 and the number of the reason when the site would not take part.
    """
    with reporting_refusals(json):
        protocol = load_study(find_study(study))
        file = folder / "site.yaml" if folder.is_dir() else folder
        if not file.exists():
            raise ConsiliumError(
                "E103", f"{file} does not exist; docs/join-as-a-site.md shows how to write it"
            )
        with tempfile.TemporaryDirectory(prefix="consilium-check-") as temporary:
            _check(file, protocol, Path(temporary), json)


def _check(file: Path, protocol: StudyProtocol, temporary: Path, as_json: bool) -> None:
    """Take in the site's data in a home that lasts as long as the check."""
    from site_runtime.config import load_site
    from site_runtime.consent import check_study
    from site_runtime.egress import refuse, send
    from site_runtime.enrol import enrol_site
    from site_runtime.home import SiteHome
    from site_runtime.intake import take_in
    from site_runtime.preflight import check_budget

    home = SiteHome(temporary / "site")
    enrol_site(home, file, SigningKey.generate("coordinator").public)
    config = load_site(home)
    check_study(config, protocol)
    check_budget(home, config, protocol)
    done = None
    try:
        done = take_in(home, config, protocol)
        error, leaves = done.error, send(home, config, done.sheet)
    except ConsiliumError as refusal:
        error, leaves = refusal, refuse(home, config.site, refusal, protocol.study, "intake")
    if as_json:
        print_json(_check_facts(config, protocol, done, error, leaves))
        raise typer.Exit(1 if error else 0)
    if done is not None:
        screen.print(_findings_table(config, protocol, done))
        screen.print(
            f"{done.records} records; {done.training_patients} patients in training, "
            f"{done.holdout_patients} held out (these numbers stay here)",
            highlight=False,
        )
    screen.print(
        "\nWhat would leave (digest and signature are made with keys of this check; the real ones differ):",
        highlight=False,
    )
    typer.echo(leaves)
    if error is not None:
        raise error
    screen.print("\n[green]This site can take part.[/]")


def _check_facts(
    config: SiteConfig,
    protocol: StudyProtocol,
    done: Intake | None,
    error: ConsiliumError | None,
    leaves: str,
) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "site": config.site,
        "study": protocol.study,
        "accepted": error is None,
        "leaves": jsonlib.loads(leaves),
    }
    if done is not None:
        facts["local"] = {
            "records": done.records,
            "training_patients": done.training_patients,
            "holdout_patients": done.holdout_patients,
            "findings": [{**f.public().model_dump(), "detail": f.detail} for f in done.findings],
        }
    if error is not None:
        facts["error"] = {
            "number": error.number,
            "name": error.name,
            "sentence": error.sentence,
            "detail": error.detail,
        }
    return facts


def _findings_table(config: SiteConfig, protocol: StudyProtocol, done: Intake) -> Table:
    """One line per kind of check that held, and one per column where it did not."""
    table = Table(title=f"{config.site}: data quality for {protocol.study}", title_justify="left")
    for column in ("check", "columns", "severity", "result"):
        table.add_column(column, overflow="fold")
    for kind in dict.fromkeys(f.check for f in done.findings):
        same = [f for f in done.findings if f.check == kind]
        passed = [f for f in same if f.passed]
        if passed:
            columns = passed[0].column or "all" if len(passed) == 1 else f"{len(passed)} columns"
            table.add_row(kind, columns, passed[0].severity, "[green]passed[/]")
        for finding in same:
            if not finding.passed:
                colour = "red" if finding.severity == "blocking" else "yellow"
                mark = f"[{colour}]failed[/] {finding.detail.replace('[', chr(92) + '[')}"
                table.add_row(kind, finding.column or "all", finding.severity, mark)
    return table
