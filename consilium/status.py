"""`consilium status`: where every study stands, from the coordinator's files; works when nothing is up."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.table import Table

from consilium.output import Json, home_folder, print_json, reporting_refusals, screen
from contracts.schedule import title_of
from tasks.account import spent_of
from tasks.federation import load_federation
from tasks.folds import invited, slot_of
from tasks.head import load_head, load_protocol, registered_studies
from tasks.home import CoordinatorHome
from tasks.late import late_sites
from tasks.masked_round import masks_line
from tasks.presence import present_sites
from tasks.roster import eligible_sites
from tasks.rounds import seconds_since
from tasks.standing import next_step, opened_records

app = typer.Typer()


def study_status(home: CoordinatorHome, study: str) -> dict[str, Any]:
    """Everything `status` says of one study."""
    head, protocol = load_head(home, study), load_protocol(home, study)
    present = present_sites(home)
    eligible, absent = eligible_sites(home, protocol, present)
    asked = invited(slot_of(protocol, head.round), head.fold_sites, set(eligible))
    records = opened_records(home, protocol, head)
    newest = records[-1] if records else {}
    # Of the newest round that is closed: the one that is open now has none.
    last_closed = next((r["plan"] for r in reversed(records) if r["status"] == "closed"), None)
    late = late_sites(home, study, last_closed) if last_closed else []
    sites: dict[str, Any] = {}
    for member in load_federation(home).members:
        lines = [u for r in records for u in r.get("updates", []) if u["site"] == member.site]
        last = lines[-1] if lines else {}
        refusal = newest.get("refused", {}).get(member.site)
        waiting = head.plan is not None and member.site in newest.get("expected", [])
        sites[member.site] = {
            "connected": member.site in present,
            "waited_for_seconds": round(seconds_since(head.updated)) if waiting else None,
            "absent": absent.get(member.site),
            "rounds": len(lines),
            "refused": refusal,
            "silent": member.site in newest.get("silent", []),
            "late": member.site in late,
            "epsilon_study": last.get("epsilon_study"),
            "epsilon_left": last.get("epsilon_left"),
        }
    return {
        "study": study,
        "status": head.status,
        "round": head.round,
        "rounds": protocol.rounds,
        "title": title_of(protocol, head.round, head.fold_sites),
        "decision_threshold": head.threshold if protocol.threshold_rule else protocol.decision_threshold,
        "open": head.plan is not None,
        "sites": sites,
        "epsilon": spent_of(records),
        "masks": next((line for record in reversed(records) if (line := masks_line(record))), None),
        "candidate": head.candidate,
        "updated": head.updated,
        "next": next_step(head, protocol, len(asked)),
    }


@app.command()
def status(
    study: Annotated[str | None, typer.Argument(help="One study; all when left out.")] = None,
    json: Json = False,
) -> None:
    """Say which round it is, who is waited for since when, who refused and why, and epsilon left per site."""
    with reporting_refusals(json):
        home = CoordinatorHome(home_folder() / "coordinator")
        found = [study_status(home, name) for name in ([study] if study else registered_studies(home))]
        if json:
            print_json(found[0] if study else found)
            return
        if not found:
            screen.print(f"No study is registered in {home_folder()}.")
        for one in found:
            show(one)


def show(found: dict[str, Any]) -> None:
    """Print the status of one study."""
    title = f"{found['study']}: {found['status']}, {found['title']}"
    table = Table(title=title)
    for column in ("hospital", "connected", "rounds", "state", "epsilon", "epsilon left"):
        table.add_column(column)
    for site, s in found["sites"].items():
        state = s["absent"] or ""
        if s["waited_for_seconds"] is not None:
            state = f"waited for since {s['waited_for_seconds']} s"
        elif s["refused"]:
            state = f"refused {s['refused']['number']}: {s['refused']['sentence']}"
        elif s["late"]:
            state = "late: its update came after the last round was closed"
        elif s["silent"]:
            state = "silent in the last round"
        spent = "" if s["epsilon_study"] is None else f"{s['epsilon_study']:.3f}"
        left = "" if s["epsilon_left"] is None else f"{s['epsilon_left']:.3f}"
        table.add_row(site, "yes" if s["connected"] else "no", str(s["rounds"]), state, spent, left)
    screen.print(table)
    if found["masks"]:
        screen.print(found["masks"], highlight=False)
    since = time.strftime("%H:%M:%S", time.localtime(time.time() - seconds_since(found["updated"])))
    screen.print(f"since {since}; next: {found['next']}", highlight=False)
    screen.print(f"everything else: consilium study page {found['study']}", highlight=False)
