"""Hospitals that withdrew in mid-study: they are not asked again, and the release names them.

A hospital says so by refusing a plan (E303). It is left out of the next plan, until it publishes another data
sheet, which it does only after its people approved the study again; in the study's record it stays.
"""

from __future__ import annotations

from pathlib import Path

from contracts.plan import RoundPlan
from durable.files import locked, read_json, write_json
from tasks.home import CoordinatorHome

WITHDRAWN = "E303"


def note_withdrawals(home: CoordinatorHome, plan: RoundPlan, refused: dict[str, str]) -> None:
    """Keep who withdrew: from which exchange on, and under which data sheet. Noted once, it is not moved.

    Args:
        refused: the number with which each hospital refused the plan.
    """
    said = [site for site, number in refused.items() if number == WITHDRAWN]
    trained = plan.kind in ("evaluation", "verification")  # it had a part in the last exchange
    if not said:
        return
    path = _path(home, plan.study)
    with locked(path.with_suffix(".lock")):
        noted = read_json(path) if path.exists() else {}
        for site in said:
            entry = plan.entry(site)
            assert entry is not None
            if noted.get(site, {}).get("sheet") != entry.data_sheet:
                noted[site] = {"since": plan.round + trained, "sheet": entry.data_sheet}
        write_json(path, noted)


def withdrawn_since(home: CoordinatorHome, study: str) -> dict[str, int]:
    """The first exchange without each hospital that withdrew, whether or not it came back."""
    path = _path(home, study)
    return {site: int(said["since"]) for site, said in read_json(path).items()} if path.exists() else {}


def has_withdrawn(home: CoordinatorHome, study: str, sheets: dict[str, str]) -> set[str]:
    """Who of these hospitals withdrew under the data sheet (by digest) that is its newest."""
    path = _path(home, study)
    noted = read_json(path) if path.exists() else {}
    return {site for site, sheet in sheets.items() if noted.get(site, {}).get("sheet") == sheet}


def _path(home: CoordinatorHome, study: str) -> Path:
    return home.study(study) / "withdrawn.json"
