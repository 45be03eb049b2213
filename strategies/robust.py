"""How admitted updates become one: the average that `strategy.aggregation` of the protocol names.

Every method is a pure function of the updates in their fixed order, reads them block by block, computes in
float64 and gives the same bytes whatever the number of threads. Only changes of parameters are combined
here. The sums of round 0 and of the threshold's histogram stay sums, since a count has no direction to stand
out by: one hospital's part in them is bounded by its admission alone (`strategies.normalisation`,
`strategies.threshold`).

None of it knows who is honest. Each bounds what a minority can do; docs/robust-aggregation.md says what that
costs without an attacker and what it does not protect from.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from contracts.strategy import Aggregation, Krum, Median, NormBound, TrimmedMean
from contracts.study import StudyProtocol
from privacy.central import update_norm
from strategies.interface import BLOCK, Admitted, Shapes, Tensors, spans, weighted_mean

STANDS_OUT = 3  # updates from which a median says who stands out


def combine(protocol: StudyProtocol, updates: Sequence[Admitted], shapes: Shapes) -> Tensors:
    """Return the average of updates that the protocol asks for, float32 by name.

    Args:
        updates: in the order of their sites' names; at least `fewest_updates`. Where only a sum can be seen
            (secure aggregation, hospital-level privacy), that one.
    """
    method = protocol.strategy.aggregation
    if isinstance(method, NormBound):
        norms = [update_norm(update.tensors, shapes) for update in updates]
        return weighted_mean(updates, shapes, scales(norms, [u.bound for u in updates], method.factor))
    if isinstance(method, Median | TrimmedMean):
        return trimmed_mean(updates, shapes, trim_of(method, len(updates)))
    if isinstance(method, Krum):
        kept = closest(squared_distances(updates, shapes), method)
        return weighted_mean([replace(updates[i], weight=1.0) for i in kept], shapes)
    return weighted_mean(updates, shapes)


def fewest_updates(method: Aggregation) -> int:
    """Return the number of updates below which a method says nothing.

    A trimmed mean needs a value between those it leaves out; Krum needs 2f + 3 (Blanchard et al. 2017,
    proposition 1), and as many as it keeps beside the f that may be anything.
    """
    if isinstance(method, TrimmedMean):
        return 2 * method.trim + 1
    if isinstance(method, Krum):
        return max(2 * method.malicious + 3, method.keep + method.malicious)
    return 1


def scales(norms: Sequence[float], bounds: Sequence[float], factor: float) -> list[float]:
    """Return what each update is multiplied by, at most 1, so that none stands out (arXiv:1911.07963).

    With rho the norm of an update over what honest training of its hospital can reach, every rho is held to
    `factor` times the median rho. The division lets a small hospital be as noisy as its size makes it.

    Args:
        norms, bounds: by update; fewer than three have no median to stand out of and stay as they are.
    """
    if len(norms) < STANDS_OUT:
        return [1.0] * len(norms)
    ratios = [norm / bound for norm, bound in zip(norms, bounds, strict=True)]
    limit = factor * statistics.median(ratios)
    return [limit / ratio if ratio > limit else 1.0 for ratio in ratios]


def trim_of(method: Median | TrimmedMean, updates: int) -> int:
    """Return how many values are left out at each end; the median leaves out all but one or two."""
    return (updates - 1) // 2 if isinstance(method, Median) else method.trim


def trimmed_mean(updates: Sequence[Admitted], shapes: Shapes, trim: int) -> Tensors:
    """Return the mean of every coordinate without its `trim` lowest and highest values (arXiv:1803.01498)."""
    mean = {name: np.empty(math.prod(shape), dtype=np.float32) for name, shape in shapes.items()}
    for name, span, stack in stacks(updates, shapes):
        stack.sort(axis=0)
        mean[name][span] = stack[trim : len(stack) - trim].mean(axis=0, dtype=np.float64)
    return {name: flat.reshape(shapes[name]) for name, flat in mean.items()}


def squared_distances(updates: Sequence[Admitted], shapes: Shapes) -> NDArray[np.float64]:
    """Return the squared L2 distance of every pair of updates, float64 [updates, updates]."""
    found = np.zeros((len(updates), len(updates)))
    for _, _, stack in stacks(updates, shapes):
        for i in range(len(stack)):
            for j in range(i):
                apart = np.subtract(stack[i], stack[j], dtype=np.float64)
                found[i, j] += np.square(apart, out=apart).sum()
    return found + found.T


def closest(distances: NDArray[np.float64], method: Krum) -> list[int]:
    """Return which updates multi-Krum keeps, in their order.

    The score of an update is the sum of its squared distances to the n - f - 2 nearest others (Blanchard et
    al. 2017, section 4); the lowest scores are kept, and of equal ones the first.

    Args:
        distances: squared, float64 [n, n].
    """
    n = len(distances)
    others = [np.sort(np.delete(row, i))[: n - method.malicious - 2] for i, row in enumerate(distances)]
    scores = [math.fsum(nearest) for nearest in others]
    return sorted(sorted(range(n), key=lambda i: scores[i])[: method.keep])


def stacks(updates: Sequence[Admitted], shapes: Shapes) -> Iterator[tuple[str, slice, NDArray[np.float32]]]:
    """Yield tensor by tensor the values of all updates over a range, float32 [updates, values].

    The ranges get shorter with the number of updates, so that memory does not grow with it.
    """
    block = max(1, 8 * BLOCK // len(updates))
    for name, shape in shapes.items():
        for span in spans(math.prod(shape), block):
            yield name, span, np.stack([update.tensors.read(name, span) for update in updates])
