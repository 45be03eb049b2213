"""The federation's performance from the hospitals' metrics and standard errors; no score is ever moved.

AUROC (on the logit scale), calibration slope and intercept: random-effects meta-analysis with the tau2 of
DerSimonian & Laird (Control Clin Trials 7, 1986) and the interval of Hartung & Knapp (Stat Med 20, 2001) with
its scale not below 1 (Roever et al., BMC Med Res Methodol 15, 2015), so that a few hospitals that happen to
agree do not feign precision. Accuracy is exact: correct decisions and patients are sums. Brier is the mean
over patients. See Debray et al., BMJ 356 (2017), i6460 for meta-analysis of prediction models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from contracts.errors import ConsiliumError
from contracts.evaluation import Estimate, EvaluationReport, MetricName, SubgroupResult
from validation.proportion import Z, wilson

Metrics = dict[MetricName, Estimate]
# What pooling reads: a hospital's report or one group of its subgroups.
Part = EvaluationReport | SubgroupResult


@dataclass(frozen=True)
class RandomEffects:
    """A random-effects mean on the scale it was computed on."""

    mean: float
    standard_error: float
    quantile: float  # of Student's t with sites - 1 degrees of freedom; normal for one site
    tau2: float  # variance between hospitals
    i2: float  # share of the variation that is between hospitals, 0..1
    sites: int


def random_effects(effects: Sequence[float], variances: Sequence[float]) -> RandomEffects:
    """Pool effects with known variances (DerSimonian-Laird, Hartung-Knapp with scale >= 1).

    Args:
        effects: one per hospital, at least one.
        variances: squared standard errors on the same scale, above 0.
    """
    y, v = np.asarray(effects, dtype=float), np.asarray(variances, dtype=float)
    k = len(y)
    w = 1 / v
    fixed = float(np.sum(w * y) / np.sum(w))
    if k == 1:
        return RandomEffects(fixed, math.sqrt(1 / float(w.sum())), Z, 0.0, 0.0, 1)
    q = float(np.sum(w * (y - fixed) ** 2))
    spread = float(np.sum(w) - np.sum(w**2) / np.sum(w))
    tau2 = max(0.0, (q - (k - 1)) / spread)
    i2 = max(0.0, (q - (k - 1)) / q) if q > 0 else 0.0
    w = 1 / (v + tau2)
    mean = float(np.sum(w * y) / np.sum(w))
    scale = max(1.0, float(np.sum(w * (y - mean) ** 2)) / (k - 1))
    error = math.sqrt(scale / float(np.sum(w)))
    return RandomEffects(mean, error, float(student_t.ppf(0.975, k - 1)), tau2, i2, k)


def site_metrics(report: Part) -> Metrics:
    """Return the metrics that a report (or a group of a subgroup) shows."""
    return dict(report.metrics)


def pool(reports: Sequence[Part]) -> Metrics:
    """Return each metric over the hospitals that show it; a metric that none shows is absent.

    Args:
        reports: one per hospital (or the same subgroup's group of each hospital).
    """
    pooled: dict[MetricName, Estimate | None] = {
        "auroc": _pooled_auroc(reports),
        "accuracy": _pooled_accuracy(reports),
        "brier": _pooled_brier(reports),
        "calibration_slope": _pooled_effect(reports, "calibration_slope"),
        "calibration_intercept": _pooled_effect(reports, "calibration_intercept"),
    }
    return {name: estimate for name, estimate in pooled.items() if estimate is not None}


def pool_subgroups(reports: Sequence[EvaluationReport]) -> dict[str, dict[str, Metrics]]:
    """Return the pooled metrics of each subgroup's groups: subgroup -> group -> metrics.

    A group that every hospital withholds has no metrics.
    """
    parts: dict[str, dict[str, list[SubgroupResult]]] = {}
    for report in reports:
        for result in report.subgroups:
            of_group = parts.setdefault(result.subgroup, {}).setdefault(result.group, [])
            if not result.suppressed:
                of_group.append(result)
    return {s: {g: pool(results) for g, results in groups.items()} for s, groups in parts.items()}


def heterogeneity(reports: Sequence[EvaluationReport]) -> dict[str, float] | None:
    """Return how AUROC differs between hospitals, or None with fewer than two that show it.

    tau2 (of the logit), i2 (0..1) and, with three hospitals or more, the 95 % prediction interval for a new
    hospital (Higgins et al., JRSS A 172, 2009: t with hospitals - 2 degrees of freedom).
    """
    points = [point for point in map(_auroc_on_logit, reports) if point is not None]
    if len(points) < 2:
        return None
    pooled = random_effects(*zip(*points, strict=True))
    found = {"sites": float(pooled.sites), "tau2": pooled.tau2, "i2": pooled.i2}
    if pooled.sites >= 3:
        half = float(student_t.ppf(0.975, pooled.sites - 2))
        half *= math.sqrt(pooled.tau2 + pooled.standard_error**2)
        found |= {"new_site_lower": _expit(pooled.mean - half), "new_site_upper": _expit(pooled.mean + half)}
    return found


def metrics_tree(reports: Sequence[EvaluationReport]) -> dict[str, dict[str, Any]]:
    """Return the same metrics under `pooled` and under each hospital's name, ready for JSON.

    Each metric is {value, standard_error, lower, upper} as far as defined. A hospital under the minimum cell
    has `suppressed: true` and the `reason`; the metrics it withholds are absent.

    Raises:
        ConsiliumError: E802, two reports of one hospital, or a hospital named `pooled`.
    """
    names = [report.site for report in reports]
    if len(set(names)) != len(names) or "pooled" in names:
        raise ConsiliumError("E802", f"reports of {', '.join(names)}: expected one each, none named 'pooled'")
    shown = [r for r in reports if not r.suppressed]
    pooled: dict[str, Any] = {
        "sites": len(reports),
        "n": sum(r.n or 0 for r in reports),
        # Over the hospitals that show their class totals only.
        "events": sum(r.events or 0 for r in shown) if shown else None,
        **_plain(pool(reports)),
        "subgroups": {
            subgroup: {group: _plain(metrics) for group, metrics in groups.items()}
            for subgroup, groups in pool_subgroups(reports).items()
        },
    }
    between = heterogeneity(reports)
    if between is not None:
        pooled["heterogeneity"] = between
    if not shown:
        pooled |= {"suppressed": True, "reason": "every hospital is under the minimum cell"}
    return {"pooled": pooled, **{report.site: _site(report) for report in reports}}


def _site(report: EvaluationReport) -> dict[str, Any]:
    tree: dict[str, Any] = {"n": report.n, "events": report.events, **_plain(report.metrics)}
    if report.suppressed:
        reason = (
            "fewer patients than the minimum cell"
            if report.n is None
            else "fewer than twice the minimum cell of patients in one class: accuracy and n only"
        )
        return tree | {"suppressed": True, "reason": reason}
    tree["calibration"] = [b.model_dump() for b in report.calibration]
    groups: dict[str, dict[str, Any]] = {}
    for result in report.subgroups:
        groups.setdefault(result.subgroup, {})[result.group] = (
            {"suppressed": True, "reason": "under the minimum cell"}
            if result.suppressed
            else {"n": result.n, "events": result.events, **_plain(result.metrics)}
        )
    return tree | {"subgroups": groups}


def _plain(metrics: Metrics) -> dict[str, dict[str, float]]:
    return {name: estimate.model_dump(exclude_none=True) for name, estimate in metrics.items()}


def _auroc_on_logit(part: Part) -> tuple[float, float] | None:
    """(logit, variance) of one AUROC, or None where it is not shown or says nothing (constant scores)."""
    estimate = part.metrics.get("auroc")
    if estimate is None or not estimate.standard_error:
        return None
    value = estimate.value
    if 0 < value < 1:
        return math.log(value / (1 - value)), (estimate.standard_error / (value * (1 - value))) ** 2
    if part.n is None or part.events is None:
        return None
    # Separated classes: a proportion of 1 in the smaller class, with half a patient added to each side.
    trials = min(part.events, part.n - part.events)
    sign = 1 if value >= 1 else -1
    return sign * math.log((trials + 0.5) / 0.5), 1 / (trials + 0.5) + 2


def _pooled_auroc(parts: Sequence[Part]) -> Estimate | None:
    points = [point for point in map(_auroc_on_logit, parts) if point is not None]
    if not points:
        return None
    if len(points) == 1:  # as that hospital computed it
        return next(p.metrics["auroc"] for p in parts if _auroc_on_logit(p) is not None)
    pooled = random_effects(*zip(*points, strict=True))
    value = _expit(pooled.mean)
    half = pooled.quantile * pooled.standard_error
    return Estimate(
        value=value,
        standard_error=pooled.standard_error * value * (1 - value),  # delta method
        lower=_expit(pooled.mean - half),
        upper=_expit(pooled.mean + half),
    )


def _pooled_accuracy(parts: Sequence[Part]) -> Estimate | None:
    shown = [(p.metrics["accuracy"], p.n) for p in parts if p.n and "accuracy" in p.metrics]
    if not shown:
        return None
    return wilson(sum(round(e.value * n) for e, n in shown), sum(n for _, n in shown))


def _pooled_brier(parts: Sequence[Part]) -> Estimate | None:
    shown = [(p.metrics["brier"], p.n) for p in parts if p.n and "brier" in p.metrics]
    if not shown:
        return None
    total = sum(n for _, n in shown)
    value = sum(e.value * n for e, n in shown) / total
    error = math.sqrt(sum((n * (e.standard_error or 0.0)) ** 2 for e, n in shown)) / total
    return Estimate(
        value=value,
        standard_error=error,
        lower=max(0.0, value - Z * error),
        upper=min(1.0, value + Z * error),
    )


def _pooled_effect(parts: Sequence[Part], name: MetricName) -> Estimate | None:
    shown = [e for p in parts if (e := p.metrics.get(name)) is not None and e.standard_error]
    if not shown:
        return None
    pooled = random_effects([e.value for e in shown], [(e.standard_error or 0.0) ** 2 for e in shown])
    half = pooled.quantile * pooled.standard_error
    return Estimate(
        value=pooled.mean,
        standard_error=pooled.standard_error,
        lower=pooled.mean - half,
        upper=pooled.mean + half,
    )


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
