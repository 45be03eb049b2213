"""What a gate on a metric or a difference looks at: each estimate, the pooled one, who is silent."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from contracts.evaluation import Estimate, EvaluationReport
from contracts.gates import Gate, MetricName
from validation.differences import difference_point, pooled_difference, site_difference
from validation.effect_scale import estimate_of
from validation.pooling import pool, unpoolable


@dataclass(frozen=True)
class Asked:
    """The answers of the hospitals to one gate.

    Attributes:
        shown: hospital -> its estimate.
        pooled: over the hospitals that show one with an error; None where none does.
        under_cell: hospitals that show none, being under the minimum cell.
        without: hospitals that should show one and do not.
        no_error: hospitals that show one of which no error is known, so that it is not in the pool.
        few_events: hospitals with fewer events or non-events than the protocol calls testable.
        enough_in_all: whether those that show one have that many together.
    """

    shown: Mapping[str, Estimate]
    pooled: Estimate | None
    under_cell: Sequence[str]
    without: Sequence[str]
    no_error: Sequence[str]
    few_events: Collection[str]
    enough_in_all: bool


def asked(gate: Gate, reports: Sequence[EvaluationReport], minimum_events: int) -> Asked:
    """Collect what a gate on a metric, or on a difference (`against`), looks at.

    Args:
        gate: on neither subgroup, epsilon nor fact.
        reports: one per hospital.
        minimum_events: events, and non-events, below which nothing is called tested. Not asked for accuracy,
            which is a share of all patients.
    """
    if gate.against is not None:
        found = {r.site: site_difference(r, gate.against) for r in reports}
        difference = pooled_difference(reports, gate.against)
        pooled = None if difference is None else estimate_of(difference, "identity")
        no_error = [s for s, e in found.items() if e is not None and difference_point(e) is None]
    else:
        name = cast(MetricName, gate.metric)
        found = {r.site: r.metrics.get(name) for r in reports}
        pooled, no_error = pool(reports).get(name), unpoolable(reports, name)
    shown = {site: estimate for site, estimate in found.items() if estimate is not None}
    silent = [r for r in reports if r.site not in shown]
    totals = {r.site: _smaller_class(r) for r in reports if r.site in shown}
    in_all = [sum(each) for each in zip(*(_classes(r) for r in reports if r.site in shown), strict=True)]
    by_class = gate.metric != "accuracy"
    return Asked(
        shown=shown,
        pooled=pooled,
        under_cell=[r.site for r in silent if r.suppressed],
        without=[r.site for r in silent if not r.suppressed],
        no_error=no_error,
        few_events={s for s, n in totals.items() if n < minimum_events} if by_class else set(),
        enough_in_all=not by_class or min(in_all, default=0) >= minimum_events,
    )


def _classes(report: EvaluationReport) -> tuple[int, int]:
    events = report.events or 0
    return events, (report.n or 0) - events


def _smaller_class(report: EvaluationReport) -> int:
    return min(_classes(report)) if report.events is not None else 0
