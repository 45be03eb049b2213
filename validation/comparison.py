"""Two models on the same patients: paired differences, model minus other: above 0 the model is higher.

Where the difference has no sample variance, one of two things is true. The two say the same of every patient
(the same ranking, or the same probabilities): the difference is exactly 0 and so are its error and interval.
Or they merely do equally on these patients (both separate the classes): the value stands without an error and
without an interval, since the sample says nothing about it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from contracts.evaluation import Estimate
from validation.decision_curve import benefit_of_each
from validation.discrimination import delong_covariance
from validation.proportion import NO_VARIANCE, mean_estimate, normal_estimate

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

_EXACTLY_ZERO = Estimate(value=0.0, standard_error=0.0, lower=0.0, upper=0.0)


def auroc_difference(model: Floats, other: Floats, label: Labels) -> Estimate:
    """Return AUROC(model) - AUROC(other), paired (DeLong et al., Biometrics 44, 1988), interval normal.

    No variance: see the head of this file; two scores that rank the patients alike differ by exactly 0.

    For a model that contains the other (it was fitted to the same data with more features) the difference is
    not normal near 0, and this error is no test of the added features (Demler, Pencina & D'Agostino,
    Statistics in Medicine 31, 2012).

    Args:
        model, other: float64 [patients], any monotone scores of the same patients.
        label: int64 [patients], at least two of each class.
    """
    if np.array_equal(rankdata(model), rankdata(other)):
        return _EXACTLY_ZERO
    (first, second), covariance = delong_covariance(np.stack([model, other]), label)
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    value = float(first - second)
    if variance < NO_VARIANCE:
        return Estimate(value=value)
    return normal_estimate(value, math.sqrt(variance))


def net_benefit_difference(model: Floats, other: Floats, label: Labels, threshold: float) -> Estimate:
    """Return the net benefit of the model minus that of the other at one threshold, paired.

    Error from each patient's difference (Pfeiffer & Gail, Biometrical Journal 62, 2020); no variance: see the
    head of this file.

    Args:
        model, other: float64 [patients], probabilities of the same patients.
        label: int64 [patients], 0 or 1; at least two patients.
        threshold: between 0 and 1, neither included.
    """
    if np.array_equal(model, other):
        return _EXACTLY_ZERO
    return mean_estimate(benefit_of_each(model, label, threshold) - benefit_of_each(other, label, threshold))


def brier_difference(model: Floats, other: Floats, label: Labels) -> Estimate:
    """Return Brier(model) - Brier(other), paired: below 0 the model is the better one.

    Error from each patient's difference of squared errors (Redelmeier, Bloch & Hickam, Journal of Clinical
    Epidemiology 44, 1991, compare two such scores on the same patients); no variance: see the head of this
    file.

    Args:
        model, other: float64 [patients], probabilities of the same patients.
        label: int64 [patients], 0 or 1; at least two patients.
    """
    if np.array_equal(model, other):
        return _EXACTLY_ZERO
    return mean_estimate((model - label) ** 2 - (other - label) ** 2)
