"""AUROC with DeLong's variance, computed by midranks, and its interval on the logit scale."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from contracts.evaluation import Estimate
from validation.proportion import Z, wilson


def auroc(probability: NDArray[np.float64], label: NDArray[np.int64]) -> Estimate:
    """Return the area under the ROC curve with DeLong's standard error and a 95 % interval inside [0, 1].

    The variance is DeLong, DeLong & Clarke-Pearson (Biometrics 44, 1988) in the midrank form of Sun & Xu
    (IEEE SPL 21, 2014), O(n log n). The interval is symmetric on the logit scale (Pepe 2003, section 5.2).
    Where the classes are separated DeLong's variance is zero, which would claim certainty: the interval is
    then Wilson's for a proportion of 1 (or 0) in as many trials as the smaller class has patients.

    Args:
        probability: float64 [patients], any monotone score.
        label: int64 [patients], at least two of each class.
    """
    positive, negative = probability[label == 1], probability[label == 0]
    m, n = len(positive), len(negative)
    pooled = rankdata(np.concatenate([positive, negative]))
    among_positive = (pooled[:m] - rankdata(positive)) / n  # per positive: share of negatives it beats
    among_negative = 1 - (pooled[m:] - rankdata(negative)) / m
    value = float(among_positive.mean())
    variance = float(among_positive.var(ddof=1) / m + among_negative.var(ddof=1) / n)
    # Rounding leaves 1e-17 where the exact variance is zero.
    if variance < 1e-14 or not 0 < value < 1:
        return _without_variance(value, min(m, n))
    error = math.sqrt(variance)
    logit = math.log(value / (1 - value))
    half = Z * error / (value * (1 - value))
    return Estimate(value=value, standard_error=error, lower=_expit(logit - half), upper=_expit(logit + half))


def _without_variance(value: float, smaller_class: int) -> Estimate:
    """Interval of an AUROC whose sample variance is zero: separated, reversed or constant scores."""
    if 0 < value < 1:  # every score equal: nothing was ranked, so nothing is known
        return Estimate(value=value, standard_error=None, lower=0.0, upper=1.0)
    limits = wilson(smaller_class if value >= 1 else 0, smaller_class)
    assert limits.lower is not None and limits.upper is not None
    return Estimate(
        value=round(value),
        standard_error=(limits.upper - limits.lower) / (2 * Z),
        lower=limits.lower,
        upper=limits.upper,
    )


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
