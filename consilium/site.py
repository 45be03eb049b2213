"""`consilium site`: a hospital's own view. Nothing here needs, or asks, the coordinator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from consilium import site_check, site_consent, site_policy
from consilium.output import Json, neighbours, print_json, reporting_refusals, screen
from consilium.site_home import Home, Site, find_site
from consilium.site_join import card, enrol, join, peers, rotate
from consilium.site_start import start, tunnel
from contracts.signing import SigningKey

if TYPE_CHECKING:
    from site_runtime.config import SiteConfig
    from site_runtime.home import SiteHome

app = typer.Typer(no_args_is_help=True)
app.command()(site_check.check)
app.add_typer(site_policy.app, name="policy")
site_consent.add_to(app)


@app.command()
def show(site: Site = None, home: Home = None, json: Json = False) -> None:
    """Say what was trained here, what left and when, and how much epsilon is left."""
    with reporting_refusals(json):
        facts = site_facts(find_site(site, home))
        if json:
            print_json(facts)
            return
        screen.print(f"[bold]{facts['site']}[/] {facts['institution']}, lineage {facts['lineage']}")
        if facts["paused"]:
            screen.print(f"[yellow]paused as a whole since {facts['paused']}[/]")
        _print_rows("Studies", facts["studies"], ("study", "state", "since", "by", "rounds_trained"))
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
            "What left this hospital",
            facts["egress"],
            ("time", "type", "study", "what", "bytes", "to", "digest"),
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
    from site_runtime.decisions import decided_studies, load_consent
    from site_runtime.egress import egress_records

    config = load_site(home)
    records, whole = egress_records(home), load_consent(home, None)
    studies: list[dict[str, Any]] = []
    for study in decided_studies(home):
        consent = load_consent(home, study)
        assert consent is not None
        last = consent.last
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
                "by": consent.people,
                "script": last.script,
                "decisions": [d.model_dump(exclude={"code"}) for d in consent.decisions],
                "protocol_hash": last.protocol_hash,
                "rounds_trained": len(rounds),
            }
        )
    return {
        "site": config.site,
        "institution": config.governance.institution,
        "lineage": config.governance.lineage,
        "paused": whole.last.time if whole is not None and whole.state == "paused" else None,
        "policy": config.policy_digest,
        "studies": studies,
        "privacy": _privacy(home, config, decided_studies(home)),
        "egress": [
            {
                "time": r["time"],
                "type": r["type"],
                "study": r["document"].get("study"),
                "what": _what(r),
                "bytes": r["bytes"],
                "to": r.get("to"),
                "tensors_to": r.get("tensors_to"),
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
    from contracts.privacy import PatientPrivacy
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


for command in (enrol, join, rotate, card, start, tunnel):
    app.command()(command)
app.add_typer(peers, name="peers")
