"""From a global state and admitted updates to the next global state: a deterministic function of both."""

from __future__ import annotations

from dataclasses import dataclass

from contracts.plan import RoundPlan
from contracts.study import HospitalPrivacy, StudyProtocol
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
    model: Shapes = {}
    if plan.base_model is not None:
        model = TensorFile(DirectoryExchange(home.exchange).path_of(plan.base_model)).shapes
    return expected_update(protocol, plan, model, declared_size)


def admitted_file(exchange: DirectoryExchange, envelope: UpdateEnvelope, weight: float) -> Admitted:
    """Open the tensors of an update that was admitted."""
    assert envelope.tensors is not None, "admission wants tensors of everything but a local model"
    return Admitted(envelope.site, weight, TensorFile(exchange.path_of(envelope.tensors)))


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
    exchange = DirectoryExchange(home.exchange)
    ordered = sorted(updates, key=lambda e: e.site)
    admitted = [admitted_file(exchange, e, weights[e.site]) for e in ordered]
    if plan.kind == "statistics":
        from models.registry import initial_state  # torch: only here, so that every other round starts fast

        start = initial_state(protocol)
        state = Global(model=normalised_start(protocol, start, admitted, plan.noise_multiplier))
    else:
        assert base.model is not None
        before = load_global(home, base.model, base.optimiser)
        if isinstance(protocol.privacy, HospitalPrivacy):
            roster = {e.site: weight_of(protocol, e.declared_size) for e in plan.roster}
            state = private_step(home, protocol, plan, plan_digest, before, admitted, ordered, roster)
        else:
            state = strategy_of(protocol).coordinator(protocol, before, admitted)
    return Base(
        model=put_tensors(home, state.model),
        optimiser=put_tensors(home, state.optimiser) if state.optimiser else None,
    )
