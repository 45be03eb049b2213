"""On which scale each metric is pooled, and the way there and back.

C-statistics are near normal between hospitals on the logit scale, observed / expected on the log scale,
calibration slope and intercept as they are (Snell et al., Stat Methods Med Res 27, 2018, 3505). Proportions
and the area under the precision-recall curve (Boyd et al., ECML 2013) go by the logit too.
"""

from __future__ import annotations

import math
from typing import Literal

from contracts.evaluation import Estimate
from contracts.gates import MetricName
from validation.meta_analysis import (
    AUROC_PRIOR,
    ODDS_PRIOR,
    RATIO_PRIOR,
    SLOPE_PRIOR,
    HalfNormal,
    RandomEffects,
)
from validation.proportion import Z

Scale = Literal["logit", "log", "identity"]

SCALES: dict[MetricName, Scale] = {
    "auroc": "logit",
    "auprc": "logit",
    "sensitivity": "logit",
    "specificity": "logit",
    "ppv": "logit",
    "npv": "logit",
    "alert_rate": "logit",
    "calibration_slope": "identity",
    "calibration_intercept": "identity",
    "observed_expected": "log",
}

# How much hospitals may differ, for a few of them: of AUROC counted, of the others weakly informative.
PRIORS: dict[MetricName, HalfNormal] = {
    "auroc": AUROC_PRIOR,
    "auprc": ODDS_PRIOR,
    "sensitivity": ODDS_PRIOR,
    "specificity": ODDS_PRIOR,
    "ppv": ODDS_PRIOR,
    "npv": ODDS_PRIOR,
    "alert_rate": ODDS_PRIOR,
    "calibration_slope": SLOPE_PRIOR,
    "calibration_intercept": ODDS_PRIOR,
    "observed_expected": RATIO_PRIOR,
}


def to_scale(estimate: Estimate, scale: Scale) -> tuple[float, float] | None:
    """Return (effect, variance) on the scale, or None where the estimate says nothing of its error.

    A proportion or AUROC of exactly 0 or 1 has a standard error of no use. Its interval is Wilson's for so
    many trials, which gives these back; half a success and half a failure are then added.
    """
    value, error = estimate.value, estimate.standard_error
    if scale == "logit" and value in (0.0, 1.0):
        return _at_the_edge(estimate)
    if not error:
        return None
    if scale == "identity":
        return value, error**2
    if scale == "log":
        return (math.log(value), (error / value) ** 2) if value > 0 else None
    if not 0 < value < 1:
        return None
    return math.log(value / (1 - value)), (error / (value * (1 - value))) ** 2


def _at_the_edge(estimate: Estimate) -> tuple[float, float] | None:
    inner = estimate.lower if estimate.value == 1 else estimate.upper
    share = inner if estimate.value == 1 else None if inner is None else 1 - inner
    if share is None or not 0 < share < 1:
        return None
    trials = Z**2 * share / (1 - share)  # Wilson's lower end at n of n is n / (n + z^2)
    sign = 1 if estimate.value == 1 else -1
    return sign * math.log((trials + 0.5) / 0.5), 1 / (trials + 0.5) + 2


def from_scale(x: float, scale: Scale) -> float:
    """Return the value of a point on the scale."""
    if scale == "identity":
        return x
    if scale == "log":
        return math.exp(x)
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def estimate_of(pooled: RandomEffects, scale: Scale) -> Estimate:
    """Return a pooled effect as an estimate of the metric; its standard error by the delta method."""
    value = from_scale(pooled.mean, scale)
    slope = {"identity": 1.0, "log": value, "logit": value * (1 - value)}[scale]
    lower, upper = (from_scale(end, scale) for end in pooled.interval())
    return Estimate(value=value, standard_error=pooled.standard_error * slope, lower=lower, upper=upper)
