"""A private step at the coordinator: the strategy's half over the noised mean of the hospitals' updates.

This is the hospital-level privacy of `privacy: {mode: site}`; its ledger is in `tasks.federation_ledger`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from contracts.canonical import digest
from contracts.errors import ConsiliumError
from contracts.plan import RoundPlan
from contracts.privacy import HospitalPrivacy
from contracts.study import StudyProtocol
from contracts.update import UpdateEnvelope
from durable.files import locked, write_atomic
from privacy.central import combine
from privacy.stream import derive_stream
from strategies.interface import Admitted, Global, Tensors, shapes_of
from strategies.registry import strategy_of
from tasks.home import CoordinatorHome

COORDINATOR = "coordinator"
CLIP = "privacy.clip"  # among the coordinator's kept tensors: the clip norm of the next round


@dataclass(frozen=True)
class Combined:
    """Tensors in memory, read as an update is: a strategy sees one sum and nobody's update."""

    tensors: Tensors

    def read(self, name: str, span: slice) -> np.ndarray:
        """Read a range of the flattened tensor."""
        return self.tensors[name].reshape(-1)[span]

    def whole(self, name: str) -> np.ndarray:
        """Read one tensor."""
        return self.tensors[name]


def clip_of(protocol: StudyProtocol, optimiser: Tensors) -> float:
    """The clip norm of the round that starts from this kept state."""
    return float(optimiser[CLIP][0]) if CLIP in optimiser else privacy_of(protocol).max_update_norm


def private_step(
    home: CoordinatorHome,
    protocol: StudyProtocol,
    plan: RoundPlan,
    plan_digest: str,
    state: Global,
    updates: Sequence[Admitted],
    envelopes: Sequence[UpdateEnvelope],
    weights: dict[str, float],
) -> Global:
    """The strategy's coordinator half over the noised mean. Pure but for the noise key: replay repeats it.

    The noise belongs to the plan and to the set of updates: another set gets independent noise, since from
    two sums under one noise their difference could be read; the same set gets the same bytes.

    Args:
        updates, envelopes: the admitted updates in the order of their sites' names.
        weights: of every hospital on the roster.

    Raises:
        ConsiliumError: E424, the noise key is not here.
    """
    privacy, strategy = privacy_of(protocol), strategy_of(protocol)
    assert plan.noise_multiplier is not None
    combined = combine(
        updates,
        strategy.expected(protocol, shapes_of(state.model)),
        weights=weights,
        clip=clip_of(protocol, state.optimiser),
        noise_multiplier=plan.noise_multiplier,
        privacy=privacy,
        stream=lambda purpose: derive_stream(
            _noise_key(home),
            plan=plan_digest,
            cohort=digest([f"{e.site} {e.tensors}" for e in envelopes]),
            code_version=plan.code_versions[0],  # of the time of planning: a later replay draws the same
            purpose=purpose,
        ),
    )
    kept = {name: array for name, array in state.optimiser.items() if name != CLIP}
    total = Admitted(COORDINATOR, 1.0, Combined(combined.mean))
    after = strategy.coordinator(protocol, Global(state.model, kept), [total])
    if privacy.clipping == "flat":
        return after
    return Global(after.model, {**after.optimiser, CLIP: np.array([combined.clip], dtype=np.float64)})


def draw_noise_key(home: CoordinatorHome, *, first: bool) -> None:
    """Draw the coordinator's noise key from the operating system, once: `first` says that none was ever used.

    Raises:
        ConsiliumError: E424, it is gone.
    """
    with locked(home.root / ".key.lock"):
        if not home.noise_key.exists():
            if not first:
                raise ConsiliumError("E424", f"{home.noise_key} is missing and the ledger is not empty")
            write_atomic(home.noise_key, os.urandom(32))


def _noise_key(home: CoordinatorHome) -> bytes:
    try:
        return home.noise_key.read_bytes()
    except OSError as error:
        raise ConsiliumError("E424", f"{home.noise_key}: {error}") from error


def privacy_of(protocol: StudyProtocol) -> HospitalPrivacy:
    """The hospital-level privacy of a study that has it."""
    assert isinstance(protocol.privacy, HospitalPrivacy)
    return protocol.privacy
