"""Discrimination with more than two classes, and with many yes-or-no labels of which some are not measured.

Errors of averages add each patient's influence on the AUROCs (or the other measures) that are averaged before
squaring, since these share patients; with two classes, and with one label, that is the error of the measure
itself. Intervals are symmetric on the logit scale, those of Brier scores normal.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from contracts.evaluation import Estimate
from validation.discrimination import (
    auprc,
    auroc,
    auroc_influence,
    average_precision_influence,
    rank_without_variance,
)
from validation.proportion import NO_VARIANCE, Z, brier, logit_estimate

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
_Influence = Callable[[Floats, Labels], tuple[float, Floats]]

MACRO = -1  # the key of the average over labels; a label is a column, 0 or higher


def multiclass_auroc(probability: Floats, label: Labels) -> dict[str, Estimate]:
    """Return `macro`, the mean of the one-versus-rest AUROCs, and `hand_till`, Hand & Till's M.

    M (Machine Learning 45, 2001, equation 7) is the mean over all pairs of classes of the two AUROCs within
    the pair, by the probability of the one class and of the other. It does not move with the prevalences;
    `macro` does. Both weigh every class alike. Empty when one of the k classes has fewer than two patients: a
    mean over the other classes would be of something else.

    Args:
        probability: float64 [patients, k], k >= 2.
        label: int64 [patients], 0 .. k - 1.
    """
    n, k = probability.shape
    sizes = np.bincount(label, minlength=k)
    if sizes.min() < 2:
        return {}
    rest = [auroc_influence(probability[:, c], (label == c).astype(np.int64)) for c in range(k)]
    within: list[tuple[float, Floats]] = []
    for a, b in itertools.permutations(range(k), 2):
        pair = (label == a) | (label == b)
        value, own = auroc_influence(probability[pair, a], (label[pair] == a).astype(np.int64))
        influence = np.zeros(n)
        influence[pair] = own
        within.append((value, influence))
    smallest = int(sizes.min())
    return {"macro": _rank_average(rest, smallest), "hand_till": _rank_average(within, smallest)}


def multilabel(probability: Floats, label: Floats) -> dict[int, dict[str, Estimate]]:
    """Return auroc, auprc and brier of each label over the patients where it is measured, and their means.

    A label needs two measured patients of each class for auroc and auprc, two measured patients for brier;
    what cannot be estimated is absent, and so is a label without any. Under the key `MACRO` is the mean of
    each measure over the labels that have it: compare it only between models measured on the same patients.

    Args:
        probability: float64 [patients, labels].
        label: float64 [patients, labels], 0, 1, or NaN where it was not measured.

    Returns:
        column of the label (or `MACRO`) -> name of the measure -> estimate.
    """
    n, labels = label.shape
    found: dict[int, dict[str, Estimate]] = {}
    shares: dict[str, list[tuple[float, Floats]]] = {"auroc": [], "auprc": [], "brier": []}
    smallest: list[int] = []
    for column in range(labels):
        measured = ~np.isnan(label[:, column])
        p, y = probability[measured, column], label[measured, column].astype(np.int64)
        smaller_class = min(int(y.sum()), len(y) - int(y.sum()))
        estimates: dict[str, Estimate] = {}
        parts: dict[str, _Influence] = {}
        if smaller_class >= 2:
            estimates |= {"auroc": auroc(p, y), "auprc": auprc(p, y)}
            parts |= {"auroc": auroc_influence, "auprc": average_precision_influence}
            smallest.append(smaller_class)
        if len(y) >= 2:
            estimates["brier"] = brier(p, y)
            parts["brier"] = _brier_influence
        for name, part in parts.items():
            value, own = part(p, y)
            influence = np.zeros(n)
            influence[measured] = own
            shares[name].append((value, influence))
        if estimates:
            found[column] = estimates
    averages = {name: _rank_average(shares[name], min(smallest)) for name in ("auroc", "auprc") if smallest}
    if shares["brier"]:
        averages["brier"] = _brier_average(shares["brier"])
    if averages:
        found[MACRO] = averages
    return found


def _average(parts: list[tuple[float, Floats]]) -> tuple[float, float]:
    """(mean of the values, variance of that mean from the influences of the same patients)."""
    influence = np.mean([own for _, own in parts], axis=0)
    return float(np.mean([value for value, _ in parts])), float(influence @ influence)


def _rank_average(parts: list[tuple[float, Floats]], trials: int) -> Estimate:
    value, variance = _average(parts)
    if variance < NO_VARIANCE or not 1e-12 < value < 1 - 1e-12:
        return rank_without_variance(value, trials)
    return logit_estimate(value, math.sqrt(variance))


def _brier_average(parts: list[tuple[float, Floats]]) -> Estimate:
    value, variance = _average(parts)
    error = math.sqrt(variance)
    return Estimate(
        value=value,
        standard_error=error,
        lower=max(0.0, value - Z * error),
        upper=min(1.0, value + Z * error),
    )


def _brier_influence(probability: Floats, label: Labels) -> tuple[float, Floats]:
    loss = (probability - label) ** 2
    value = float(loss.mean())
    return value, (loss - value) / math.sqrt(len(loss) * (len(loss) - 1))
