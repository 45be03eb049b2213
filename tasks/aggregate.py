"""From a global state and admitted updates to the next global state: a deterministic function of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from contracts.plan import RoundPlan
from contracts.privacy import HospitalPrivacy
from contracts.study import StudyProtocol
from contracts.update import UpdateEnvelope
from strategies.bounds import Expectation, expected_update, weight_of
from strategies.interface import Admitted, Global, Shapes
from strategies.normalisation import normalised_start
from strategies.registry import strategy_of
from tasks.central import private_step
from tasks.exchange import DirectoryExchange
from tasks.home import CoordinatorHome
from tasks.store import load_global, put_tensors
from tasks.tensors import TensorFile


@dataclass(frozen=True)
class Base:
    """What a round starts from: digests of the global model and of the coordinator's kept state."""

    model: str | None
    optimiser: str | None


def expectation(
    home: CoordinatorHome, protocol: StudyProtocol, plan: RoundPlan, declared_size: int
) -> Expectation:
    """What a site of this declared size must send for a plan."""
    return expected_update(protocol, plan, model_shapes(home, plan), declared_size)


def model_shapes(home: CoordinatorHome, plan: RoundPlan) -> Shapes:
    """Names and shapes of the model that a plan starts from; none where it starts from nothing."""
    if plan.base_model is None:
        return {}
    return TensorFile(DirectoryExchange(home.exchange).path_of(plan.base_model)).shapes


def admitted_file(
    exchange: DirectoryExchange, envelope: UpdateEnvelope, weight: float, bound: float = 1.0
) -> Admitted:
    """Open the tensors of an update that was admitted."""
    assert envelope.tensors is not None, "admission wants tensors of everything but a local model"
    return Admitted(envelope.site, weight, TensorFile(exchange.path_of(envelope.tensors)), bound)


def admitted_files(
    home: CoordinatorHome,
    protocol: StudyProtocol,
    plan: RoundPlan,
    updates: list[UpdateEnvelope],
    weights: dict[str, float],
) -> list[Admitted]:
    """Open the admitted updates of a plan in the order of their sites' names."""
    exchange, sizes = DirectoryExchange(home.exchange), {e.site: e.declared_size for e in plan.roster}
    # Admission has asked for the same bound: it is read off the plan, so that a replay finds it again.
    bounds = {e.site: expectation(home, protocol, plan, sizes[e.site]).max_norm for e in updates}
    ordered = sorted(updates, key=lambda e: e.site)
    return [admitted_file(exchange, e, weights[e.site], bounds[e.site]) for e in ordered]


def aggregate(
    home: CoordinatorHome,
    protocol: StudyProtocol,
    plan: RoundPlan,
    plan_digest: str,
    base: Base,
    updates: list[UpdateEnvelope],
    weights: dict[str, float],
) -> Base:
    """Combine admitted updates in the order of their sites' names and store the new global state.

    Deterministic: the same base and the same update digests give the same bytes, so that
    `consilium study replay` can check every round. With hospital-level privacy the strategy sees only the
    noised mean.
    """
    admitted = admitted_files(home, protocol, plan, updates, weights)
    if isinstance(protocol.privacy, HospitalPrivacy):
        assert base.model is not None
        before = load_global(home, base.model, base.optimiser)
        roster = {e.site: weight_of(protocol, e.declared_size) for e in plan.roster}
        ordered = sorted(updates, key=lambda e: e.site)
        return _stored(
            home, private_step(home, protocol, plan, plan_digest, before, admitted, ordered, roster)
        )
    return next_state(home, protocol, plan, base, admitted, len(admitted))


def next_state(
    home: CoordinatorHome,
    protocol: StudyProtocol,
    plan: RoundPlan,
    base: Base,
    admitted: Sequence[Admitted],
    sites: int,
) -> Base:
    """The coordinator's half of statistics or of the strategy; the new global state is stored.

    Args:
        admitted: updates in the order of their sites' names, or one that stands for all of them.
        sites: how many hospitals are in them.
    """
    if plan.kind == "statistics":
        from models.registry import initial_state  # torch: only here, so that every other round starts fast

        start = initial_state(protocol)
        return _stored(
            home, Global(model=normalised_start(protocol, start, admitted, plan.noise_multiplier, sites))
        )
    assert base.model is not None
    before = load_global(home, base.model, base.optimiser)
    return _stored(home, strategy_of(protocol).coordinator(protocol, before, admitted))


def _stored(home: CoordinatorHome, state: Global) -> Base:
    return Base(
        model=put_tensors(home, state.model),
        optimiser=put_tensors(home, state.optimiser) if state.optimiser else None,
    )
