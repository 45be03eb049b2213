"""What the numbers of a holdout give away, and the form in which they may leave a hospital.

Sensitivity x events, ppv, alert rate x n and a net benefit are exact counts of patients. Who knows all but
one of the patients reads the last one's outcome from a count that is too small; so no count under the
minimum cell may be told apart from its neighbours, 0 included. The rules follow from one principle: publish
functions of few safe counts (Hundepool et al., Statistical Disclosure Control, 2012, ch. 4).

1. **One table at the decision threshold.** Sensitivity, specificity, ppv, npv, alert rate, accuracy and net
   benefit are computed from a `Table`, in which a row (events; non-events) with a count under the cell is a
   range: "0 to cell - 1 missed". The value is then the worst of the range (gates fail closed), the interval
   covers all of it, and all seven are functions of what the ranges say. To withhold them would cost a small
   hospital every gate on sensitivity, and would drop the hospitals that miss fewest from the pooled value.
2. **One partition by risk.** The calibration bins, the decision curve and the table are sums over the groups
   of one partition (`RiskGroups`) in which every group holds the cell of events and of non-events:
   subtracting any of them from any other gives groups again, never a few patients. Points of an ROC curve
   follow from the bins.
3. **Few levels.** A score of at most `FEW_LEVELS` different values is a table itself, and exact AUROC, Brier
   or ECE solve for it: they leave only where every level holds the cell of either class.
4. **Four decimals.** Scores of more levels are protected by there being too many tables that fit.
5. **Two scores** that differ on a few patients only single these out (`singles_out`): no comparison. Where
   all that one alerts for the other does as well, their difference is the count of a group (`nested`).
6. **A hospital that shows no class totals** gives its accuracy as a range too: when nobody is alerted, an
   exact one is 1 - prevalence, and the events follow.

This is suppression, not differential privacy: it holds for honest models against whoever reads all reports
of a study. A model, baseline or export made to mark one patient is answered once (E605) and not otherwise
prevented: a baseline that differs from the model on this patient alone is compared where the patient is not
there (no difference) and not compared where it is, and the bit on an export's agreement says the same.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from contracts.evaluation import Estimate
from contracts.gates import MetricName
from validation.decision_curve import net_benefit_advantage
from validation.operating_point import operating_point
from validation.proportion import Z, wilson

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Counts = tuple[int, int]  # least and most that a count may be; equal where it is known

TABLE_METRICS: frozenset[MetricName] = frozenset(
    ("sensitivity", "specificity", "ppv", "npv", "alert_rate", "accuracy", "net_benefit")
)
FEW_LEVELS = 10
DECIMALS = 4


@dataclass(frozen=True)
class Table:
    """What may be known of the decisions at a threshold: counts, or ranges of counts."""

    events: int
    others: int
    true_alerts: Counts
    false_alerts: Counts


def shown_table(probability: Floats, label: Labels, threshold: float, minimum_cell: int) -> Table:
    """Return the two-by-two table at `threshold`, its rows with a count under the cell as ranges.

    Args:
        probability: float64 [patients]; an alert is probability >= threshold.
        label: int64 [patients], 0 or 1; at least twice the cell of either.
        threshold: of the protocol.
        minimum_cell: smallest count that may be known.
    """
    alert, event = probability >= threshold, label == 1
    events, others = int(event.sum()), int((~event).sum())
    return Table(
        events,
        others,
        _shown(int((alert & event).sum()), events, minimum_cell),
        _shown(int((alert & ~event).sum()), others, minimum_cell),
    )


def _shown(hits: int, total: int, cell: int) -> Counts:
    if total < 2 * cell:
        return 0, total
    if hits < cell:
        return 0, cell - 1
    if total - hits < cell:
        return total - cell + 1, total
    return hits, hits


def table_metrics(table: Table, threshold: float | None) -> dict[MetricName, Estimate]:
    """Return the metrics at the threshold, as functions of what `table` tells and of nothing else.

    With ranges: the value is that of the worst table (most missed events, most needless alerts; the largest
    alert rate), the interval goes from the lowest to the highest end over the tables, and the standard error
    is its width over twice the normal quantile. A metric that some table leaves undefined is absent.

    Args:
        table: of `shown_table`.
        threshold: for net benefit, which is left out when it is None.
    """
    low, high = table.true_alerts
    few, many = table.false_alerts
    corners = {(t, f): _at(table, t, f, threshold) for t, f in itertools.product({low, high}, {few, many})}
    found: dict[MetricName, Estimate] = {}
    for name, worst in corners[low, many].items():
        if name == "alert_rate":
            worst = corners[high, many][name]
        of_each = [corner.get(name) for corner in corners.values()]
        if len(corners) == 1:
            found[name] = worst
        elif all(e is not None and e.lower is not None and e.upper is not None for e in of_each):
            lower = min(e.lower for e in of_each if e is not None and e.lower is not None)
            upper = max(e.upper for e in of_each if e is not None and e.upper is not None)
            found[name] = covering(worst.value, lower, upper)
    return found


def best_net_benefit(table: Table, threshold: float) -> float:
    """Return the net benefit of the best table within the ranges; of exact counts it is the net benefit.

    Args:
        table: of `shown_table`.
        threshold: of the protocol.
    """
    return _at(table, table.true_alerts[1], table.false_alerts[0], threshold)["net_benefit"].value


def covering(value: float, lower: float, upper: float) -> Estimate:
    """Return the estimate that is the worst of a range of counts, with an interval that covers all of it."""
    error = (upper - lower) / (2 * Z)
    return Estimate(value=value, standard_error=error, lower=lower, upper=upper, at_worst=True)


def _at(
    table: Table, true_alerts: int, false_alerts: int, threshold: float | None
) -> dict[MetricName, Estimate]:
    label = np.repeat([1, 0], [table.events, table.others])
    alert = np.concatenate(
        [np.arange(table.events) < true_alerts, np.arange(table.others) < false_alerts]
    ).astype(np.float64)
    found = cast(dict[MetricName, Estimate], operating_point(alert, label, 0.5))
    found["accuracy"] = wilson(true_alerts + table.others - false_alerts, len(label))
    if threshold is not None:
        # Only on which side of the threshold a probability lies matters to net benefit.
        found["net_benefit"] = net_benefit_advantage(np.where(alert > 0, threshold, 0.0), label, threshold)
    return found


def coarse_accuracy(probability: Floats, label: Labels, threshold: float, minimum_cell: int) -> Estimate:
    """Return the accuracy of a hospital without class totals, from a range of wrong decisions.

    The ranges start at 0, cell, 2 x cell, ...; the last one runs to n. The value is that of the most wrong.

    Args:
        probability: float64 [patients].
        label: int64 [patients], 0 or 1; at least the minimum cell of patients.
        threshold: of the protocol.
        minimum_cell: width of a range.
    """
    n = len(label)
    wrong = int(((probability >= threshold) != (label == 1)).sum())
    ranges = (n + 1) // minimum_cell
    index = min(wrong // minimum_cell, ranges - 1)
    least = index * minimum_cell
    most = n if index == ranges - 1 else least + minimum_cell - 1
    low, high = wilson(n - most, n), wilson(n - least, n)
    assert low.lower is not None and high.upper is not None
    return covering(low.value, low.lower, high.upper)


class RiskGroups:
    """A growing partition of patients by risk; every group holds the cell of events and of non-events.

    Args:
        probability: float64 [patients].
        label: int64 [patients], 0 or 1.
        minimum_cell: smallest count of either class in a group.
    """

    def __init__(self, probability: Floats, label: Labels, minimum_cell: int) -> None:
        self.cell = minimum_cell
        self.risks = {c: np.sort(probability[label == c]) for c in (0, 1)}
        self.edges: dict[int, set[float]] = {0: set(), 1: set()}

    def split(self, edge: float, classes: tuple[int, ...] = (0, 1)) -> bool:
        """Cut between risks below `edge` and others, if no group becomes too small; say whether."""
        for c in classes:
            if any(count < self.cell for count in self._counts(c, self.edges[c] | {edge})):
                return False
        for c in classes:
            self.edges[c].add(edge)
        return True

    @property
    def common(self) -> list[float]:
        """The edges that cut both classes, rising."""
        return sorted(self.edges[0] & self.edges[1])

    def _counts(self, c: int, edges: set[float]) -> NDArray[np.int64]:
        below = np.searchsorted(self.risks[c], sorted(edges), side="left")
        return np.diff(below, prepend=0, append=len(self.risks[c]))


def has_few_levels(probability: Floats) -> bool:
    """Say whether a score takes so few values that its metrics are those of a small table."""
    return len(np.unique(probability)) <= FEW_LEVELS


def levels_may_be_known(probability: Floats, label: Labels, minimum_cell: int) -> bool:
    """Say whether a score has more than a few levels, or the cell of either class at each of them."""
    return not has_few_levels(probability) or every_level_holds(probability, label, minimum_cell)


def every_level_holds(probability: Floats, label: Labels, minimum_cell: int) -> bool:
    """Say whether each value of the score is that of the minimum cell of events and of non-events."""
    return not any(_is_small(label[probability == level], minimum_cell) for level in np.unique(probability))


def singles_out(first: Floats, second: Floats, label: Labels, minimum_cell: int) -> bool:
    """Say whether two scores differ on some patients, but on fewer than the cell of events or non-events.

    Less than 1e-6 is rounding: torch and onnxruntime differ by as much on one and the same model.
    """
    return _is_small(label[np.abs(first - second) > 1e-6], minimum_cell)


def nested(first: Floats, second: Floats, label: Labels, threshold: float, minimum_cell: int) -> bool:
    """Say whether one score alerts for all that the other does, and the rest is small and not empty."""
    only_first = (first >= threshold) & (second < threshold)
    only_second = (second >= threshold) & (first < threshold)
    if only_first.any() and only_second.any():
        return False  # the difference of two tables is then no count of a group
    return _is_small(label[only_first | only_second], minimum_cell)


def rounded(metrics: dict[MetricName, Estimate], decimals: int = DECIMALS) -> dict[MetricName, Estimate]:
    """Return the estimates rounded for leaving the hospital."""
    return {name: rounded_estimate(estimate, decimals) for name, estimate in metrics.items()}


def rounded_estimate(estimate: Estimate, decimals: int = DECIMALS) -> Estimate:
    """Return the estimate rounded; an error above 0 stays above 0, since 0 would claim certainty."""
    numbers = estimate.model_dump(exclude={"at_worst"})
    kept = {k: None if v is None else round(v, decimals) + 0.0 for k, v in numbers.items()}
    if estimate.standard_error:
        kept["standard_error"] = max(round(estimate.standard_error, decimals), 10.0**-decimals)
    return estimate.model_copy(update=kept)


def _is_small(label: Labels, minimum_cell: int) -> bool:
    events = int(label.sum())
    return len(label) > 0 and min(events, len(label) - events) < minimum_cell
