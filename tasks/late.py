"""Updates that came after their round was closed: kept out, and noted where the operator sees it."""

from __future__ import annotations

from contracts.plan import RoundPlan
from durable.files import write_json
from tasks.head import now
from tasks.home import CoordinatorHome


def note_late(home: CoordinatorHome, plan: RoundPlan, digest: str, site: str) -> None:
    """Note that a site offered an update for a plan that takes none any more; the first time counts."""
    path = home.study(plan.study) / "late" / digest / f"{site}.json"
    if not path.exists():
        write_json(path, {"round": plan.round, "site": site, "arrived": now()})


def late_sites(home: CoordinatorHome, study: str, digest: str) -> list[str]:
    """Sites whose update for a plan came too late, sorted."""
    return sorted(path.stem for path in (home.study(study) / "late" / digest).glob("*.json"))
