"""Which studies should be moving and are not: what the watchdog rings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from contracts.errors import ConsiliumError
from contracts.schedule import Slot, deadline_of
from contracts.study import StudyProtocol
from tasks.folds import invited, slot_of
from tasks.head import load_head, load_protocol, registered_studies
from tasks.home import CoordinatorHome
from tasks.presence import present_sites
from tasks.roster import eligible_sites
from tasks.rounds import check_number, seconds_since

IDLE_SECONDS = 20.0  # without activity before the watchdog rings
LONGEST_DOUBLINGS = 8  # of that time, one for each refusal of the round: up to an hour and a half


def idle_studies(
    home: CoordinatorHome, active: Callable[[str], bool] = lambda study: True
) -> dict[str, Literal["round", "finished"]]:
    """Studies that should be moving and are not, and which of their bells the watchdog rings.

    A study with a cron cadence waits for its cron. One short of sites is rung only once enough are there, and
    one whose hospitals refuse is asked less and less often: what they refuse for may take a person to change.
    A study whose files are damaged keeps no other from being rung.

    Args:
        active: says whether a run of a study's rounds goes on or waits; asked only while a round is open. An
            open round without one was left by a run that failed, and nobody would close it.
    """
    idle: dict[str, Literal["round", "finished"]] = {}
    present = present_sites(home)
    for study in registered_studies(home):
        try:
            head, protocol = load_head(home, study), load_protocol(home, study)
            eligible, _ = eligible_sites(home, protocol, present)
        except ConsiliumError:
            continue
        waited, slot = seconds_since(head.updated), slot_of(protocol, head.round)
        if head.status == "running" and protocol.cadence != "cron":
            if not may_open(protocol, slot, sorted(invited(slot, head.fold_sites, set(eligible)))):
                continue
            open_since = head.plan is not None and head.refusals == 0 and active(study)
            patience = IDLE_SECONDS * 2.0 ** min(head.refusals, LONGEST_DOUBLINGS)
            if waited > patience + (deadline_of(protocol, slot.purpose) if open_since else 0):
                idle[study] = "round"
        enough = len(eligible) >= protocol.min_sites
        if head.status == "finished" and head.evaluation is None and enough and waited > IDLE_SECONDS:
            idle[study] = "finished"
    return idle


def may_open(protocol: StudyProtocol, slot: Slot, eligible: list[str]) -> bool:
    """Whether the number of hospitals that are there allows an exchange."""
    try:
        check_number(protocol, slot, eligible, {})
    except ConsiliumError:
        return False
    return True
