"""The order of a study's exchanges as this hospital has answered them: a coordinator cannot go back.

What was answered is noted with its attempt and its plan. An older exchange is asked again only by the very
plan that was answered, or by one from the same model under the same noise and cohort, as a coordinator makes
it that was restored from a backup: then the update of that time is sent once more.
"""

from __future__ import annotations

from pathlib import Path

from contracts.canonical import digest
from contracts.errors import ConsiliumError
from contracts.plan import RoundPlan
from contracts.schedule import deadline_of, slot_at
from contracts.study import StudyProtocol
from contracts.update import UpdateEnvelope
from site_runtime.home import SiteHome
from site_runtime.outbox import DOCUMENT
from strategies.secure import is_masked


def answer_note(home: SiteHome, protocol: StudyProtocol, plan: RoundPlan) -> Path:
    """Where the attempt and the plan that last answered an exchange of a study are noted."""
    return _notes(home, protocol) / f"{protocol.hash[:16]}-{plan.kind}-{plan.round}"


def check_order(home: SiteHome, protocol: StudyProtocol, plan: RoundPlan) -> None:
    """Refuse a plan that goes back: to an exchange before the newest answered, or to an answered one anew
    from another model or with another noise.

    Raises:
        ConsiliumError: E324.
    """
    answered = [
        int(path.name.rpartition("-")[2]) for path in _notes(home, protocol).glob(f"{protocol.hash[:16]}-*")
    ]
    if answered and plan.round < max(answered):
        raise ConsiliumError("E324", f"exchange {plan.round}, answered was exchange {max(answered)}")
    note = answer_note(home, protocol, plan)
    if not note.exists() or is_masked(protocol, plan.kind):
        return  # under masks an exchange is bound to one plan for ever (`site_runtime.masking`)
    attempt, answered_plan = note.read_text().split()
    if answered_plan == digest(plan):
        return  # the very plan, whose update is no longer in the outbox: the ledger decides (E411)
    if plan.attempt <= int(attempt):
        raise ConsiliumError(
            "E324",
            f"attempt {plan.attempt} at exchange {plan.round}, answered was {attempt}: {answered_plan}",
        )
    document = home.outbox(answered_plan) / DOCUMENT
    if document.exists():
        earlier = UpdateEnvelope.model_validate_json(document.read_bytes())
        if earlier.base_model != plan.base_model:
            raise ConsiliumError(
                "E324",
                f"exchange {plan.round} from model {plan.base_model}, answered was {earlier.base_model}",
            )


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


def _notes(home: SiteHome, protocol: StudyProtocol) -> Path:
    return home.state(protocol.study) / "answers"
