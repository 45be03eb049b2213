"""Where a study stands and what happens next, for the command line and the study's page."""

from __future__ import annotations

from typing import Any

from contracts.schedule import title_of
from contracts.study import StudyProtocol
from tasks.folds import quorum, slot_of
from tasks.head import Head
from tasks.home import CoordinatorHome
from tasks.store import load_record


def next_step(head: Head, protocol: StudyProtocol, eligible: int) -> str:
    """Say in one sentence what happens next."""
    title = title_of(protocol, head.round, head.fold_sites)
    if head.status == "released":
        return "nothing: the release is published"
    if head.status == "rejected":
        return f"nothing: {head.reason}"
    if head.candidate is not None:
        roles = " and ".join(protocol.sign_off.roles)
        return f"sign-off in Airflow by {roles}: they approve or reject the candidate"
    if head.status == "finished" and head.reason:
        return f"waits: {head.reason}"
    if head.status == "finished":
        return "the release: evaluation at every hospital, gates, export"
    if head.reason:
        return f"waits: {head.reason}"
    if head.plan is not None:
        return f"{title} closes when its hospitals answered, at the latest at its deadline"
    needed = quorum(protocol, slot_of(protocol, head.round))
    if eligible < needed:
        return f"{needed - eligible} more hospitals must pass intake and connect"
    return f"{title} opens"


def opened_records(home: CoordinatorHome, protocol: StudyProtocol, head: Head) -> list[dict[str, Any]]:
    """The records of all exchanges opened so far, oldest first."""
    folder = home.study(protocol.study) / "records"
    numbers = range(protocol.first_round, head.round + 1)
    return [load_record(home, protocol.study, str(n)) for n in numbers if (folder / f"{n}.json").exists()]
