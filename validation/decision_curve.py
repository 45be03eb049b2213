"""Net benefit of deciding by a model, and the decision curve.

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

import numpy as np
from numpy.typing import NDArray

from contracts.evaluation import DecisionPoint, Estimate
from validation.proportion import mean_estimate

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


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
    probability: Floats, label: Labels, low: float, high: float, points: int = 11
) -> list[DecisionPoint]:
    """Return the decision curve on its fixed grid; `validation.disclosure` says what may leave.

    The grid is `points` evenly spaced thresholds from `low` to `high`, rounded to 4 decimals, and does not
    depend on data.

    Args:
        probability: float64 [patients].
        label: int64 [patients], 0 or 1.
        low, high: the protocol's range of thresholds, 0 < low <= high < 1.
        points: of the grid, at least 2.

    Returns:
        rising thresholds.
    """
    return [
        DecisionPoint(
            threshold=t,
            model=round(float(benefit_of_each(probability, label, t).mean()), 4) + 0.0,
            treat_all=round(float(_if_alerted(label, t).mean()), 4) + 0.0,
        )
        for t in np.unique(np.round(np.linspace(low, high, points), 4)).tolist()
    ]


def _if_alerted(label: Labels, threshold: float) -> Floats:
    return np.where(label == 1, 1.0, -threshold / (1 - threshold))
