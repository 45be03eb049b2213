"""From a global state and admitted updates to the next global state: a deterministic function of both."""

from __future__ import annotations

import math
from dataclasses import dataclass

from contracts.plan import RoundPlan
from contracts.study import HospitalPrivacy, StudyProtocol
from contracts.update import UpdateEnvelope
from strategies.interface import Admitted, Global, Shapes
from strategies.normalisation import normalised_start, statistics_norm_bound, statistics_shapes
from strategies.registry import strategy_of
from strategies.threshold import histogram_norm_bound, histogram_shapes
from tasks.admission import Expectation, training_norm_bound
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
    if plan.kind == "statistics":
        return Expectation(
            shapes=statistics_shapes(protocol),
            max_norm=statistics_norm_bound(protocol, declared_size, plan.noise_multiplier),
        )
    if plan.kind == "histogram":
        return Expectation(histogram_shapes(), histogram_norm_bound(declared_size, plan.noise_multiplier))
    shapes = strategy_of(protocol).expected(protocol, model_shapes(home, plan))
    dimension = sum(math.prod(shape) for shape in shapes.values())
    return Expectation(
        shapes=shapes,
        max_norm=training_norm_bound(protocol, dimension, declared_size, plan.noise_multiplier),
    )


def model_shapes(home: CoordinatorHome, plan: RoundPlan) -> Shapes:
    """Names and shapes of the model that a plan starts from."""
    assert plan.base_model is not None
    return TensorFile(DirectoryExchange(home.exchange).path_of(plan.base_model)).shapes


def weight_of(protocol: StudyProtocol, declared_size: int) -> float:
    """Aggregation weight: declared sizes or equal, never a count taken from data."""
    return float(declared_size) if protocol.strategy.weights == "declared" else 1.0


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
    if plan.kind == "statistics":
        from models.registry import initial_state  # torch: only here, so that every other round starts fast

        start = initial_state(protocol)
        state = Global(model=normalised_start(protocol, start, admitted, plan.noise_multiplier))
    else:
        assert base.model is not None
        before = load_global(home, base.model, base.optimiser)
        if isinstance(protocol.privacy, HospitalPrivacy):
            roster = {e.site: weight_of(protocol, e.declared_size) for e in plan.roster}
            ordered = sorted(updates, key=lambda e: e.site)
            state = private_step(home, protocol, plan, plan_digest, before, admitted, ordered, roster)
        else:
            state = strategy_of(protocol).coordinator(protocol, before, admitted)
    return Base(
        model=put_tensors(home, state.model),
        optimiser=put_tensors(home, state.optimiser) if state.optimiser else None,
    )
