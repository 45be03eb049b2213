"""Proportions and means with their errors: Wilson's interval, the Brier score, and forms that others use."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from contracts.evaluation import Estimate

Z = 1.959963984540054  # 97.5 % point of the standard normal

# Rounding leaves about 1e-17 where the exact variance of a mean is zero.
NO_VARIANCE = 1e-14


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


def mean_estimate(contribution: NDArray[np.float64]) -> Estimate:
    """Return the mean of one number per patient with its standard error and normal 95 % interval.

    Where every patient contributes the same number the sample says nothing about the error: the standard
    error and the interval are then absent, not zero.

    Args:
        contribution: float64 [patients]; at least two patients.
    """
    value = float(contribution.mean())
    variance = float(contribution.var(ddof=1)) / len(contribution)
    if variance < NO_VARIANCE:
        return Estimate(value=value)
    return normal_estimate(value, math.sqrt(variance))


def normal_estimate(value: float, error: float) -> Estimate:
    """Return the estimate with its symmetric normal 95 % interval."""
    return Estimate(value=value, standard_error=error, lower=value - Z * error, upper=value + Z * error)


def logit_estimate(value: float, error: float) -> Estimate:
    """Return the estimate with a 95 % interval that is symmetric on the logit scale, so inside (0, 1).

    Args:
        value: between 0 and 1, neither included.
        error: standard error of the value itself; the delta method takes it to the logit.
    """
    centre = math.log(value / (1 - value))
    half = Z * error / (value * (1 - value))
    return Estimate(
        value=value, standard_error=error, lower=_expit(centre - half), upper=_expit(centre + half)
    )


def separated_estimate(value: float, trials: int) -> Estimate:
    """Return a rank measure that is 0 or 1, whose sample variance of zero would claim certainty.

    The interval is Wilson's for a proportion of 0 or 1 in `trials`, and the standard error a quarter of its
    width (over twice the normal quantile).

    Args:
        value: 0 or 1, up to rounding.
        trials: the patients that the value rests on, such as the size of the smaller class.
    """
    limits = wilson(trials if value > 0.5 else 0, trials)
    assert limits.lower is not None and limits.upper is not None
    return Estimate(
        value=limits.value,
        standard_error=(limits.upper - limits.lower) / (2 * Z),
        lower=limits.lower,
        upper=limits.upper,
    )


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
