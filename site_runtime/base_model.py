"""Whether the global model that was sent is one to which the approved protocol can lead.

The exchange has verified that the bytes are those of the plan. This asks the rest, from the protocol alone:
the tensors of the model that it describes, all finite; before the first round of training its own first
model; later no further from it than honest rounds can have come; and a normalisation that fits the features.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from contracts.errors import ConsiliumError
from contracts.plan import RoundPlan
from contracts.privacy import NoPrivacy
from contracts.schedule import slot_at
from contracts.study import StudyProtocol
from models.registry import initial_state
from privacy.calibration import calibrate
from privacy.statistics import numeric_features
from strategies.interface import Tensors
from strategies.normalisation import PREVALENCE
from strategies.round_bound import round_norm_bound

CENTER, SCALE = "preprocessing.center", "preprocessing.scale"
_WIDEST = 10.0  # ranges of a feature that a scale may reach: noise may widen it, absurd ones are refused
_ROUNDING = 1e-5  # of float32


def read_base(path: Path) -> Tensors:
    """Read a global model that was fetched.

    Raises:
        ConsiliumError: E325, the file is no safetensors.
    """
    try:
        tensors: Tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ConsiliumError("E325", f"the model cannot be read: {error}") from error
    return tensors


def rounds_before(protocol: StudyProtocol, plan: RoundPlan) -> int:
    """Rounds of training that a plan's base model has behind it: all where it is finished."""
    slot = slot_at(protocol, plan.round)
    if plan.kind == "local":
        return 0
    return slot.round - 1 if plan.kind == "training" and slot is not None else protocol.rounds


def check_base(protocol: StudyProtocol, plan: RoundPlan, base: Tensors) -> None:
    """Check the global model that a plan trains from, reads risks of or evaluates.

    Raises:
        ConsiliumError: E325, naming the tensor; E409, the study's noise cannot be calibrated.
    """
    start = initial_state(protocol)
    _check_form(start, base)
    _check_normalisation(protocol, start, base)
    names, rounds = [name for name in start if name.startswith("network.")], rounds_before(protocol, plan)
    if rounds == 0:
        for name in names:
            if not np.array_equal(base[name], start[name]):
                raise ConsiliumError("E325", f"tensor {name!r} is not the protocol's own first one")
        return
    moved = math.sqrt(sum(_square(base[name], start[name]) for name in names))
    dimension = sum(start[name].size for name in names)
    noise = None if isinstance(protocol.privacy, NoPrivacy) else calibrate(protocol).training
    sizes = [entry.declared_size for entry in plan.roster]
    bound = rounds * round_norm_bound(protocol, dimension, sizes, noise)
    if not moved <= bound:
        raise ConsiliumError(
            "E325",
            f"{moved:.4g} away from the first model after {rounds} rounds, expected at most {bound:.4g}",
        )


def _check_form(start: Tensors, base: Tensors) -> None:
    if set(base) != set(start):
        raise ConsiliumError("E325", f"tensors {sorted(base)}, expected {sorted(start)}")
    for name, expected in start.items():
        found = base[name]
        if found.shape != expected.shape or found.dtype != expected.dtype:
            raise ConsiliumError(
                "E325",
                f"tensor {name!r}: {found.dtype} {list(found.shape)}, "
                f"expected {expected.dtype} {list(expected.shape)}",
            )
        if not np.isfinite(found).all():
            raise ConsiliumError("E325", f"tensor {name!r} holds NaN or infinity")


def _check_normalisation(protocol: StudyProtocol, start: Tensors, base: Tensors) -> None:
    """What round 0 releases lies within the features' ranges; everything else is the protocol's own."""
    released = {CENTER, SCALE, PREVALENCE} if protocol.first_round == 0 else set()
    for name in start:
        if name in released or name.startswith("network."):
            continue
        if not np.array_equal(base[name], start[name]):
            raise ConsiliumError("E325", f"tensor {name!r} is not the protocol's own")
    if not released:
        return
    ranges = np.array([f.range for _, f in numeric_features(protocol)], dtype=np.float64).reshape(-1, 2)
    low, high = ranges.T
    slack = _ROUNDING * np.maximum(np.abs(low), np.abs(high))
    inside = (base[CENTER] >= low - slack) & (base[CENTER] <= high + slack)
    usual = (base[SCALE] > 0) & (base[SCALE] <= _WIDEST * (high - low))
    if not inside.all() or not usual.all():
        raise ConsiliumError("E325", "the normalisation lies outside of the features' ranges")
    if PREVALENCE in start and not 0.0 < float(base[PREVALENCE][0]) < 1.0:
        raise ConsiliumError("E325", f"tensor {PREVALENCE!r}, expected a share between 0 and 1")


def _square(one: np.ndarray, other: np.ndarray) -> float:
    """Squared distance, in float64: a poisoned float32 must not overflow into a comparison with NaN."""
    difference = np.subtract(one, other, dtype=np.float64).ravel()
    return float(np.dot(difference, difference))
