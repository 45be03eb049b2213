"""`consilium site policy show` and `test`: what this hospital permits, and what it refuses of a study."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from consilium.output import Json, plain, print_json, reporting_refusals, screen
from consilium.site_home import Home, Site, StudyFile, find_site
from consilium.study import find_study
from contracts.study import StudyProtocol, load_study

if TYPE_CHECKING:
    from site_runtime.config import SiteConfig
    from site_runtime.home import SiteHome
    from site_runtime.policy_rules import Verdict

app = typer.Typer(no_args_is_help=True, help="What this hospital permits.")


@app.command()
def show(site: Site = None, home: Home = None, json: Json = False) -> None:
    """Print the policy in force, and the digest by which data sheets and rounds record it."""
    with reporting_refusals(json):
        from site_runtime.config import load_site

        config = load_site(find_site(site, home))
        fields = config.policy.model_dump(mode="json")
        if json:
            print_json({"site": config.site, "digest": config.policy_digest, "policy": fields})
            return
        table = Table(title=f"{config.site}: policy {config.policy_digest[:12]}", title_justify="left")
        table.add_column("rule")
        table.add_column("what this hospital says", overflow="fold")
        for name, value in _flat(fields):
            table.add_row(name, plain(value))
        screen.print(table)
        screen.print(f"digest {config.policy_digest}", highlight=False, soft_wrap=True)


@app.command()
def test(study: StudyFile, site: Site = None, home: Home = None, json: Json = False) -> None:
    """Say what of a study would be refused now, and why. Touches no data; exit code 1 if anything would."""
    with reporting_refusals(json):
        from site_runtime.config import load_site

        found = find_site(site, home)
        config, protocol = load_site(found), load_study(find_study(study))
        verdicts = all_verdicts(found, config, protocol)
        refused = [v for v in verdicts if v.error is not None]
        if json:
            print_json(
                {
                    "site": config.site,
                    "study": protocol.study,
                    "protocol_hash": protocol.hash,
                    "policy": config.policy_digest,
                    "refused": len(refused),
                    "rules": [as_facts(v) for v in verdicts],
                }
            )
        else:
            screen.print(verdict_table(f"{config.site}: {protocol.study} {protocol.hash[:12]}", verdicts))
            for v in refused:
                screen.print(f"{v.rule}: {plain(str(v.error))}", highlight=False, markup=False)
            if not refused:
                screen.print("[green]Nothing would be refused now.[/]")
        if refused:
            raise typer.Exit(1)


def all_verdicts(home: SiteHome, config: SiteConfig, protocol: StudyProtocol) -> list[Verdict]:
    """Every rule on a study: decisions, policy, hours, and whether its privacy can be kept here."""
    from site_runtime.policy import verdicts
    from site_runtime.policy_rules import study_purposes, verdict
    from site_runtime.preflight import check_budget, check_layers, check_promise

    privacy = protocol.privacy.mode
    cap = f"epsilon {config.budget.epsilon:g} over all studies"
    checks: list[tuple[str, str, str, Callable[[], None]]] = [
        (
            "privacy promise",
            f"mode {privacy}",
            "only what can be kept",
            lambda: check_promise(config, protocol),
        ),
        ("layers", protocol.model.name, "none that couple patients", lambda: check_layers(protocol)),
        ("budget", f"mode {privacy}", cap, lambda: check_budget(home, config, protocol)),
    ]
    return [
        *verdicts(home, config, protocol, study_purposes(protocol)),
        *(verdict(rule, asked, allowed, check) for rule, asked, allowed, check in checks),
    ]


def verdict_table(title: str, verdicts: list[Verdict]) -> Table:
    """One line for each rule."""
    table = Table(title=title, title_justify="left")
    for column in ("rule", "the study asks", "this hospital allows", "verdict"):
        table.add_column(column, overflow="fold")
    for v in verdicts:
        mark = "[green]pass[/]" if v.error is None else f"[red]refuse {v.error.number}[/]"
        table.add_row(v.rule, *(plain(text).replace("[", r"\[") for text in (v.asked, v.allowed)), mark)
    return table


def as_facts(v: Verdict) -> dict[str, Any]:
    """A verdict for machines."""
    facts: dict[str, Any] = {
        "rule": v.rule,
        "asked": v.asked,
        "allowed": v.allowed,
        "passes": v.error is None,
    }
    if v.error is not None:
        facts |= {"number": v.error.number, "sentence": v.error.sentence, "detail": v.error.detail}
    return facts


def _flat(fields: dict[str, Any], path: str = "") -> list[tuple[str, str]]:
    """Fields by their dotted names, with what a missing part means."""
    rows: list[tuple[str, str]] = []
    for name, value in fields.items():
        here = f"{path}{name}"
        if isinstance(value, dict):
            rows += _flat(value, f"{here}.")
        elif value is None and name in ("irb", "dua", "dpia"):
            rows.append((here, "none: every study is refused"))
        elif value is None and name == "exchange":
            rows.append((here, "the coordinator alone"))
        elif isinstance(value, list):
            rows.append((here, ", ".join(map(str, value)) or ("always" if name == "hours" else "none")))
        else:
            words = {"True": "yes", "False": "no", "None": "no limit"}
            rows.append((here, words.get(str(value), str(value))))
    return rows
