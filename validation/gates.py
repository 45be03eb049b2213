"""The acceptance gates of the protocol, judged on the hospitals' reports; they fail closed.

`passed` is True only when the data decided it so. A gate that the data cannot decide (every hospital under
the minimum cell, a metric without the asked interval, fewer reports than the study's `min_sites`) is None,
"not testable", and stops a release like a failure.

**Hospitals under the minimum cell.** A gate with `scope: site` is judged over the hospitals that show the
metric, and its detail names those that do not. Were one small hospital enough to make the gate undecidable,
no federation with a small member could ever release; were its silence hidden, nobody would know. At least
one hospital must show the metric.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import cast

from contracts.errors import ConsiliumError
from contracts.evaluation import Estimate, EvaluationReport, MetricName
from contracts.gates import Gate
from contracts.release import GateResult
from contracts.study import StudyProtocol
from validation.pooling import pool, pool_subgroups
from validation.proportion import Z


def judge(
    protocol: StudyProtocol,
    reports: Sequence[EvaluationReport],
    epsilons: Mapping[str, float | None],
) -> list[GateResult]:
    """Decide every gate of the protocol, in its order.

    Args:
        protocol: the gates, fixed before training.
        reports: one per hospital that reported, all on the same model.
        epsilons: hospital -> what it spent on this study, None without differential privacy. Its keys are the
            hospitals expected: one without a report is named in the details.

    Raises:
        ConsiliumError: E802, the reports are not one per hospital on one model of this protocol.
    """
    _check_reports(protocol, reports)
    silent = sorted(set(epsilons) - {r.site for r in reports})
    results = []
    for gate in protocol.gates:
        if gate.metric == "epsilon":
            result = _epsilon(gate, epsilons)
        elif len(reports) < protocol.min_sites:
            detail = f"{len(reports)} hospitals reported, the study needs {protocol.min_sites}"
            result = _result(gate, None, None, detail)
        elif gate.metric == "subgroup_gap":
            result = _subgroup_gap(gate, reports)
        elif gate.scope == "site":
            result = _each_site(gate, reports)
        else:
            result = _pooled(gate, reports)
        if silent and gate.metric != "epsilon":
            result = result.model_copy(
                update={"detail": _cut(f"{result.detail}; no report from {', '.join(silent)}")}
            )
        results.append(result)
    return results


def accepted(results: Sequence[GateResult]) -> bool:
    """Say whether a release may follow: every gate decided and passed."""
    return all(result.passed is True for result in results)


def require(results: Sequence[GateResult]) -> None:
    """Refuse a release that a gate stops.

    Raises:
        ConsiliumError: E601, a gate failed; E602, none failed but one could not be decided.
    """
    for number, verdict in (("E601", False), ("E602", None)):
        stopped = [r for r in results if r.passed is verdict]
        if stopped:
            raise ConsiliumError(number, "; ".join(f"{r.gate}: {r.detail}" for r in stopped))


def _check_reports(protocol: StudyProtocol, reports: Sequence[EvaluationReport]) -> None:
    sites = [r.site for r in reports]
    if len(set(sites)) != len(sites):
        raise ConsiliumError("E802", f"more than one report of a hospital among {', '.join(sites)}")
    for report in reports:
        if report.protocol_hash != protocol.hash:
            raise ConsiliumError(
                "E802", f"{report.site} reports on protocol {report.protocol_hash}, expected {protocol.hash}"
            )
    models = {r.model for r in reports}
    if len(models) > 1:
        raise ConsiliumError("E802", f"the reports are on {len(models)} models, expected one")


def _pooled(gate: Gate, reports: Sequence[EvaluationReport]) -> GateResult:
    name = cast(MetricName, gate.metric)  # `judge` handles the other two
    withheld = [r.site for r in reports if name not in r.metrics]
    estimate = pool(reports).get(name)
    value = None if estimate is None else _compared(gate, estimate)
    if estimate is None or value is None:
        reason = "no hospital shows it" if estimate is None else f"it has no {gate.bound} bound"
        return _result(gate, None, None, f"not testable: {reason}")
    detail = f"{_shown(estimate)} over {len(reports) - len(withheld)} hospitals, {_margin(gate, value)}"
    if withheld:
        detail += f"; not testable at {', '.join(withheld)}"
    return _result(gate, _meets(gate, value), value, detail)


def _each_site(gate: Gate, reports: Sequence[EvaluationReport]) -> GateResult:
    name = cast(MetricName, gate.metric)  # `judge` handles the other two
    values: dict[str, float] = {}
    untestable: list[str] = []
    for report in reports:
        estimate = report.metrics.get(name)
        value = None if estimate is None else _compared(gate, estimate)
        if value is None:
            untestable.append(report.site)
        else:
            values[report.site] = value
    tail = f"not testable at {', '.join(untestable)}" if untestable else ""
    if not values:
        return _result(gate, None, None, tail or "not testable: no hospital reported")
    failed = {site: value for site, value in values.items() if not _meets(gate, value)}
    worst = min(values, key=lambda site: (_distance(gate, values[site]), site))
    if failed:
        ordered = sorted(failed, key=lambda site: (_distance(gate, failed[site]), site))
        detail = "; ".join(f"{site}: {failed[site]:.3f}, {_margin(gate, failed[site])}" for site in ordered)
    else:
        detail = f"closest at {worst}: {values[worst]:.3f}, {_margin(gate, values[worst])}"
    return _result(gate, not failed, values[worst], f"{detail}; {tail}" if tail else detail)


def _subgroup_gap(gate: Gate, reports: Sequence[EvaluationReport]) -> GateResult:
    """Largest pooled difference in AUROC between two groups; its interval takes the groups as independent."""
    groups = pool_subgroups(reports).get(gate.subgroup or "", {})
    testable = {g: m["auroc"] for g, m in groups.items() if "auroc" in m}
    missing = sorted(set(groups) - set(testable))
    if len(testable) < 2 or missing:
        hidden = f" ({', '.join(missing)} under the minimum cell everywhere)" if missing else ""
        shown = f"{len(testable)} of {len(groups)} groups have a pooled AUROC"
        return _result(gate, None, None, f"not testable: {shown}{hidden}")
    best, worst = max(
        itertools.permutations(testable, 2),
        key=lambda pair: testable[pair[0]].value - testable[pair[1]].value,
    )
    a, b = testable[best], testable[worst]
    gap = a.value - b.value
    error = math.hypot(a.standard_error or 0.0, b.standard_error or 0.0)
    estimate = Estimate(value=gap, standard_error=error, lower=gap - Z * error, upper=gap + Z * error)
    value = _compared(gate, estimate)
    assert value is not None
    detail = (
        f"AUROC {a.value:.3f} in {best}, {b.value:.3f} in {worst}: gap {_shown(estimate)}, "
        f"{_margin(gate, value)}"
    )
    low = _worst_site(gate.subgroup or "", worst, reports)
    return _result(gate, _meets(gate, value), value, detail + (f"; lowest at {low}" if low else ""))


def _worst_site(subgroup: str, group: str, reports: Sequence[EvaluationReport]) -> str | None:
    values = {
        report.site: result.metrics["auroc"].value
        for report in reports
        for result in report.subgroups
        if (result.subgroup, result.group) == (subgroup, group) and "auroc" in result.metrics
    }
    if not values:
        return None
    site = min(values, key=lambda s: (values[s], s))
    return f"{site} ({values[site]:.3f} in {group})"


def _epsilon(gate: Gate, epsilons: Mapping[str, float | None]) -> GateResult:
    unknown = sorted(site for site, value in epsilons.items() if value is None)
    if unknown or not epsilons:
        where = f" at {', '.join(unknown)}" if unknown else ""
        return _result(gate, None, None, f"not testable: no epsilon is stated{where}")
    values = {site: float(value) for site, value in epsilons.items() if value is not None}
    # `at_least` for an epsilon makes no sense, but is judged as written.
    worst = min(values, key=lambda site: (_distance(gate, values[site]), site))
    detail = f"closest to its limit at {worst}: {values[worst]:.3f}, {_margin(gate, values[worst])}"
    return _result(gate, all(_meets(gate, v) for v in values.values()), values[worst], detail)


def _compared(gate: Gate, estimate: Estimate) -> float | None:
    return {"point": estimate.value, "lower": estimate.lower, "upper": estimate.upper}[gate.bound]


def _distance(gate: Gate, value: float) -> float:
    """How far inside the limits (above 0) or outside (below 0) a value lies."""
    inside = []
    if gate.at_least is not None:
        inside.append(value - gate.at_least)
    if gate.at_most is not None:
        inside.append(gate.at_most - value)
    return min(inside)


def _meets(gate: Gate, value: float) -> bool:
    return _distance(gate, value) >= 0


def _margin(gate: Gate, value: float) -> str:
    distance = _distance(gate, value)
    return f"within by {distance:.3f}" if distance >= 0 else f"misses by {-distance:.3f}"


def _shown(estimate: Estimate) -> str:
    if estimate.lower is None or estimate.upper is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} (95 % {estimate.lower:.3f} to {estimate.upper:.3f})"


def _result(gate: Gate, passed: bool | None, value: float | None, detail: str) -> GateResult:
    return GateResult(gate=gate.title, passed=passed, value=value, detail=_cut(detail))


def _cut(detail: str) -> str:
    """Keep a detail inside the contract's 500 characters: a study may have a thousand hospitals."""
    return detail if len(detail) <= 500 else detail[:497] + "..."
