"""Which patients are in which group of the protocol's subgroups, and what of a group may be shown.

A group is withheld when it holds fewer than the minimum cell of events or of non-events (primary
suppression). The class totals of the hospital are known, so whatever the counted groups leave over can be
computed by subtraction: the counts of further groups, smallest first, are withheld until the rest is empty
or itself meets the minimum cell (complementary suppression; Hundepool et al., Statistical Disclosure
Control, 2012, ch. 4). Patients in no group (the feature is missing) belong to that rest.

A group without counts still shows metrics, made uninvertible (`uncounted`). What is decided at the threshold
leaves of all groups of a subgroup or of none (`tables_may_leave`): withheld one by one, the last group's
decisions would follow from the hospital's, and the rule by which others are withheld from who is not.
"""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from contracts.evaluation import Estimate
from contracts.gates import MetricName
from contracts.study import CategoricalFeature, StudyProtocol, Subgroup
from validation.disclosure import TABLE_METRICS, rounded

Disclosure = Literal["full", "uncounted", "withheld"]


def group_members(
    subgroup: Subgroup, features: NDArray[np.float32], protocol: StudyProtocol
) -> dict[str, NDArray[np.bool_]]:
    """Return the members of each group by its label: `1` for a level, `<50`, `50-65`, `>=65` for bands.

    Args:
        subgroup: from the protocol.
        features: float32 [patients, F], NaN for missing, in the order of the protocol's features.
        protocol: names the features and their levels.

    Returns:
        label -> bool [patients], disjoint; in the order of levels or edges.
    """
    values = features[:, protocol.feature_names.index(subgroup.feature)]
    feature = next(f for f in protocol.features if f.name == subgroup.feature)
    if isinstance(feature, CategoricalFeature) and not subgroup.edges:
        return {f"{level:g}": values == np.float32(level) for level in feature.levels}
    edges = sorted({np.float32(edge) for edge in subgroup.edges})
    members = {f"<{edges[0]:g}": values < edges[0]}
    for low, high in itertools.pairwise(edges):
        members[f"{low:g}-{high:g}"] = (values >= low) & (values < high)
    members[f">={edges[-1]:g}"] = values >= edges[-1]
    return members


def disclosure(
    members: dict[str, NDArray[np.bool_]], label: NDArray[np.int64], minimum_cell: int
) -> dict[str, Disclosure]:
    """Return what may leave of each group; no withheld count follows from the totals and the full groups.

    Args:
        members: label -> bool [patients], disjoint groups.
        label: int64 [patients], 0 or 1.
        minimum_cell: smallest class total that may leave.
    """
    shown = {g for g, mask in members.items() if _meets(label[mask], minimum_cell)}
    counted = set(shown)
    while counted:
        rest = label[~np.any([members[g] for g in counted], axis=0)]
        if len(rest) == 0 or _meets(rest, minimum_cell):
            break
        counted.remove(min(counted, key=lambda g: (int(members[g].sum()), g)))
    return {g: "full" if g in counted else "uncounted" if g in shown else "withheld" for g in members}


def tables_may_leave(
    members: dict[str, NDArray[np.bool_]],
    alert: NDArray[np.bool_],
    label: NDArray[np.int64],
    level: dict[str, Disclosure],
    minimum_cell: int,
) -> bool:
    """Say whether every group, and who is in none, holds the cell of right and wrong decisions in each class.

    Args:
        members: label -> bool [patients], disjoint groups.
        alert: bool [patients], the decision.
        label: int64 [patients], 0 or 1.
        level: of `disclosure`; a group with patients must be counted.
        minimum_cell: smallest count that may be known.
    """
    outside = ~np.any(list(members.values()), axis=0)
    for group, mask in (*members.items(), ("", outside)):
        if not mask.any():
            continue
        if level.get(group, "full") != "full":
            return False
        cells = [int((mask & (label == c) & (alert == a)).sum()) for c in (0, 1) for a in (False, True)]
        if min(cells) < minimum_cell:
            return False
    return True


def uncounted(metrics: dict[MetricName, Estimate]) -> dict[MetricName, Estimate]:
    """Return the metrics of a group whose counts are withheld: three decimals, and none that gives n away.

    An exact AUROC is a fraction over events x non-events; one of 0 or 1 has an interval that is Wilson's for
    the smaller class; the error of O:E is a function of n and the events alone.
    """
    found: dict[MetricName, Estimate] = {
        name: estimate
        for name, estimate in metrics.items()
        if name not in TABLE_METRICS
        and name != "observed_expected"
        and not (name in ("auroc", "auprc") and round(estimate.value, 3) in (0.0, 1.0))
    }
    return rounded(found, 3)


def differenceable(
    first: dict[str, NDArray[np.bool_]],
    second: dict[str, NDArray[np.bool_]],
    label: NDArray[np.int64],
    minimum_cell: int,
) -> bool:
    """Say whether two partitions by one feature cut out a cell that is too small to be known.

    Bands <65 and <66 differ by the patients of 65: both may be large, their difference small. Every cell of
    the common refinement must be empty or meet the minimum cell.
    """
    for a in first.values():
        for b in second.values():
            cell = label[a & b]
            if len(cell) and not _meets(cell, minimum_cell):
                return True
    return False


def _meets(label: NDArray[np.int64], minimum_cell: int) -> bool:
    events = int(label.sum())
    return min(events, len(label) - events) >= minimum_cell
