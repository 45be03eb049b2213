"""The ledger and the budget of hospital-level privacy, over all hospitals, studies and time.

A plan is reserved before its updates are combined and counts for ever; its record is stored before the head
moves, and a stored record is never computed again: one plan has at most one aggregate that anybody sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, ValidationError

from contracts.errors import ConsiliumError
from contracts.fields import Contract
from contracts.plan import RoundPlan
from contracts.release import SitePrivacy
from contracts.signing import first_problem
from contracts.study import StudyProtocol
from durable.files import locked, write_json
from privacy.accountant import Spend, epsilon
from privacy.calibration import calibrate, spend_of
from privacy.ledger import Ledger
from tasks.central import COORDINATOR, clip_of, draw_noise_key, privacy_of
from tasks.federation import coordinator_key, load_federation
from tasks.home import CoordinatorHome
from tasks.roster import last_ledger_heads, note_ledger_heads
from tasks.store import get_tensors

LINEAGE = "federation"


class Budget(Contract):
    """What the coordinator may spend on the hospitals of its federation, over all studies and all time."""

    epsilon: Annotated[float, Field(gt=0, le=1000)] = 50.0
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-3


@dataclass(frozen=True)
class FederationAccount:
    """What the coordinator's ledger says: the same for every hospital. Deltas are the study's."""

    epsilon_study: float
    epsilon_lineage: float
    epsilon_left: float  # of the budget, at the smaller delta of study and budget
    ledger_head: str
    ledger_length: int


def load_budget(home: CoordinatorHome) -> Budget:
    """Read the federation's budget; at first use the default is written, for its owner to change.

    Raises:
        ConsiliumError: E423, the file does not say what may be spent.
    """
    with locked(home.root / ".budget.lock"):
        if not home.budget.exists():
            write_json(home.budget, Budget().model_dump(mode="json"))
    try:
        return Budget.model_validate_json(home.budget.read_bytes())
    except (OSError, ValidationError) as error:
        what = first_problem(error) if isinstance(error, ValidationError) else str(error)
        raise ConsiliumError("E423", f"{home.budget}: {what}") from error


def federation_ledger(home: CoordinatorHome) -> Ledger:
    """Open the federation's ledger.

    Raises:
        ConsiliumError: E402, it cannot be used; E407, it is older than the one that was last written here.
    """
    ledger = Ledger(home.ledger(LINEAGE), COORDINATOR, LINEAGE, coordinator_key(home))
    newest = last_ledger_heads(home).get(COORDINATOR)
    if newest is not None:
        ledger.check_head(newest)
    return ledger


def check_before_round(home: CoordinatorHome, protocol: StudyProtocol, number: int, hospitals: int) -> None:
    """Refuse a round that may not be closed, before any hospital trains for it.

    Args:
        number: of the round that would be opened.
        hospitals: how many its roster would have.

    Raises:
        ConsiliumError: E401, the federation's budget or the study's epsilon would be passed by this round and
            those to come; E402, E407, the ledger; E423, the budget; E425, delta is too large.
    """
    privacy = privacy_of(protocol)
    if privacy.delta * hospitals >= 1.0:
        raise ConsiliumError("E425", f"delta {privacy.delta:g}, expected below 1/{hospitals}")
    ledger, budget = federation_ledger(home), load_budget(home)
    still = _still(protocol, number - 1, calibrate(protocol).training)
    _check_study(ledger, protocol, still)
    delta = min(privacy.delta, budget.delta)
    total = epsilon([*ledger.spends(), *still], delta)
    if not total <= budget.epsilon:
        raise ConsiliumError(
            "E401",
            f"all hospitals of the federation: epsilon {total:.4f} at delta {delta:g}, "
            f"expected at most {budget.epsilon:g} ({home.budget.name})",
        )


def reserve(home: CoordinatorHome, protocol: StudyProtocol, plan: RoundPlan, plan_digest: str) -> None:
    """Reserve a plan's cost before its updates are combined; again for the same plan is free.

    Raises:
        ConsiliumError: E401, E402, E407, E411, E423 as above; E410, the plan has less noise than the study
            needs; E424, the noise key is gone, so that what was combined before would get other noise.
    """
    privacy, noise = privacy_of(protocol), calibrate(protocol).training
    if plan.noise_multiplier is None or plan.noise_multiplier < noise:
        raise ConsiliumError("E410", f"noise_multiplier {plan.noise_multiplier}, expected at least {noise}")
    ledger, budget = federation_ledger(home), load_budget(home)
    draw_noise_key(home, first=not ledger.spends())
    spend, still = spend_of(protocol, plan.kind, plan.noise_multiplier), _still(protocol, plan.round, noise)
    if not ledger.reserved(plan_digest):
        _check_study(ledger, protocol, [spend, *still])
    ledger.reserve(
        study=protocol.study,
        plan=plan_digest,
        purpose="aggregate",
        spend=spend,
        epsilon_cap=budget.epsilon,
        delta=min(privacy.delta, budget.delta),
        projected=still,
    )
    note_ledger_heads(home, {COORDINATOR: (ledger.length, ledger.head)})


def commit(home: CoordinatorHome, plan_digest: str) -> None:
    """Note that a plan's record is stored; again is harmless."""
    ledger = federation_ledger(home)
    ledger.commit(plan_digest)
    note_ledger_heads(home, {COORDINATOR: (ledger.length, ledger.head)})


def account(home: CoordinatorHome, protocol: StudyProtocol) -> FederationAccount:
    """What was spent on every hospital by now, at the study's delta."""
    privacy, budget, ledger = privacy_of(protocol), load_budget(home), federation_ledger(home)
    everything = ledger.spends()
    capped = epsilon(everything, min(privacy.delta, budget.delta))
    return FederationAccount(
        epsilon_study=epsilon(ledger.spends(protocol.study), privacy.delta),
        epsilon_lineage=epsilon(everything, privacy.delta),
        epsilon_left=max(0.0, budget.epsilon - capped),
        ledger_head=ledger.head,
        ledger_length=ledger.length,
    )


def hospitals_privacy(home: CoordinatorHome, protocol: StudyProtocol, sites: list[str]) -> list[SitePrivacy]:
    """What a release says of each of these hospitals: what the coordinator's ledger says of all of them."""
    spent, federation = account(home, protocol), load_federation(home)
    return [
        SitePrivacy(
            site=site,
            declared_size=federation.known(site).declared_size,
            epsilon_study=spent.epsilon_study,
            epsilon_lineage=spent.epsilon_lineage,
            ledger_head=spent.ledger_head,
            ledger_key=coordinator_key(home).public,
        )
        for site in sites
    ]


def round_account(
    home: CoordinatorHome,
    protocol: StudyProtocol,
    plan: RoundPlan,
    optimiser: str | None,
    lines: list[dict[str, Any]],
) -> dict[str, Any]:
    """What a round's record says of its privacy: by the coordinator's ledger, the same for the whole roster.

    Args:
        optimiser: digest of the kept state that the round started from.
        lines: the record's lines of admitted updates.
    """
    spent = account(home, protocol)
    shown = {
        "epsilon_study": spent.epsilon_study,
        "epsilon_lineage": spent.epsilon_lineage,
        "epsilon_left": spent.epsilon_left,
    }
    return {
        "clip": clip_of(protocol, get_tensors(home, optimiser) if optimiser else {}),
        "updates": [line | shown for line in lines],
        "epsilon": {
            "delta": privacy_of(protocol).delta,
            "sites": dict.fromkeys(sorted(entry.site for entry in plan.roster), spent.epsilon_study),
            "maximum": spent.epsilon_study,
            "planned": privacy_of(protocol).epsilon,
        },
        "federation_ledger": {"head": spent.ledger_head, "length": spent.ledger_length},
    }


def _still(protocol: StudyProtocol, done: int, noise: float) -> list[Spend]:
    """What the rounds after round `done` will cost."""
    left = protocol.rounds - done
    return [Spend(1.0, noise, left)] if left else []


def _check_study(ledger: Ledger, protocol: StudyProtocol, spends: list[Spend]) -> None:
    """Hold the study to the epsilon that its hospitals approved."""
    privacy = privacy_of(protocol)
    total = epsilon([*ledger.spends(protocol.study), *spends], privacy.delta)
    if total > privacy.epsilon:
        raise ConsiliumError(
            "E401", f"the study would come to epsilon {total:.4f}, approved was {privacy.epsilon:g}"
        )
