"""The model beside its baselines over hospitals: pooled differences, and where they are smallest and best.

Every difference is model minus baseline on the same patients of one hospital. Differences are pooled by
random effects as they are, without a transformation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from contracts.evaluation import Comparison, Estimate, EvaluationReport
from validation.meta_analysis import DIFFERENCE_PRIOR, RandomEffects, random_effects

Difference = Literal["auroc", "net_benefit", "brier"]
DIFFERENCES: tuple[Difference, ...] = get_args(Difference)

# Two models that say the same of every patient differ by exactly 0 with an error of exactly 0. A weight needs
# a variance: of this standard error, far below what any comparison of two models can have.
_EXACT = 1e-4


def comparison_with(report: EvaluationReport, baseline: str) -> Comparison | None:
    """Return a hospital's comparison with a baseline, or None."""
    return next((c for c in report.comparisons if c.baseline == baseline), None)


def site_difference(report: EvaluationReport, baseline: str, name: Difference = "auroc") -> Estimate | None:
    """Return a hospital's difference to a baseline (model minus baseline), or None where it shows none."""
    comparison = comparison_with(report, baseline)
    return None if comparison is None else comparison.differences.get(name)


def difference_point(estimate: Estimate | None) -> tuple[float, float] | None:
    """Return (difference, variance), or None where its error is unknown."""
    if estimate is None or estimate.standard_error is None:
        return None
    if estimate.standard_error == 0 and estimate.value != 0:
        return None
    return estimate.value, max(estimate.standard_error, _EXACT) ** 2


def pooled_difference(
    reports: Sequence[EvaluationReport], baseline: str, name: Difference = "auroc"
) -> RandomEffects | None:
    """Return the mean difference between the model and a baseline over hospitals, by random effects.

    None where no hospital shows it with an error. The mean over hospitals, also of net benefit and Brier:
    each hospital compared two models on its own patients, and with `local` each another one.
    """
    shown = [e for r in reports if (e := site_difference(r, baseline, name)) is not None]
    points = [point for e in shown if (point := difference_point(e)) is not None]
    if not points:
        return None
    effects, variances = [d for d, _ in points], [v for _, v in points]
    if max(variances) <= _EXACT**2:  # the same model everywhere: hospitals cannot differ either
        return RandomEffects(0.0, _EXACT / math.sqrt(len(points)), 0.0, 0.0, len(points))
    return random_effects(effects, variances, DIFFERENCE_PRIOR if name == "auroc" else None)


def worst_difference(reports: Sequence[EvaluationReport], baseline: str) -> str | None:
    """Name the hospital where the AUROC difference to a baseline is smallest; None where none shows one."""
    return _first(reports, lambda r: _value(site_difference(r, baseline)))


def best_baseline(reports: Sequence[EvaluationReport], baseline: str) -> str | None:
    """Name the hospital whose baseline has the highest AUROC (`local`: the best single hospital)."""

    def reached(report: EvaluationReport) -> float | None:
        comparison = comparison_with(report, baseline)
        value = None if comparison is None else _value(comparison.metrics.get("auroc"))
        return None if value is None else -value

    return _first(reports, reached)


def _value(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.value


def _first(
    reports: Sequence[EvaluationReport], key: Callable[[EvaluationReport], float | None]
) -> str | None:
    values = {r.site: v for r in reports if (v := key(r)) is not None}
    return min(values, key=lambda site: (values[site], site)) if values else None
