"""What a hospital computes from its own scores on its holdout, reduced to what may leave (design sec. 5).

The rules of what may leave, and why, are at the head of `validation.disclosure`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from contracts.errors import ConsiliumError
from contracts.evaluation import CalibrationBin, DecisionPoint, Estimate, SubgroupResult
from contracts.gates import MetricName
from contracts.study import StudyProtocol, threshold_of
from validation.calibration import (
    calibration_bins,
    calibration_intercept,
    calibration_slope,
    ece,
    observed_expected,
)
from validation.decision_curve import decision_curve
from validation.disclosure import (
    RiskGroups,
    coarse_accuracy,
    every_level_holds,
    has_few_levels,
    levels_may_be_known,
    rounded,
    rounded_estimate,
    shown_table,
    table_metrics,
)
from validation.discrimination import auprc, auroc
from validation.proportion import brier
from validation.subgroups import (
    Disclosure,
    differenceable,
    disclosure,
    group_members,
    tables_may_leave,
    uncounted,
)

Floats = NDArray[np.float64]
Features = NDArray[np.float32]
Labels = NDArray[np.int64]
Metrics = dict[MetricName, Estimate]

ECE_BINS = 10
_MOST_BINS = 20  # of the contract


def evaluate(
    probability: ArrayLike,
    label: ArrayLike,
    features: ArrayLike,
    protocol: StudyProtocol,
    minimum_cell: int,
    threshold: float | None = None,
) -> dict[str, Any]:
    """Return the data-dependent fields of an `EvaluationReport`.

    - fewer patients than the minimum cell: nothing but `suppressed`;
    - fewer events or non-events than twice the minimum cell: n, and the accuracy as a range;
    - else every metric that can be estimated (one that cannot is absent), the decision curve if the protocol
      declares one, merged calibration bins, and subgroups.

    Args:
        probability: float [patients], the model's probability of the positive class.
        label: [patients], 0 or 1.
        features: float [patients, F], raw units, NaN for missing: the subgroups are made from it.
        protocol: threshold, subgroups and the range of net benefit.
        minimum_cell: the larger of the protocol's and the site's own.
        threshold: the locked one, where the protocol has a rule instead of a number.

    Returns:
        n, events, metrics, suppressed, calibration, decision_curve, subgroups.

    Raises:
        ConsiliumError: E426, no threshold is locked; E604, shapes differ, a probability is not in [0, 1] or a
            label not 0 or 1.
    """
    p, y, x = _checked(probability, label, features, protocol)
    cut = threshold_of(protocol, threshold)
    withheld = nothing()
    if len(y) < minimum_cell:
        return withheld
    if not class_totals_may_leave(y, minimum_cell):
        accuracy = rounded_estimate(coarse_accuracy(p, y, cut, minimum_cell))
        return withheld | {"n": len(y), "metrics": {"accuracy": accuracy}}
    found = withheld | {
        "n": len(y),
        "events": int(y.sum()),
        "metrics": shown_metrics(p, y, cut, minimum_cell),
        "suppressed": False,
        "subgroups": _subgroups(p, y, x, protocol, minimum_cell, cut),
    }
    if levels_may_be_known(p, y, minimum_cell):
        groups = RiskGroups(p, y, minimum_cell)
        table = shown_table(p, y, cut, minimum_cell)
        exact = [c for c, (low, high) in ((1, table.true_alerts), (0, table.false_alerts)) if low == high]
        groups.split(cut, tuple(exact))
        found["decision_curve"] = _curve(p, y, protocol, groups)
        found["calibration"] = _bins(p, y, groups)
    return found


def nothing() -> dict[str, Any]:
    """The data-dependent fields of a report that says nothing."""
    return {
        "n": None,
        "events": None,
        "metrics": {},
        "suppressed": True,
        "calibration": [],
        "decision_curve": [],
        "subgroups": [],
    }


def class_totals_may_leave(label: Labels, minimum_cell: int) -> bool:
    """Say whether a holdout has at least twice the minimum cell of either class."""
    events = int(label.sum())
    return min(events, len(label) - events) >= 2 * minimum_cell


def shown_metrics(probability: Floats, label: Labels, threshold: float, minimum_cell: int) -> Metrics:
    """Return a score's metrics on patients whose class totals may leave, as they may leave."""
    table = table_metrics(shown_table(probability, label, threshold, minimum_cell), threshold)
    if not levels_may_be_known(probability, label, minimum_cell):
        return rounded(table)
    return rounded(table | score_metrics(probability, label))


def score_metrics(probability: Floats, label: Labels) -> Metrics:
    """Return the metrics that need no threshold, as far as these patients (two of each class) give them."""
    metrics: dict[MetricName, Estimate | None] = {
        "auroc": auroc(probability, label),
        "auprc": auprc(probability, label),
        "brier": brier(probability, label),
        "ece": ece(probability, label, ECE_BINS),
        "calibration_slope": calibration_slope(probability, label),
        "calibration_intercept": calibration_intercept(probability, label),
        "observed_expected": observed_expected(probability, label),
    }
    return {name: estimate for name, estimate in metrics.items() if estimate is not None}


def _curve(p: Floats, y: Labels, protocol: StudyProtocol, groups: RiskGroups) -> list[DecisionPoint]:
    """The decision curve at those thresholds of its fixed grid that split the patients into groups."""
    planned = protocol.validation.net_benefit
    if planned is None:
        return []
    every = decision_curve(p, y, planned.low, planned.high)
    return [point for point in every if groups.split(point.threshold)]


def _bins(p: Floats, y: Labels, groups: RiskGroups) -> list[CalibrationBin]:
    """The calibration bins: groups of the partition that the table and the curve are made of, cut further."""
    ordered, start = np.sort(p), 0
    for bin_ in calibration_bins(p, y, groups.cell)[:-1]:
        start += bin_.n
        if len(groups.common) < _MOST_BINS - 1:
            groups.split(float(ordered[start]))
    bins = []
    of = np.searchsorted(groups.common, p, side="right")  # an edge belongs to the group above it
    for i in range(len(groups.common) + 1):
        inside = of == i
        bins.append(
            CalibrationBin(
                mean_predicted=round(float(np.clip(p[inside].mean(), 0, 1)), 4),
                observed=round(float(y[inside].mean()), 4),
                n=int(inside.sum()),
            )
        )
    return bins


def _subgroups(
    p: Floats, y: Labels, x: Features, protocol: StudyProtocol, minimum_cell: int, threshold: float
) -> list[SubgroupResult]:
    results: list[SubgroupResult] = []
    earlier: dict[str, list[dict[str, NDArray[np.bool_]]]] = {}
    for subgroup in protocol.subgroups:
        members = group_members(subgroup, x, protocol)
        before = earlier.setdefault(subgroup.feature, [])
        tables = ranks = False
        if any(differenceable(other, members, y, minimum_cell) for other in before):
            level: dict[str, Disclosure] = dict.fromkeys(members, "withheld")
        else:
            level = disclosure(members, y, minimum_cell)
            # A second partition by one feature could be subtracted from the first, decision by decision.
            tables = not before and tables_may_leave(members, p >= threshold, y, level, minimum_cell)
            ranks = not has_few_levels(p) or all(
                every_level_holds(p[mask], y[mask], minimum_cell) for mask in _everybody(members)
            )
            before.append(members)
        for group, mask in members.items():
            metrics: Metrics = {}
            full = level[group] == "full"
            if level[group] != "withheld":
                if ranks:
                    metrics |= score_metrics(p[mask], y[mask])
                if full and tables:
                    metrics |= table_metrics(
                        shown_table(p[mask], y[mask], threshold, minimum_cell), threshold
                    )
            results.append(
                SubgroupResult(
                    subgroup=subgroup.name,
                    group=group,
                    suppressed=level[group] == "withheld",
                    n=int(mask.sum()) if full else None,
                    events=int(y[mask].sum()) if full else None,
                    metrics=rounded(metrics) if full else uncounted(metrics),
                )
            )
    return results


def _everybody(members: dict[str, NDArray[np.bool_]]) -> list[NDArray[np.bool_]]:
    """The groups, and the patients who are in none."""
    masks = list(members.values())
    return [*masks, ~np.any(masks, axis=0)]


def _checked(
    probability: ArrayLike, label: ArrayLike, features: ArrayLike, protocol: StudyProtocol
) -> tuple[Floats, Labels, Features]:
    p = np.asarray(probability, dtype=np.float64).reshape(-1)
    raw = np.asarray(label, dtype=np.float64).reshape(-1)
    # float32 values against float64 edges: 0.7f < 0.7 would put a patient in the wrong band.
    x = np.asarray(features, dtype=np.float32)  # as the model and its range check see it
    if len(p) != len(raw) or x.shape != (len(p), len(protocol.features)):
        raise ConsiliumError(
            "E604",
            f"probability {p.shape}, label {raw.shape}, features {x.shape}; "
            f"expected [n], [n], [n, {len(protocol.features)}]",
        )
    if not np.all((p >= 0) & (p <= 1)):
        raise ConsiliumError("E604", "a probability is not a number in [0, 1]")
    if not np.all((raw == 0) | (raw == 1)):
        raise ConsiliumError("E604", "a label is neither 0 nor 1")
    return p, raw.astype(np.int64), x
