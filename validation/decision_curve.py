"""Net benefit of deciding by a model, and the decision curve as far as it may leave a hospital.

Vickers & Elkin, Medical Decision Making 26 (2006); Vickers et al., BMC Med Inform Decis Mak 8:53 (2008).
A threshold t says that one missed event is worth (1 - t) / t needless alerts. Net benefit is in true
positives per patient: TP/n - FP/n x t / (1 - t). An alert is probability >= t, and 0 < t < 1.

Standard errors come from one number per patient, of which net benefit is the mean (Pfeiffer & Gail,
Biometrical Journal 62, 2020, the estimate from risks and outcomes). Where all patients contribute the same
(nobody is alerted) the sample says nothing about the error, and error and interval are absent. Vickers et
al. (Diagnostic and Prognostic Research 7:11, 2023) warn against choosing by the interval: the decision
follows the estimate, the interval says whether more patients should be studied.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts.evaluation import Estimate
from validation.proportion import mean_estimate

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class DecisionPoint:
    """Net benefit at one threshold, in true positives per patient, rounded to 4 decimals."""

    threshold: float
    model: float
    treat_all: float


def net_benefit(probability: Floats, label: Labels, threshold: float) -> Estimate:
    """Return the net benefit of alerting where probability >= threshold.

    Args:
        probability: float64 [patients].
        label: int64 [patients], 0 or 1; at least two patients.
        threshold: between 0 and 1, neither included.
    """
    return mean_estimate(benefit_of_each(probability, label, threshold))


def net_benefit_treat_all(label: Labels, threshold: float) -> Estimate:
    """Return the net benefit of alerting for everybody: prevalence - (1 - prevalence) t / (1 - t).

    Args:
        label: int64 [patients], 0 or 1; at least two patients.
        threshold: between 0 and 1, neither included.
    """
    return mean_estimate(_if_alerted(label, threshold))


def net_benefit_advantage(probability: Floats, label: Labels, threshold: float) -> Estimate:
    """Return the net benefit of the model minus that of the better of treat-all and treat-none (which is 0).

    The error is paired, from each patient's difference. Which of the two is better is decided on the same
    patients and taken as given; the better of two estimates is too high on average, so that near the
    prevalence the advantage is slightly too low, never too high, on average.

    Args:
        probability: float64 [patients].
        label: int64 [patients], 0 or 1; at least two patients.
        threshold: between 0 and 1, neither included.
    """
    model, treat_all = benefit_of_each(probability, label, threshold), _if_alerted(label, threshold)
    return mean_estimate(model - treat_all if treat_all.mean() > 0 else model)


def benefit_of_each(probability: Floats, label: Labels, threshold: float) -> Floats:
    """Return what each patient adds: 1 for an alerted event, -t / (1 - t) for another alert, 0 without one.

    Args:
        probability: float64 [patients].
        label: int64 [patients], 0 or 1.
        threshold: between 0 and 1, neither included.

    Returns:
        float64 [patients]; the mean is the net benefit.
    """
    return np.where(probability >= threshold, _if_alerted(label, threshold), 0.0)


def decision_curve(
    probability: Floats, label: Labels, low: float, high: float, minimum_cell: int, points: int = 11
) -> list[DecisionPoint]:
    """Return the decision curve on a fixed grid, less the thresholds that would give a small count away.

    Net benefit is TP/n - FP/n x t / (1 - t): with n and the totals known, few pairs of whole numbers TP and
    FP fit a published point, also after rounding, and subtraction gives the counts of the patients between
    two thresholds. A threshold is therefore published only when the patients whose risk lies between it and
    the one published before (for the first: below it) are none or hold at least `minimum_cell` events and as
    many non-events, and so do those at or above it. A count of both classes together would not do: 30
    patients between two thresholds, one with an event, give that one event away; and with every risk under
    the first threshold, treat-all alone gives the number of events.

    The grid is `points` evenly spaced thresholds from `low` to `high`, rounded to 4 decimals, and does not
    depend on data. What else is published of the same patients at a threshold off this grid (sensitivity at
    the decision threshold) can still be subtracted: put the decision threshold on the grid.

    Args:
        probability: float64 [patients].
        label: int64 [patients], 0 or 1.
        low, high: the protocol's range of thresholds, 0 < low <= high < 1.
        minimum_cell: smallest count of either class that may be known.
        points: of the grid, at least 2.

    Returns:
        rising thresholds; empty when none may be published.
    """
    published: list[DecisionPoint] = []
    below = -np.inf
    for threshold in np.unique(np.round(np.linspace(low, high, points), 4)):
        t = float(threshold)
        between = label[(probability >= below) & (probability < t)]
        above = label[probability >= t]
        if not (_may_be_known(between, minimum_cell) and _may_be_known(above, minimum_cell)):
            continue
        published.append(
            DecisionPoint(
                threshold=t,
                model=round(float(benefit_of_each(probability, label, t).mean()), 4),
                treat_all=round(float(_if_alerted(label, t).mean()), 4),
            )
        )
        below = t
    return published


def _if_alerted(label: Labels, threshold: float) -> Floats:
    return np.where(label == 1, 1.0, -threshold / (1 - threshold))


def _may_be_known(label: Labels, minimum_cell: int) -> bool:
    events = int(label.sum())
    return len(label) == 0 or min(events, len(label) - events) >= minimum_cell
