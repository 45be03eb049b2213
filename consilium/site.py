"""`consilium site`: a hospital's own view. Nothing here needs, or asks, the coordinator."""

from __future__ import annotations

import json as jsonlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from consilium.output import Json, home_folder, neighbours, print_json, reporting_refusals, screen
from consilium.site_join import card, enrol, join, peers, rotate
from consilium.site_start import start, tunnel
from consilium.study import find_study
from contracts.errors import ConsiliumError
from contracts.signing import SigningKey
from contracts.study import StudyProtocol, load_study

if TYPE_CHECKING:
    from site_runtime.config import SiteConfig
    from site_runtime.home import SiteHome
    from site_runtime.intake import Intake

app = typer.Typer(no_args_is_help=True)

Study = Annotated[str, typer.Argument(help="Name of the study.")]
Site = Annotated[str | None, typer.Option("--site", help="Which hospital, when this home holds several.")]
Home = Annotated[Path | None, typer.Option("--home", help="The hospital's own folder, wherever it lies.")]


def find_site(site: str | None, home: Path | None) -> SiteHome:
    """Return the home of an enrolled site.

    Raises:
        ConsiliumError: E806, there is none, or several and none was named.
    """
    from site_runtime.home import SiteHome

    if home is not None:
        found = [home]
    else:
        sites = home_folder() / "sites"
        found = [sites / site] if site else sorted(p.parent for p in sites.glob("*/site.yaml"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ConsiliumError("E806", f"sites in {home_folder()}: {names}; name one with --site")
    if not (found[0] / "site.yaml").exists():
        raise ConsiliumError("E806", f"{found[0]} holds no site.yaml")
    return SiteHome(found[0])


@app.command()
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
    from site_runtime.consent import check_policy
    from site_runtime.egress import refuse, send
    from site_runtime.enrol import enrol_site
    from site_runtime.home import SiteHome
    from site_runtime.intake import take_in
    from site_runtime.preflight import check_budget, check_layers

    home = SiteHome(temporary / "site")
    enrol_site(home, file, SigningKey.generate("coordinator").public)
    config = load_site(home)
    check_policy(config, protocol)
    check_layers(protocol)
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


@app.command()
def show(site: Site = None, home: Home = None, json: Json = False) -> None:
    """Say what was trained here, what left and when, and how much epsilon is left."""
    with reporting_refusals(json):
        facts = site_facts(find_site(site, home))
        if json:
            print_json(facts)
            return
        screen.print(f"[bold]{facts['site']}[/] {facts['institution']}, lineage {facts['lineage']}")
        _print_rows("Studies", facts["studies"], ("study", "state", "since", "rounds_trained"))
        _print_rows(
            "Privacy",
            facts["privacy"],
            ("study", "delta", "epsilon_study", "cap_delta", "spent", "cap", "left"),
        )
        for row in facts["privacy"]:
            each = neighbours(row["adjacency"])
            screen.print(f"{row['study']}: its epsilon is for {each}", highlight=False)
        if facts["privacy"]:
            screen.print("spent, cap, left: of the lineage, all studies, for one patient added or removed")
        _print_rows(
            "What left this hospital", facts["egress"], ("time", "type", "study", "what", "bytes", "digest")
        )


def _print_rows(title: str, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        values = [row.get(column) for column in columns]
        table.add_row(*(f"{v:.3f}" if isinstance(v, float) and v > 0.01 else str(v)[:20] for v in values))
    screen.print(table if rows else f"{title}: nothing yet")


def site_facts(home: SiteHome) -> dict[str, Any]:
    """Everything `site show` says, from the hospital's own files alone."""
    from site_runtime.config import load_site
    from site_runtime.consent import decided_studies, load_consent
    from site_runtime.egress import egress_records

    config = load_site(home)
    records = egress_records(home)
    studies: list[dict[str, Any]] = []
    for study in decided_studies(home):
        consent = load_consent(home, study)
        assert consent is not None
        last = consent.decisions[-1]
        rounds = {
            r["document"]["round"]
            for r in records
            if r["type"] == "UpdateEnvelope"
            and r["document"]["study"] == study
            and r["document"]["round"] > 0  # round 0 is statistics
        }
        studies.append(
            {
                "study": study,
                "state": last.state,
                "since": last.time,
                "by": last.by,
                "protocol_hash": last.protocol_hash,
                "rounds_trained": len(rounds),
            }
        )
    return {
        "site": config.site,
        "institution": config.governance.institution,
        "lineage": config.governance.lineage,
        "studies": studies,
        "privacy": _privacy(home, config, decided_studies(home)),
        "egress": [
            {
                "time": r["time"],
                "type": r["type"],
                "study": r["document"].get("study"),
                "what": _what(r),
                "bytes": r["bytes"],
                "digest": r["digest"],
            }
            for r in records
        ],
    }


def _what(record: dict[str, Any]) -> str:
    """One or two words on a document that left."""
    document = record["document"]
    if record["type"] == "UpdateEnvelope":
        return f"round {document['round']}"
    if record["type"] == "Refusal":
        return f"{document['stage']} {document['number']}"
    if record["type"] == "DataSheet":
        return "accepted" if document["accepted"] else "not accepted"
    return str(document.get("kind", ""))


def _privacy(home: SiteHome, config: SiteConfig, studies: list[str]) -> list[dict[str, Any]]:
    """Epsilon spent and left, for every study with patient-level privacy that was approved here.

    What a study spent is at its own delta and adjacency, and so is `epsilon_lineage`. The cap, what is
    `spent` of it and what is `left` are at the cap's delta for one patient added or removed, as the ledger
    counts.
    """
    from contracts.study import PatientPrivacy
    from privacy.accountant import epsilon
    from privacy.ledger import Ledger
    from site_runtime.consent import load_approved

    path = home.ledger(config.governance.lineage)
    key = SigningKey.load(config.site, home.signing_key)
    # Opening a ledger begins it, and looking must not.
    ledger = Ledger(path, config.site, config.governance.lineage, key) if path.exists() else None
    everything = ledger.spends() if ledger else []
    rows = []
    for study in studies:
        protocol = load_approved(home, study)
        if not isinstance(protocol.privacy, PatientPrivacy):
            continue
        delta, adjacency = protocol.privacy.delta, protocol.privacy.adjacency
        spent = ledger.spends(study) if ledger else []
        at_cap = min(delta, config.budget.delta)
        capped = epsilon(everything, at_cap)
        rows.append(
            {
                "study": study,
                "delta": delta,
                "adjacency": adjacency,
                "epsilon_study": epsilon(spent, delta, adjacency),
                "epsilon_lineage": epsilon(everything, delta, adjacency),
                "cap": config.budget.epsilon,
                "cap_delta": at_cap,
                "spent": capped,
                "left": max(0.0, config.budget.epsilon - capped),
            }
        )
    return rows


@app.command()
def approve(
    study: Annotated[str, typer.Argument(help="A study file, or the name of one that ships.")],
    by: Annotated[str | None, typer.Option("--by", help="Who approves; site.yaml says by default.")] = None,
    site: Site = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Approve exactly this version of a study."""
    with reporting_refusals(json):
        from site_runtime.consent import approve as decide

        protocol = load_study(find_study(study))
        found = find_site(site, home)
        decide(found, protocol, by)
        _say(found, protocol.study, json)


@app.command()
def pause(study: Study, site: Site = None, home: Home = None, json: Json = False) -> None:
    """Take no part in a study until `resume`."""
    with reporting_refusals(json):
        from site_runtime.consent import pause as decide

        decide(found := find_site(site, home), study)
        _say(found, study, json)


@app.command()
def resume(study: Study, site: Site = None, home: Home = None, json: Json = False) -> None:
    """Take part in a paused study again."""
    with reporting_refusals(json):
        from site_runtime.consent import resume as decide

        decide(found := find_site(site, home), study)
        _say(found, study, json)


@app.command()
def withdraw(study: Study, site: Site = None, home: Home = None, json: Json = False) -> None:
    """Leave a study. What was sent stays sent, and its privacy stays spent."""
    with reporting_refusals(json):
        from site_runtime.consent import withdraw as decide

        decide(found := find_site(site, home), study)
        _say(found, study, json)


def _say(home: SiteHome, study: str, as_json: bool) -> None:
    from site_runtime.config import load_site
    from site_runtime.consent import load_consent

    consent = load_consent(home, study)
    assert consent is not None
    last = consent.decisions[-1]
    if as_json:
        print_json({"site": load_site(home).site, "study": study, **last.model_dump()})
        return
    screen.print(f"{load_site(home).site}: {study} is [bold]{last.state}[/] since {last.time} ({last.by})")


for command in (enrol, join, rotate, card):
    app.command()(command)
app.add_typer(peers, name="peers")
app.command("start")(start)
app.command("tunnel")(tunnel)
