"""Which plan this hospital answered in each exchange of a study: there is one answer, and no way back.

What was answered is noted with its attempt and its plan. An older exchange is asked again only by the very
plan that was answered, or by one from the same model under the same noise and cohort, as a coordinator makes
it that was restored from a backup: then the update of that time is sent once more.

All of it happens under the study's lock (`site_runtime.outbox.exclusively`). What a crash left in the outbox
before it was noted does not leave once another plan of its exchange was answered. Under masks an exchange is
bound to one plan for ever, before its vector is made (`site_runtime.masking`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from contracts.errors import ConsiliumError
from contracts.plan import RoundPlan
from contracts.privacy import PatientPrivacy
from contracts.study import StudyProtocol
from contracts.update import UpdateEnvelope
from durable.files import write_atomic
from site_runtime.home import SiteHome
from site_runtime.local import local_path
from site_runtime.outbox import DOCUMENT, TENSORS, keep
from strategies.secure import is_masked


@dataclass(frozen=True)
class Answered:
    """Attempt and digest of the plan that an exchange's newest answer is for."""

    attempt: int
    plan: str


def answered(home: SiteHome, protocol: StudyProtocol, plan: RoundPlan) -> Answered | None:
    """What was noted for the exchange of a plan; None, nothing."""
    path = _note(home, protocol, plan)
    if not path.exists():
        return None
    attempt, digest = path.read_text().split()
    return Answered(int(attempt), digest)


def check_order(home: SiteHome, protocol: StudyProtocol, plan: RoundPlan, plan_digest: str) -> None:
    """Refuse a plan that goes back: to an exchange before the newest answered, or to an answered one anew
    from another model or with another noise.

    What is the same in all that its bytes depend on gets the bytes of then: that is no way back.

    Raises:
        ConsiliumError: E324.
    """
    if is_masked(protocol, plan.kind) or earlier_answer(home, protocol, plan) is None:
        _check_new(home, protocol, plan, plan_digest)


def note_answer(home: SiteHome, protocol: StudyProtocol, plan: RoundPlan, plan_digest: str) -> None:
    """Note that the update of a plan, which is in the outbox, is the answer to its exchange.

    A task of an earlier attempt that is run again does not take the note back.

    Raises:
        ConsiliumError: E324, the exchange, or a later one, was answered with another update. This one was
            kept before a crash and never noted, or was superseded: it stays here.
    """
    before = answered(home, protocol, plan)
    if before is None or (before.plan != plan_digest and not _same_bytes(home, plan_digest, before.plan)):
        _check_new(home, protocol, plan, plan_digest)
    if before is None or plan.attempt >= before.attempt:
        write_atomic(_note(home, protocol, plan), f"{plan.attempt} {plan_digest}".encode())


def earlier_answer(home: SiteHome, protocol: StudyProtocol, plan: RoundPlan) -> UpdateEnvelope | None:
    """The update that answered an earlier plan of the same exchange, when a round was planned anew.

    Only if everything that its bytes depend on is the same: the protocol, the exchange, the base model, the
    noise, and the cohort (by its data sheet).
    """
    before = answered(home, protocol, plan)
    earlier = None if before is None else _update(home, before.plan)
    if earlier is None:
        return None
    tensors = home.outbox(earlier.plan) / TENSORS
    if not (local_path(home, protocol) if plan.kind == "local" else tensors).exists():
        return None
    entry = plan.entry(earlier.site)
    same = (
        earlier.protocol_hash == plan.protocol_hash
        and earlier.base_model == plan.base_model
        and earlier.noise_multiplier == own_noise(protocol, plan)
        and entry is not None
        and earlier.data_sheet == entry.data_sheet
    )
    return earlier if same else None


def answer_again(home: SiteHome, plan_digest: str, earlier: UpdateEnvelope) -> None:
    """Put the same bytes under the new plan into the outbox: post-processing, which spends nothing."""
    tensors = home.outbox(earlier.plan) / TENSORS
    sent = tensors.read_bytes() if tensors.exists() else None
    keep(home, plan_digest, earlier.model_copy(update={"plan": plan_digest}), sent, {})


def own_noise(protocol: StudyProtocol, plan: RoundPlan) -> float | None:
    """The noise multiplier that the site itself applies: with hospital-level privacy the coordinator does."""
    return plan.noise_multiplier if isinstance(protocol.privacy, PatientPrivacy) else None


def _check_new(home: SiteHome, protocol: StudyProtocol, plan: RoundPlan, plan_digest: str) -> None:
    """Check that an update of its own may answer a plan.

    Raises:
        ConsiliumError: E324.
    """
    notes = _notes(home, protocol).glob(f"{protocol.hash[:16]}-*")
    newest = max((int(path.name.rpartition("-")[2]) for path in notes), default=plan.round)
    if plan.round < newest:
        raise ConsiliumError("E324", f"exchange {plan.round}, answered was exchange {newest}")
    before = answered(home, protocol, plan)
    if before is None or is_masked(protocol, plan.kind):
        return
    if before.plan == plan_digest:
        return  # the very plan, whose update is no longer in the outbox: the ledger decides (E411)
    if plan.attempt <= before.attempt:
        raise ConsiliumError(
            "E324",
            f"attempt {plan.attempt} at exchange {plan.round}, answered was {before.attempt}: {before.plan}",
        )
    earlier = _update(home, before.plan)
    if earlier is None:
        return
    if earlier.base_model != plan.base_model:
        raise ConsiliumError(
            "E324", f"exchange {plan.round} from model {plan.base_model}, answered was {earlier.base_model}"
        )
    if earlier.noise_multiplier != own_noise(protocol, plan):
        raise ConsiliumError(
            "E324",
            f"exchange {plan.round} with noise {plan.noise_multiplier}, answered was "
            f"{earlier.noise_multiplier}",
        )


def _same_bytes(home: SiteHome, plan: str, other: str) -> bool:
    one, another = _update(home, plan), _update(home, other)
    return one is not None and another is not None and one.tensors == another.tensors


def _update(home: SiteHome, plan: str) -> UpdateEnvelope | None:
    """What lies in the outbox for a plan; None, it was never finished or is gone."""
    document = home.outbox(plan) / DOCUMENT
    return UpdateEnvelope.model_validate_json(document.read_bytes()) if document.exists() else None


def _note(home: SiteHome, protocol: StudyProtocol, plan: RoundPlan) -> Path:
    return _notes(home, protocol) / f"{protocol.hash[:16]}-{plan.kind}-{plan.round}"


def _notes(home: SiteHome, protocol: StudyProtocol) -> Path:
    return home.state(protocol.study) / "answers"
