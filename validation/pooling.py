"""The federation's performance from the hospitals' metrics and standard errors; no score is ever moved.

How each metric is pooled:

- `accuracy`: correct decisions and patients are sums over the hospitals; Wilson's interval. Exact where every
  hospital tells its count; where one tells a range (`validation.disclosure`) the value takes the fewest right
  decisions and the interval covers all of the range.
- `auroc`, `auprc`, `sensitivity`, `specificity`, `ppv`, `npv`, `alert_rate` (logit), `observed_expected`
  (log), `calibration_slope`, `calibration_intercept`: the mean over hospitals by random effects
  (validation.meta_analysis, validation.effect_scale). A rate is a property of a hospital here, not of the sum
  of all patients, so that its interval holds how hospitals differ.
- `brier`, `ece`, `net_benefit`: the mean over patients. For Brier that is the value of all patients together;
  for ECE an upper bound of it, since misses of opposite sign at two hospitals do not cancel. Net benefit is
  a mean over patients itself (Vickers & Elkin, Med Decis Making 26, 2006), but what is pooled is the
  advantage over the better of treating all and none *at each hospital*: never more than the advantage over
  one such policy for all patients together, and less where hospitals lie on different sides of the threshold.

A count of decisions under the minimum cell leaves a hospital as a range, of which the estimate is the worst:
so rates at the threshold and net benefit are pooled too low (alert rate: too high), by up to
(cell - 1) / events at such a hospital. A floor is never passed because of it; a ceiling may be, except on the
alert rate.

See Debray et al., BMJ 356 (2017), i6460 for meta-analysis of prediction models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from contracts.errors import ConsiliumError
from contracts.evaluation import CalibrationBin, Estimate, EvaluationReport, SubgroupResult
from contracts.gates import MetricName
from validation.differences import (
    DIFFERENCES,
    best_baseline,
    comparison_with,
    pooled_difference,
    site_difference,
    worst_difference,
)
from validation.disclosure import covering
from validation.effect_scale import PRIORS, SCALES, Scale, estimate_of, from_scale, to_scale
from validation.meta_analysis import RandomEffects, random_effects
from validation.proportion import Z, wilson

Metrics = dict[MetricName, Estimate]
# What pooling reads: a hospital's report or one group of its subgroups.
Part = EvaluationReport | SubgroupResult

# Means over patients, with the range they cannot leave.
PATIENT_MEANS: dict[MetricName, tuple[float, float]] = {
    "brier": (0.0, 1.0),
    "ece": (0.0, 1.0),
    "net_benefit": (-math.inf, 1.0),
}


def pool(reports: Sequence[Part]) -> Metrics:
    """Return each metric over the hospitals that show it with an error; one that none shows is absent.

    Args:
        reports: one per hospital (or the same subgroup's group of each hospital).
    """
    names: tuple[MetricName, ...] = get_args(MetricName)
    found = {name: _pooled(reports, name) for name in names}
    return {name: estimate for name, estimate in found.items() if estimate is not None}


def unpoolable(reports: Sequence[EvaluationReport], name: MetricName) -> list[str]:
    """Name the hospitals that show a metric which still cannot enter the pool: it has no error (or no n)."""
    shown = [r for r in reports if name in r.metrics]
    return [r.site for r in shown if _pooled([r], name) is None]


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


def heterogeneity(reports: Sequence[EvaluationReport]) -> dict[str, dict[str, float | str | None]]:
    """Return how AUROC and O/E differ between hospitals, and where a new hospital's would lie.

    Returns:
        `auroc`, `observed_expected` -> sites, tau2 (on the logit or log scale), i2 (0..1), new_site_lower and
        new_site_upper (95 % prediction interval, on the metric's own scale), prior (text, or None). A metric
        that fewer than two hospitals show is absent.
    """
    found: dict[str, dict[str, float | str | None]] = {}
    names: tuple[MetricName, ...] = ("auroc", "observed_expected")
    for name in names:
        pooled = pooled_effect(reports, name)
        if pooled is None or pooled.sites < 2:
            continue
        new = pooled.new_site()
        assert new is not None  # both have a prior for few hospitals
        found[name] = {
            "sites": pooled.sites,
            "tau2": pooled.tau2,
            "i2": pooled.i2,
            "new_site_lower": from_scale(new[0], SCALES[name]),
            "new_site_upper": from_scale(new[1], SCALES[name]),
            "prior": None if pooled.prior is None else pooled.prior.text,
        }
    return found


def pooled_effect(parts: Sequence[Part], name: MetricName) -> RandomEffects | None:
    """Return a metric's random-effects mean on its scale; None where no hospital shows it with an error."""
    points = [point for p in parts if (point := _point(p, name, SCALES[name])) is not None]
    return random_effects([x for x, _ in points], [v for _, v in points], PRIORS[name]) if points else None


def _pooled(parts: Sequence[Part], name: MetricName) -> Estimate | None:
    if name == "accuracy":
        return _accuracy(parts)
    if name in PATIENT_MEANS:
        return _patient_mean(parts, name)
    scale = SCALES[name]
    shown = [p for p in parts if _point(p, name, scale) is not None]
    if len(shown) == 1:  # as that hospital computed it
        return shown[0].metrics[name]
    pooled = pooled_effect(shown, name)
    return None if pooled is None else estimate_of(pooled, scale)


def _point(part: Part, name: MetricName, scale: Scale) -> tuple[float, float] | None:
    estimate = part.metrics.get(name)
    return None if estimate is None else to_scale(estimate, scale)


def _accuracy(parts: Sequence[Part]) -> Estimate | None:
    shown = [(p.metrics["accuracy"], p.n) for p in parts if p.n and "accuracy" in p.metrics]
    if not shown:
        return None
    counts, patients = [_right(e, n) for e, n in shown], sum(n for _, n in shown)
    worst = wilson(sum(least for least, _ in counts), patients)
    if not any(e.at_worst for e, _ in shown):
        return worst
    upper = wilson(sum(most for _, most in counts), patients).upper
    assert worst.lower is not None and upper is not None
    return covering(worst.value, worst.lower, upper)


def _right(accuracy: Estimate, n: int) -> tuple[int, int]:
    """Least and most right decisions that a hospital's accuracy tells: equal unless it is a range.

    The end of Wilson's interval gives its count back: (U - p)^2 = z^2 U (1 - U) / n.
    """
    least, end = round(accuracy.value * n), accuracy.upper
    if not accuracy.at_worst or end is None:
        return least, least
    most = n if end >= 1 else round(n * (end - Z * math.sqrt(end * (1 - end) / n)))
    return least, min(max(least, most), n)


def _patient_mean(parts: Sequence[Part], name: MetricName) -> Estimate | None:
    """Mean over patients; without an interval where a hospital's error is unknown."""
    shown = [(p.metrics[name], p.n) for p in parts if p.n and name in p.metrics]
    if not shown:
        return None
    total = sum(n for _, n in shown)
    value = sum(e.value * n for e, n in shown) / total
    errors = [n * e.standard_error for e, n in shown if e.standard_error is not None]
    if len(errors) < len(shown):
        return Estimate(value=value)
    error = math.hypot(*errors) / total
    low, high = PATIENT_MEANS[name]
    return Estimate(
        value=value,
        standard_error=error,
        lower=max(low, value - Z * error),
        upper=min(high, value + Z * error),
    )


def metrics_tree(reports: Sequence[EvaluationReport]) -> dict[str, dict[str, Any]]:
    """Return the same metrics under `pooled` and under each hospital's name, ready for JSON.

    Each metric is {value, standard_error, lower, upper} as far as defined.

    - `pooled`: sites, n, events, the metrics, `subgroups`; `heterogeneity` (see `heterogeneity`; absent
      below two hospitals); `comparisons`: baseline -> sites, the pooled differences, `worst_site` with its
      difference `worst_auroc`, `best_baseline` {site, auroc of the baseline there, difference to it};
      `decision_curve` [{threshold, model, treat_all, n}], the mean over patients at the thresholds that
      every hospital with a curve publishes.
    - each hospital: n, events, the metrics, `calibration`, `roc` [[false, true positive rate], ...] rising,
      from the calibration's bins, `decision_curve`, `comparisons`: baseline -> {metrics, differences},
      `subgroups`. Under the minimum cell: `suppressed: true` and the `reason`; what it withholds is absent.

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
        "comparisons": _comparisons(reports),
        "decision_curve": _decision_curve(shown),
    }
    between = heterogeneity(reports)
    if between:
        pooled["heterogeneity"] = between
    if not shown:
        pooled |= {"suppressed": True, "reason": "every hospital is under the minimum cell"}
    return {"pooled": pooled, **{report.site: _site(report) for report in reports}}


def _comparisons(reports: Sequence[EvaluationReport]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for baseline in sorted({c.baseline for r in reports for c in r.comparisons}):
        tree: dict[str, Any] = {
            "sites": sum(site_difference(r, baseline) is not None for r in reports),
            **{
                name: estimate_of(pooled, "identity").model_dump(exclude_none=True)
                for name in DIFFERENCES
                if (pooled := pooled_difference(reports, baseline, name)) is not None
            },
        }
        by_site = {r.site: r for r in reports}
        worst, best = worst_difference(reports, baseline), best_baseline(reports, baseline)
        if worst is not None:
            tree |= {"worst_site": worst, "worst_auroc": _difference_at(by_site[worst], baseline)}
        if best is not None:
            comparison = comparison_with(by_site[best], baseline)
            assert comparison is not None
            tree["best_baseline"] = {
                "site": best,
                "auroc": comparison.metrics["auroc"].model_dump(exclude_none=True),
                "difference": _difference_at(by_site[best], baseline),
            }
        found[baseline] = tree
    return found


def _difference_at(report: EvaluationReport, baseline: str) -> dict[str, float] | None:
    estimate = site_difference(report, baseline)
    return None if estimate is None else estimate.model_dump(exclude_none=True)


def _decision_curve(shown: Sequence[EvaluationReport]) -> list[dict[str, float]]:
    curves = [(r.n, {p.threshold: p for p in r.decision_curve}) for r in shown if r.n and r.decision_curve]
    if not curves:
        return []
    total = sum(n for n, _ in curves)
    return [
        {
            "threshold": threshold,
            "model": sum(n * curve[threshold].model for n, curve in curves) / total,
            "treat_all": sum(n * curve[threshold].treat_all for n, curve in curves) / total,
            "n": total,
        }
        for threshold in sorted(set.intersection(*(set(curve) for _, curve in curves)))
    ]


def roc_points(bins: Sequence[CalibrationBin]) -> list[list[float]]:
    """Return the ROC curve at the edges of the calibration's bins: [false, true positive rate], rising.

    Args:
        bins: in the order of rising risk.
    """
    events = [round(b.observed * b.n) for b in bins]
    positive, negative = sum(events), sum(b.n for b in bins) - sum(events)
    if not positive or not negative:
        return []
    points, true, false = [[0.0, 0.0]], 0, 0
    for each, in_bin in zip(reversed(bins), reversed(events), strict=True):
        true, false = true + in_bin, false + each.n - in_bin
        points.append([false / negative, true / positive])
    return points


def _site(report: EvaluationReport) -> dict[str, Any]:
    tree: dict[str, Any] = {"n": report.n, "events": report.events, **_plain(report.metrics)}
    if report.suppressed:
        reason = (
            "fewer patients than the minimum cell"
            if report.n is None
            else "fewer than twice the minimum cell of patients in one class: accuracy and n only"
        )
        return tree | {"suppressed": True, "reason": reason}
    groups: dict[str, dict[str, Any]] = {}
    for result in report.subgroups:
        groups.setdefault(result.subgroup, {})[result.group] = (
            {"suppressed": True, "reason": "under the minimum cell"}
            if result.suppressed
            else {"n": result.n, "events": result.events, **_plain(result.metrics)}
        )
    return tree | {
        "calibration": [b.model_dump() for b in report.calibration],
        "roc": roc_points(report.calibration),
        "decision_curve": [p.model_dump() for p in report.decision_curve],
        "comparisons": {
            c.baseline: {"metrics": _plain(c.metrics), "differences": _plain(c.differences)}
            for c in report.comparisons
        },
        "subgroups": groups,
    }


def _plain(metrics: Mapping[Any, Estimate]) -> dict[str, dict[str, float]]:
    return {name: estimate.model_dump(exclude_none=True) for name, estimate in metrics.items()}
