"""The order of a study's exchanges as this hospital has answered them: a coordinator cannot go back.

What was answered is noted with its attempt and its plan. An older exchange is asked again only by the very
plan that was answered, or by one from the same model under the same noise and cohort, as a coordinator makes
it that was restored from a backup: then the update of that time is sent once more.

All of it happens under the study's lock (`site_runtime.outbox.exclusively`). What a crash left in the outbox
before it was noted does not leave once another plan of its exchange was answered.
"""

from __future__ import annotations

from pathlib import Path

from contracts.canonical import digest
from contracts.errors import ConsiliumError
from contracts.plan import RoundPlan
from contracts.schedule import deadline_of, slot_at
from contracts.study import StudyProtocol
from contracts.update import UpdateEnvelope
from durable.files import write_atomic
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
    earlier = _answer(home, answered_plan)
    if earlier is None:
        return
    if earlier.base_model != plan.base_model:
        raise ConsiliumError(
            "E324",
            f"exchange {plan.round} from model {plan.base_model}, answered was {earlier.base_model}",
        )
    if protocol.privacy.mode == "patient" and earlier.noise_multiplier != plan.noise_multiplier:
        raise ConsiliumError(
            "E324",
            f"exchange {plan.round} with noise {plan.noise_multiplier}, answered was "
            f"{earlier.noise_multiplier}",
        )


def note_answer(home: SiteHome, protocol: StudyProtocol, plan: RoundPlan, plan_digest: str) -> None:
    """Note that the update of a plan, which is in the outbox, is the answer to its exchange.

    A task of an earlier attempt that is run again does not take the note back.

    Raises:
        ConsiliumError: E324, the exchange, or a later one, was answered with another update. This one was
            kept before a crash and never noted, or was superseded: it stays here.
    """
    note = answer_note(home, protocol, plan)
    attempt, answered = note.read_text().split() if note.exists() else (plan.attempt, None)
    if answered != plan_digest and not _same_bytes(home, plan_digest, answered):
        check_order(home, protocol, plan)
    if plan.attempt >= int(attempt):
        write_atomic(note, f"{plan.attempt} {plan_digest}".encode())


def _same_bytes(home: SiteHome, plan: str, other: str | None) -> bool:
    one, another = _answer(home, plan), None if other is None else _answer(home, other)
    return one is not None and another is not None and one.tensors == another.tensors


def _answer(home: SiteHome, plan: str) -> UpdateEnvelope | None:
    document = home.outbox(plan) / DOCUMENT
    return UpdateEnvelope.model_validate_json(document.read_bytes()) if document.exists() else None


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
