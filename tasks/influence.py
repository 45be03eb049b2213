"""What every hospital's update did to the model in a round, for the study's page.

It is computed from the updates that were admitted. With patient-level privacy these are noised already, so
that it is post-processing and costs no epsilon. Nothing is computed where the coordinator may see no single
update (secure aggregation) or may tell nobody what it saw (hospital-level privacy).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts.errors import ConsiliumError
from contracts.plan import RoundPlan
from contracts.privacy import HospitalPrivacy
from contracts.strategy import Krum, Median, NormBound, TrimmedMean
from contracts.study import StudyProtocol
from contracts.update import UpdateEnvelope
from strategies.interface import Admitted, Shapes
from strategies.registry import strategy_of
from strategies.robust import closest, scales, squared_distances, stacks, trim_of
from tasks.aggregate import admitted_files, model_shapes
from tasks.home import CoordinatorHome

_DIGITS = 6  # what is stored; another machine's arithmetic differs in the last of them at most
_TOLERANCE = 2e-6

Influence = dict[str, dict[str, float | None]]


def influence_of(
    home: CoordinatorHome,
    protocol: StudyProtocol,
    plan: RoundPlan,
    updates: list[UpdateEnvelope],
    weights: dict[str, float],
) -> Influence | None:
    """Return the influence of every admitted hospital; None for an exchange that has none to show.

    Folds are left out: their models are never released.
    """
    hidden = isinstance(protocol.privacy, HospitalPrivacy) or protocol.secure is not None
    if plan.kind != "training" or plan.fold is not None or hidden:
        return None
    shapes = strategy_of(protocol).expected(protocol, model_shapes(home, plan))
    return measured(protocol, admitted_files(home, protocol, plan, updates, weights), shapes)


def measured(protocol: StudyProtocol, updates: Sequence[Admitted], shapes: Shapes) -> Influence:
    """Return for every site what its update did.

    `moved`: |mean - mean without it| / |mean|, of the weighted mean after scaling; where a method takes
    another average, what the update would have done to the plain mean. `cosine`: between the update and the
    mean of the others. Both are None where there is no other, or nothing to divide by. `scale`: what the
    update was multiplied by. `kept`: the share of its values that the method used, 0 or 1 with Krum.

    All follow from the inner products of the updates, which one pass over their blocks gives.
    """
    products, kept = inner_products(updates, shapes), kept_shares(protocol, updates, shapes)
    method = protocol.strategy.aggregation
    scale = [1.0] * len(updates)
    if isinstance(method, NormBound):
        norms = [math.sqrt(square) for square in np.diag(products)]
        scale = scales(norms, [update.bound for update in updates], method.factor)
    share = np.array([u.weight for u in updates]) / sum(u.weight for u in updates)
    found: Influence = {}
    for i, update in enumerate(updates):
        mean = share * scale
        others = np.where(np.arange(len(updates)) == i, 0.0, mean)
        found[update.site] = {
            "moved": _moved(products, mean, others / (1 - share[i])) if len(updates) > 1 else None,
            "cosine": _cosine(products, i, others) if len(updates) > 1 else None,
            "scale": round(scale[i], _DIGITS),
            "kept": round(kept[i], _DIGITS),
        }
    return found


def inner_products(updates: Sequence[Admitted], shapes: Shapes) -> NDArray[np.float64]:
    """Return the inner product of every pair of updates, float64 [updates, updates]."""
    found = np.zeros((len(updates), len(updates)))
    for _, _, stack in stacks(updates, shapes):
        values = stack.astype(np.float64)
        found += values @ values.T
    return found


def kept_shares(protocol: StudyProtocol, updates: Sequence[Admitted], shapes: Shapes) -> list[float]:
    """Return the share of every update's values that the protocol's method used."""
    method = protocol.strategy.aggregation
    if isinstance(method, Krum):
        kept = closest(squared_distances(updates, shapes), method)
        return [float(i in kept) for i in range(len(updates))]
    if not isinstance(method, Median | TrimmedMean):
        return [1.0] * len(updates)
    used, trim = np.zeros(len(updates)), trim_of(method, len(updates))
    for _, _, stack in stacks(updates, shapes):
        ordered = np.sort(stack, axis=0)
        inside = (stack >= ordered[trim]) & (stack <= ordered[len(stack) - trim - 1])
        used += np.count_nonzero(inside, axis=1)
    return [float(number) for number in used / sum(math.prod(shape) for shape in shapes.values())]


def check_influence(number: int, recorded: dict[str, Any] | None, computed: Influence | None) -> None:
    """Compare what a round's record states with what its stored updates give. Earlier records state nothing.

    Raises:
        ConsiliumError: E521.
    """
    if recorded is None:
        return
    for site in sorted({*recorded, *(computed or {})}):
        said, is_now = recorded.get(site, {}), (computed or {}).get(site, {})
        if said.keys() != is_now.keys() or not all(_same(said[key], is_now[key]) for key in said):
            raise ConsiliumError("E521", f"round {number}, {site}: {said}, its updates give {is_now}")


def _same(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)


def _moved(
    products: NDArray[np.float64], mean: NDArray[np.float64], without: NDArray[np.float64]
) -> float | None:
    length = _norm(products, mean)
    return round(_norm(products, mean - without) / length, _DIGITS) if length > 0 else None


def _cosine(products: NDArray[np.float64], i: int, others: NDArray[np.float64]) -> float | None:
    lengths = math.sqrt(products[i, i]) * _norm(products, others)
    if lengths == 0:
        return None
    return round(float(np.clip(products[i] @ others / lengths, -1, 1)), _DIGITS)


def _norm(products: NDArray[np.float64], coefficients: NDArray[np.float64]) -> float:
    """L2 norm of the sum of updates with these coefficients."""
    return math.sqrt(max(0.0, float(coefficients @ products @ coefficients)))
