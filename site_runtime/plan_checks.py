"""What a plan may ask, whatever was answered before: its roster and its deadline."""

from __future__ import annotations

from contracts.errors import ConsiliumError
from contracts.plan import RoundPlan
from contracts.schedule import deadline_of, slot_at
from contracts.study import StudyProtocol
from strategies.secure import is_masked


def check_roster(protocol: StudyProtocol, plan: RoundPlan) -> None:
    """Refuse a roster that is no group to hide in: a hospital named twice, or fewer than the study needs.

    A roster that is to be summed under masks is checked with its keys (`site_runtime.masking`).

    Raises:
        ConsiliumError: E306.
    """
    if is_masked(protocol, plan.kind):
        return
    names = [entry.site for entry in plan.roster]
    if len(set(names)) < len(names):
        raise ConsiliumError("E306", f"a hospital is named twice: {', '.join(sorted(names))}")
    slot = slot_at(protocol, plan.round)
    in_fold = plan.kind == "training" and slot is not None and slot.fold is not None
    least = max(protocol.min_sites - 1, 1) if in_fold else protocol.min_sites
    if len(names) < least:
        raise ConsiliumError("E306", f"{len(names)} hospitals, expected at least {least}: {', '.join(names)}")


def check_deadline(protocol: StudyProtocol, plan: RoundPlan) -> None:
    """Refuse a deadline that is not the protocol's.

    Raises:
        ConsiliumError: E301.
    """
    planned = deadline_of(protocol, plan.purpose)
    if plan.deadline_seconds != planned:
        raise ConsiliumError("E301", f"a deadline of {plan.deadline_seconds} s, approved were {planned} s")
