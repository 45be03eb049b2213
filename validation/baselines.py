"""The model beside a baseline on the same holdout patients, as it may leave a hospital."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from contracts.evaluation import Comparison, Estimate
from contracts.gates import Baseline
from validation.comparison import auroc_difference, brier_difference
from validation.disclosure import (
    DECIMALS,
    TABLE_METRICS,
    best_net_benefit,
    nested,
    rounded_estimate,
    shown_table,
    singles_out,
)
from validation.performance import class_totals_may_leave, shown_metrics
from validation.proportion import Z, normal_estimate

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
BaselineName = Baseline | Literal["left_out"]


def compare(
    name: BaselineName,
    model: Floats,
    other: Floats,
    label: Labels,
    threshold: float,
    minimum_cell: int,
    earlier: list[Floats],
) -> Comparison | None:
    """Return the model beside a baseline on the same patients, or None where the comparison may not leave.

    The paired error of a net benefit counts the patients on whom two decisions differ, by outcome: the
    difference of the two published values is given instead, with an error that is at least as large (the sum
    of both errors). Where the baseline's counts are ranges, it is the difference to the best that they allow:
    the worst, as the baseline's own value has it, would favour the model.

    Args:
        name: of the baseline.
        model, other: float64 [patients], probabilities of the model and of the baseline.
        label: int64 [patients], 0 or 1.
        threshold: at which both decide.
        minimum_cell: smallest count that may be known.
        earlier: scores on these patients that other comparisons have published.
    """
    published = [model, *earlier]
    if not class_totals_may_leave(label, minimum_cell):
        return None
    if any(singles_out(other, score, label, minimum_cell) for score in published):
        return None
    ours = shown_metrics(model, label, threshold, minimum_cell)
    theirs = shown_metrics(other, label, threshold, minimum_cell)
    if any(nested(other, score, label, threshold, minimum_cell) for score in published):
        theirs = {name: estimate for name, estimate in theirs.items() if name not in TABLE_METRICS}
    differences: dict[Literal["auroc", "net_benefit", "brier"], Estimate] = {}
    if "auroc" in ours and "auroc" in theirs:
        differences["auroc"] = rounded_estimate(auroc_difference(model, other, label))
        differences["brier"] = rounded_estimate(brier_difference(model, other, label))
    if "net_benefit" in ours and "net_benefit" in theirs:
        best = best_net_benefit(shown_table(other, label, threshold, minimum_cell), threshold)
        unpaired = _unpaired(ours["net_benefit"], theirs["net_benefit"], round(best, DECIMALS))
        differences["net_benefit"] = rounded_estimate(unpaired)
    return Comparison(baseline=name, metrics=theirs, differences=differences)


def _unpaired(model: Estimate, other: Estimate, best: float) -> Estimate:
    """The difference of a published value to the best of another; its error is at most the sum of theirs."""
    value = model.value - best
    if model.standard_error is None or other.standard_error is None:
        return Estimate(value=value)
    found = normal_estimate(value, model.standard_error + other.standard_error)
    ends = (model.lower, model.upper, other.lower, other.upper)
    low, high, other_low, other_high = (0.0 if end is None else end for end in ends)
    # Where one is a range the interval must cover the extremes as well.
    lower = min(found.lower or 0.0, low - other_high)
    upper = max(found.upper or 0.0, high - other_low)
    return Estimate(value=value, standard_error=(upper - lower) / (2 * Z), lower=lower, upper=upper)
