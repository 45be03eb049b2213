"""The last look at an evaluation before it leaves: what can be solved for from its numbers alone?

It does not know the scores, the threshold or how the report was made (`validation.performance` made it under
the rules of `validation.disclosure`). It does what a reader would do: turns rates back into counts, subtracts
what can be subtracted, and refuses a report in which that ends in a count below the minimum cell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import NoReturn

from contracts.errors import ConsiliumError
from contracts.evaluation import CalibrationBin, DecisionPoint, Estimate, EvaluationReport, SubgroupResult
from contracts.gates import MetricName
from validation.disclosure import TABLE_METRICS, Counts, Table, table_metrics
from validation.proportion import wilson

Metrics = Mapping[MetricName, Estimate]
_HALF = 0.6e-4  # half a unit of the last of four decimals, and the rounding of floating point


def check_cells(report: EvaluationReport, cell: int) -> None:
    """Hold a report to the minimum cell.

    Raises:
        ConsiliumError: E304, naming the field and the rule.
    """
    for where, estimate in _estimates(report):
        _digits(where, estimate, 4)
    if report.n is None or report.events is None:
        _check_suppressed(report, cell)
    else:
        _check_shown(report, report.n, report.events, cell)


def _check_suppressed(report: EvaluationReport, cell: int) -> None:
    if report.events is not None:
        _refuse("report", "events without n")
    if report.calibration or report.decision_curve or report.subgroups or report.comparisons:
        _refuse("report", "more than the accuracy although the class totals are suppressed")
    if report.n is None:
        if report.metrics:
            _refuse("report", "metrics although n is suppressed")
        return
    if report.n < cell:
        _refuse("report", f"n below the minimum cell of {cell}")
    if set(report.metrics) - {"accuracy"}:
        _refuse("report", "metrics of both classes although their totals are suppressed")
    if "accuracy" in report.metrics:
        # An exact one is 1 - prevalence where nobody is alerted.
        ranges = _possible(report.metrics["accuracy"], report.n)
        if not any(most - least + 1 >= cell for least, most in ranges):
            _refuse(
                "accuracy",
                f"known to fewer than {cell} right decisions although the class totals are suppressed",
            )


def _check_shown(report: EvaluationReport, n: int, events: int, cell: int) -> None:
    if min(events, n - events) < 2 * cell:
        _refuse("report", f"a class below twice the minimum cell of {cell}")
    table = _check_table("report", report.metrics, n, events, cell)
    bins = _check_bins(report.calibration, n, events, cell)
    if report.decision_curve and not report.calibration:
        _refuse("decision_curve", "without the groups of patients that it is made of")
    for point in report.decision_curve:
        _check_point(point, bins, n, events)
    if table is not None and report.calibration and table not in bins:
        _refuse("report", "its decisions can be subtracted from its calibration bins")
    _check_subgroups(report, n, events, cell)
    for comparison in report.comparisons:
        where = f"comparison with {comparison.baseline}"
        exact = _check_table(where, comparison.metrics, n, events, cell) is not None
        difference = comparison.differences.get("net_benefit")
        _check_benefit(where, report.metrics, comparison.metrics, difference, exact)


def _check_table(where: str, metrics: Metrics, n: int, events: int, cell: int) -> tuple[int, int] | None:
    """Check the metrics at the threshold; return (true alerts, false alerts) where both are told exactly."""
    shown = set(metrics) & TABLE_METRICS
    if not shown:
        return None
    if not {"sensitivity", "specificity"} <= shown:
        _refuse(where, "decisions of both classes together although those of each are withheld")
    true_alerts = _check_row(f"{where} sensitivity", metrics["sensitivity"], events, cell)
    right_others = _check_row(f"{where} specificity", metrics["specificity"], n - events, cell)
    others = n - events
    table = Table(events, others, true_alerts, (others - right_others[1], others - right_others[0]))
    # Whatever else is said of the decisions must follow from these two. (A net benefit does when it is made
    # from them; the threshold, which it takes to see that, is not in the report.)
    expected = table_metrics(table, None)
    for name in shown - {"net_benefit"}:
        if name not in expected or not _same(metrics[name], expected[name]):
            _refuse(f"{where} {name}", "says more of the decisions than sensitivity and specificity do")
    if true_alerts[0] < true_alerts[1] or right_others[0] < right_others[1]:
        return None
    return true_alerts[0], others - right_others[0]


def _check_row(where: str, rate: Estimate, of: int, cell: int) -> Counts:
    """Turn a rate into the count (or the range) it tells, which must not be below the cell on either side."""
    possible = _possible(rate, of)
    if not possible:
        _refuse(where, "is no rate of its class, nor covers a range")
    for least, most in possible:
        if least == most and cell <= least <= of - cell:
            return least, most
        if least < most and ((least == 0 and most >= cell - 1) or (most == of and of - least >= cell - 1)):
            return least, most
    _refuse(where, f"tells a count below the minimum cell of {cell}")


def _possible(rate: Estimate, of: int) -> list[Counts]:
    """The counts, or ranges (least, most) of counts, whose published rate this is."""
    near = range(max(0, int((rate.value - _HALF) * of)), min(of, int((rate.value + _HALF) * of) + 1) + 1)
    found: list[Counts] = []
    for least in near:
        exact = wilson(least, of)
        if not _close(rate.value, exact.value) or not _close(rate.lower, exact.lower):
            continue
        if _same(rate, exact):
            found.append((least, least))
        elif rate.upper is not None:
            most = _first_reaching(rate.upper, least, of)
            if _close(wilson(most, of).upper, rate.upper):
                found.append((least, most))
    return found


def _first_reaching(upper: float, low: int, of: int) -> int:
    """The first count from `low` whose interval ends at `upper`: that end rises with the count."""
    high = of
    while low < high:
        middle = (low + high) // 2
        if (wilson(middle, of).upper or 0.0) < upper - _HALF:
            low = middle + 1
        else:
            high = middle
    return low


def _check_bins(bins: list[CalibrationBin], n: int, events: int, cell: int) -> set[tuple[int, int]]:
    """Check the bins; return the tables (events, others at or above an edge) that they tell."""
    inside: list[tuple[int, int]] = []
    for i, bin_ in enumerate(bins):
        _round(f"calibration bin {i}", (bin_.mean_predicted, bin_.observed), 4)
        of_bin = round(bin_.observed * bin_.n)
        if min(of_bin, bin_.n - of_bin) < cell:
            _refuse(f"calibration bin {i}", f"a class below the minimum cell of {cell}")
        inside.append((of_bin, bin_.n - of_bin))
    if not inside:
        return set()
    above = list(accumulate(reversed(inside), lambda a, b: (a[0] + b[0], a[1] + b[1])))
    if above[-1] != (events, n - events):
        _refuse("calibration", "its bins do not hold all patients, so that the others can be computed")
    return set(above)


def _check_point(point: DecisionPoint, bins: set[tuple[int, int]], n: int, events: int) -> None:
    """A point of the decision curve must be the net benefit of alerting some of the bins."""
    where = f"decision_curve {point.threshold:g}"
    _round(where, (point.model, point.treat_all), 4)
    weight = point.threshold / (1 - point.threshold)
    if not _close(point.treat_all, (events - weight * (n - events)) / n):
        _refuse(where, "treat_all does not follow from the class totals")
    if not any(_close(point.model, (hits - weight * false) / n) for hits, false in bins):
        _refuse(where, "can be subtracted from the calibration bins")


def _check_subgroups(report: EvaluationReport, n: int, events: int, cell: int) -> None:
    names = list(dict.fromkeys(g.subgroup for g in report.subgroups))
    for name in names:
        groups = [g for g in report.subgroups if g.subgroup == name]
        counted = [_counted(g, cell) for g in groups if g.n is not None]
        for group in groups:
            if group.n is None:
                _check_uncounted(group)
        if not counted:
            continue
        rest = (events - sum(e for e, _ in counted), n - events - sum(o for _, o in counted))
        _check_rest(f"subgroup {name}", rest, cell)
        shown = [g for g in groups if set(g.metrics) & TABLE_METRICS]
        if not shown:
            continue
        where = f"subgroup {name}: decisions"
        table = _check_table("report", report.metrics, n, events, cell)
        if table is None or len(shown) < len([g for g in groups if not g.suppressed]):
            _refuse(where, "of some groups although those of others are withheld")
        left = [table[0], events - table[0], table[1], n - events - table[1]]
        for group in shown:
            assert group.n is not None and group.events is not None
            of = _check_table(f"{where} of {group.group}", group.metrics, group.n, group.events, cell)
            if of is None:
                _refuse(where, "as a range, which the sum over the groups would narrow")
            others = group.n - group.events
            for i, count in enumerate((of[0], group.events - of[0], of[1], others - of[1])):
                left[i] -= count
        if any(left) and min(left) < cell:
            _refuse(where, f"leave over a count below the minimum cell of {cell}")


def _counted(group: SubgroupResult, cell: int) -> tuple[int, int]:
    """Check a group with counts; return its events and its other patients."""
    where = f"subgroup {group.subgroup} {group.group}"
    if group.n is None or group.events is None:
        _refuse(where, "n without events")
    if min(group.events, group.n - group.events) < cell:
        _refuse(where, f"a class below the minimum cell of {cell}")
    return group.events, group.n - group.events


def _check_uncounted(group: SubgroupResult) -> None:
    where = f"subgroup {group.subgroup} {group.group}"
    if group.events is not None:
        _refuse(where, "events without n")
    if group.suppressed and group.metrics:
        _refuse(where, "metrics although it is suppressed")
    if set(group.metrics) & (TABLE_METRICS | {"observed_expected"}):
        _refuse(where, "a ratio of counts although n is withheld")
    for name, estimate in group.metrics.items():
        _digits(f"{where} {name}", estimate, 3)
        if name in ("auroc", "auprc") and estimate.value in (0.0, 1.0):
            _refuse(where, f"an {name} whose interval tells the smaller class although n is withheld")


def _check_rest(where: str, rest: tuple[int, int], cell: int) -> None:
    if rest != (0, 0) and min(rest) < cell:
        _refuse(where, f"its counted groups leave over a class below the minimum cell of {cell}")


def _check_benefit(
    where: str, ours: Metrics, theirs: Metrics, difference: Estimate | None, exact: bool
) -> None:
    """A difference in net benefit must follow from the two: a paired error counts who is decided anew.

    Where the baseline's counts are ranges (not `exact`) it is to the best of them, inside its interval.
    """
    if difference is None:
        return
    if "net_benefit" not in ours or "net_benefit" not in theirs:
        _refuse(where, "a difference in net benefit although one of the two is withheld")
    model, other = ours["net_benefit"], theirs["net_benefit"]
    best = other.value if exact or other.upper is None else other.upper
    if not model.value - best - 2 * _HALF <= difference.value <= model.value - other.value + 2 * _HALF:
        _refuse(where, "a difference in net benefit that is not that of the two")
    if difference.standard_error is not None:
        errors = (model.standard_error or 0.0) + (other.standard_error or 0.0)
        if difference.standard_error < errors - 2 * _HALF:
            _refuse(where, "a paired error of the net benefit, which counts the patients decided otherwise")


def _estimates(report: EvaluationReport) -> Iterator[tuple[str, Estimate]]:
    yield from report.metrics.items()
    for group in report.subgroups:
        yield from ((f"subgroup {group.subgroup} {group.group} {m}", e) for m, e in group.metrics.items())
    for comparison in report.comparisons:
        for metrics in (comparison.metrics, comparison.differences):
            yield from ((f"comparison with {comparison.baseline} {m}", e) for m, e in metrics.items())


def _digits(where: str, estimate: Estimate, decimals: int) -> None:
    values = (estimate.value, estimate.standard_error, estimate.lower, estimate.upper)
    _round(where, [value for value in values if value is not None], decimals)


def _round(where: str, values: tuple[float, ...] | list[float], decimals: int) -> None:
    if any(abs(value - round(value, decimals)) > 1e-12 * max(1.0, abs(value)) for value in values):
        _refuse(where, f"more than {decimals} decimals")


def _same(found: Estimate, exact: Estimate) -> bool:
    ends = [(found.value, exact.value), (found.lower, exact.lower), (found.upper, exact.upper)]
    if found.standard_error is not None:
        # An error above 0 is published as at least one unit of the last decimal.
        ends.append(
            (found.standard_error, max(exact.standard_error or 0.0, 1e-4 if exact.standard_error else 0.0))
        )
    return found.at_worst == exact.at_worst and all(_close(a, b) for a, b in ends)


def _close(a: float | None, b: float | None) -> bool:
    return a is not None and b is not None and abs(a - b) <= _HALF


def _refuse(where: str, why: str) -> NoReturn:
    raise ConsiliumError("E304", f"{where}: {why}")
