"""Calibration of a probability: intercept, slope, O:E, ECE and the merged bins of the calibration plot.

Steyerberg, Clinical Prediction Models (2nd ed. 2019), chapter 15; Van Calster et al., BMC Medicine 17 (2019).
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

from contracts.evaluation import CalibrationBin, Estimate
from validation.proportion import Z, mean_estimate

_MAX_ITERATIONS = 100


def logit(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the log odds; probabilities are kept 1e-7 away from 0 and 1 (float32 cannot tell them apart)."""
    p = np.clip(probability, 1e-7, 1 - 1e-7)
    return np.log(p) - np.log1p(-p)


def calibration_intercept(probability: NDArray[np.float64], label: NDArray[np.int64]) -> Estimate | None:
    """Return calibration-in-the-large: the intercept of a logistic model with the logit as offset.

    0 is perfect; above 0 the model predicts too little risk. None with one class only (no finite estimate).

    Args:
        probability: float64 [patients].
        label: int64 [patients], 0 or 1.
    """
    if label.min() == label.max():
        return None
    fit = _logistic(np.ones((len(label), 1)), logit(probability), label)
    return None if fit is None else _normal(fit[0][0], fit[1][0])


def calibration_slope(probability: NDArray[np.float64], label: NDArray[np.int64]) -> Estimate | None:
    """Return the slope of the logistic recalibration `label ~ a + slope * logit`.

    1 is perfect; below 1 the predictions are too extreme. None where no finite estimate exists: one class
    only, a constant prediction, or classes that the logit separates (Albert & Anderson, Biometrika 71, 1984;
    with one covariate separation is a comparison of ranges).

    Args:
        probability: float64 [patients].
        label: int64 [patients], 0 or 1.
    """
    x = logit(probability)
    positive, negative = x[label == 1], x[label == 0]
    if len(positive) == 0 or len(negative) == 0:
        return None
    if positive.min() >= negative.max() or negative.min() >= positive.max():
        return None
    centre, scale = x.mean(), x.std()
    if scale < 1e-9:
        return None
    fit = _logistic(np.column_stack([np.ones_like(x), (x - centre) / scale]), np.zeros_like(x), label)
    return None if fit is None else _normal(fit[0][1] / scale, fit[1][1] / scale)


def observed_expected(probability: NDArray[np.float64], label: NDArray[np.int64]) -> Estimate | None:
    """Return observed over expected events with a 95 % interval that is symmetric on the log scale.

    1 is perfect; above 1 the model predicts too little risk. The variance of the log is (1 - O/n) / O, the
    expected events taken as given (Debray et al., BMJ 356:i6460, 2017, and Statistical Methods in Medical
    Research 28, 2019). That is the variance of O without a model: it errs on the wide side, the more the
    better the model tells patients apart. The standard error is that of the ratio (delta method).
    None with no event, no non-event, or no expected event: no finite estimate or no error exists.

    Args:
        probability: float64 [patients].
        label: int64 [patients], 0 or 1.
    """
    n, observed, expected = len(label), int(label.sum()), float(probability.sum())
    if observed in (0, n) or expected <= 0:
        return None
    ratio = observed / expected
    error = math.sqrt((1 - observed / n) / observed)
    return Estimate(
        value=ratio,
        standard_error=ratio * error,
        lower=ratio * math.exp(-Z * error),
        upper=ratio * math.exp(Z * error),
    )


def ece(probability: NDArray[np.float64], label: NDArray[np.int64], bins: int = 10) -> Estimate:
    """Return the expected calibration error: the mean over patients of their bin's |observed - predicted|.

    Equal-mass bins: patients sorted by prediction, cut after every n / bins of them; equal predictions stay
    together, so that the bins are a function of the set of patients and some may be larger or missing.
    Naeini, Cooper & Hauskrecht (AAAI 2015).

    It is biased upwards, since noise in a bin never cancels (Roelofs et al., AISTATS 2022): simulated, a
    perfectly calibrated model (logits of mean -1 and standard deviation 1.2, 10 bins) has on average .051
    with 400 patients and .016 with 4,000. The interval is around the biased value: do not read it as a test
    of calibration, and compare values of equal n and bins only.

    The standard error is the infinitesimal jackknife with bins and signs held: with s = sign of observed -
    predicted in the patient's bin, ECE is the mean of s (y - p), and its error that of this mean. It ignores
    that a sign may flip, and is too wide where calibration is near perfect (.021 for a spread of .012 above).

    Args:
        probability: float64 [patients].
        label: int64 [patients], 0 or 1; at least two patients.
        bins: wanted number.
    """
    order = np.argsort(probability, kind="stable")
    p, residual = probability[order], (label - probability)[order]
    # A cut falls after the last patient of its tie.
    wanted = np.round(np.arange(1, bins) * len(p) / bins).astype(np.int64)
    cuts = np.searchsorted(p, p[np.maximum(wanted, 1) - 1], side="right")
    starts = np.unique(np.concatenate([[0], cuts[cuts < len(p)]]))
    size = np.diff(np.append(starts, len(p)))
    sign = np.sign(np.add.reduceat(residual, starts))
    found = mean_estimate(np.repeat(sign, size) * residual)
    if found.lower is None or found.upper is None:
        return found
    return found.model_copy(update={"lower": max(0.0, found.lower), "upper": min(1.0, found.upper)})


def calibration_bins(
    probability: NDArray[np.float64], label: NDArray[np.int64], minimum_cell: int, bins: int = 10
) -> list[CalibrationBin]:
    """Return bins of rising risk, merged until each holds the minimum cell of events and of non-events.

    Patients with equal predictions stay together, so the bins are a function of the set of patients.

    Args:
        probability: float64 [patients].
        label: int64 [patients], 0 or 1.
        minimum_cell: smallest count of either class in a bin.
        bins: wanted number; fewer come out when classes are small, none when a class is below the cell.
    """
    order = np.argsort(probability, kind="stable")
    p, y = probability[order], label[order]
    events = np.cumsum(y)
    size = np.arange(1, len(y) + 1)
    last_of_tie = np.append(p[1:] > p[:-1], True)
    target = max(len(y) / bins, 1)

    cuts: list[int] = []
    start = 0
    for end in (int(i) + 1 for i in np.flatnonzero(last_of_tie)):
        in_bin = int(events[end - 1] - (events[start - 1] if start else 0))
        after = int(events[-1] - events[end - 1])
        enough = min(in_bin, end - start - in_bin) >= minimum_cell
        # What stays behind must make a bin of its own; else this bin runs to the end.
        rest_enough = min(after, int(size[-1]) - end - after) >= minimum_cell
        if enough and end - start >= target and rest_enough:
            cuts.append(end)
            start = end
    remaining = int(y[start:].sum())
    if min(remaining, len(y) - start - remaining) < minimum_cell:
        return []
    edges = [0, *cuts, len(y)]
    return [
        CalibrationBin(
            mean_predicted=float(np.clip(p[a:b].mean(), 0, 1)), observed=float(y[a:b].mean()), n=b - a
        )
        for a, b in itertools.pairwise(edges)
    ]


def _logistic(
    design: NDArray[np.float64], offset: NDArray[np.float64], label: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Maximum likelihood by Newton-Raphson with step halving: (coefficients, standard errors), or None."""
    beta = np.zeros(design.shape[1])
    best = _log_likelihood(design @ beta + offset, label)
    for _ in range(_MAX_ITERATIONS):
        mu = _expit(design @ beta + offset)
        information = design.T @ (design * (mu * (1 - mu))[:, None])
        gradient = design.T @ (label - mu)
        try:
            step = np.linalg.solve(information, gradient)
        except np.linalg.LinAlgError:
            return None
        # A far-off start makes mu(1 - mu) vanish and the Newton step explode.
        step *= min(1.0, 10 / max(float(np.abs(step).max()), 1e-300))
        for halving in range(40):
            trial = beta + step * 0.5**halving
            likelihood = _log_likelihood(design @ trial + offset, label)
            if likelihood >= best - 1e-12 * abs(best):
                break
        else:
            return None
        beta, best = trial, likelihood
        if float(np.abs(step).max()) < 1e-9:
            mu = _expit(design @ beta + offset)
            information = design.T @ (design * (mu * (1 - mu))[:, None])
            try:
                variance = np.diag(np.linalg.inv(information))
            except np.linalg.LinAlgError:
                return None
            if not np.all(np.isfinite(variance)) or np.any(variance <= 0):
                return None
            return beta, np.sqrt(variance)
    return None


def _log_likelihood(eta: NDArray[np.float64], label: NDArray[np.int64]) -> float:
    return float(np.sum(label * eta - np.logaddexp(0, eta)))


def _expit(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(-np.logaddexp(0, -x))


def _normal(value: float, error: float) -> Estimate | None:
    if not (math.isfinite(value) and math.isfinite(error)):
        return None
    return Estimate(
        value=float(value),
        standard_error=float(error),
        lower=float(value - Z * error),
        upper=float(value + Z * error),
    )
