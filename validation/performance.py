"""What a hospital computes from its own scores on its holdout, reduced to what may leave (design sec. 5)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from contracts.errors import ConsiliumError
from contracts.evaluation import Estimate, MetricName, SubgroupResult
from contracts.study import StudyProtocol, threshold_of
from validation.calibration import calibration_bins, calibration_intercept, calibration_slope
from validation.discrimination import auroc
from validation.proportion import brier, wilson
from validation.subgroups import Disclosure, differenceable, disclosure, group_members, rounded

Floats = NDArray[np.float64]
Features = NDArray[np.float32]
Labels = NDArray[np.int64]


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
    - fewer events or non-events than twice the minimum cell: accuracy and n only;
    - else every metric that can be estimated (one that cannot is absent), merged calibration bins, subgroups.

    Args:
        probability: float [patients], the model's probability of the positive class.
        label: [patients], 0 or 1.
        features: float [patients, F], raw units, NaN for missing: the subgroups are made from it.
        protocol: threshold and subgroups.
        minimum_cell: the larger of the protocol's and the site's own.
        threshold: the locked one, where the protocol has a rule instead of a number.

    Returns:
        n, events, metrics, suppressed, calibration, subgroups.

    Raises:
        ConsiliumError: E426, no threshold is locked; E604, shapes differ, a probability is not in [0, 1] or a
            label not 0 or 1.
    """
    p, y, x = _checked(probability, label, features, protocol)
    n, events = len(y), int(y.sum())
    cut = threshold_of(protocol, threshold)
    withheld: dict[str, Any] = {
        "n": None,
        "events": None,
        "metrics": {},
        "suppressed": True,
        "calibration": [],
        "subgroups": [],
    }
    if n < minimum_cell:
        return withheld
    if min(events, n - events) < 2 * minimum_cell:
        return withheld | {"n": n, "metrics": {"accuracy": accuracy(p, y, cut)}}
    return {
        "n": n,
        "events": events,
        "metrics": all_metrics(p, y, cut),
        "suppressed": False,
        "calibration": calibration_bins(p, y, minimum_cell),
        "subgroups": _subgroups(p, y, x, protocol, minimum_cell, cut),
    }


def accuracy(probability: Floats, label: Labels, threshold: float) -> Estimate:
    """Return the share of right decisions at `threshold` (positive when probability >= threshold)."""
    return wilson(int(((probability >= threshold) == (label == 1)).sum()), len(label))


def all_metrics(probability: Floats, label: Labels, threshold: float) -> dict[MetricName, Estimate]:
    """Return every metric that these patients (at least two of each class) can estimate."""
    metrics: dict[MetricName, Estimate | None] = {
        "auroc": auroc(probability, label),
        "accuracy": accuracy(probability, label, threshold),
        "brier": brier(probability, label),
        "calibration_slope": calibration_slope(probability, label),
        "calibration_intercept": calibration_intercept(probability, label),
    }
    return {name: estimate for name, estimate in metrics.items() if estimate is not None}


def _subgroups(
    p: Floats, y: Labels, x: Features, protocol: StudyProtocol, minimum_cell: int, threshold: float
) -> list[SubgroupResult]:
    results: list[SubgroupResult] = []
    earlier: dict[str, list[dict[str, NDArray[np.bool_]]]] = {}
    for subgroup in protocol.subgroups:
        members = group_members(subgroup, x, protocol)
        before = earlier.setdefault(subgroup.feature, [])
        if any(differenceable(other, members, y, minimum_cell) for other in before):
            level: dict[str, Disclosure] = dict.fromkeys(members, "withheld")
        else:
            level = disclosure(members, y, minimum_cell)
            before.append(members)
        for group, mask in members.items():
            metrics: dict[MetricName, Estimate] = {}
            if level[group] != "withheld":
                metrics = all_metrics(p[mask], y[mask], threshold)
            full = level[group] == "full"
            results.append(
                SubgroupResult(
                    subgroup=subgroup.name,
                    group=group,
                    suppressed=level[group] == "withheld",
                    n=int(mask.sum()) if full else None,
                    events=int(y[mask].sum()) if full else None,
                    metrics=metrics if full else rounded(metrics),
                )
            )
    return results


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
