"""Proportions and means with their errors: accuracy (Wilson) and the Brier score."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from contracts.evaluation import Estimate

Z = 1.959963984540054  # 97.5 % point of the standard normal


def wilson(successes: int, n: int) -> Estimate:
    """Return a proportion with its standard error and 95 % Wilson score interval (JASA 22, 1927).

    Args:
        successes: count of successes, 0 <= successes <= n.
        n: count of trials, at least 1.
    """
    p = successes / n
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return Estimate(
        value=p,
        standard_error=math.sqrt(p * (1 - p) / n),
        # At p = 0 or 1 the end is exact in the formula and off by one rounding in floating point.
        lower=0.0 if successes == 0 else max(0.0, centre - half),
        upper=1.0 if successes == n else min(1.0, centre + half),
    )


def brier(probability: NDArray[np.float64], label: NDArray[np.int64]) -> Estimate:
    """Return the Brier score (mean squared error of the probability) with its normal 95 % interval.

    Args:
        probability: float64 [patients].
        label: int64 [patients], 0 or 1; at least two patients.
    """
    loss = (probability - label) ** 2
    value = float(loss.mean())
    error = float(loss.std(ddof=1) / math.sqrt(len(loss)))
    return Estimate(
        value=value,
        standard_error=error,
        lower=max(0.0, value - Z * error),
        upper=min(1.0, value + Z * error),
    )
