"""The acceptance gates of the protocol, judged on the hospitals' reports; they fail closed.

`passed` is True only when the data decided it so. A gate that the data cannot decide is None, "not testable",
and stops a release like a failure: every hospital under the minimum cell, fewer reports than the study's
`min_sites`, a hospital without the metric (a denominator of zero, a fit that does not exist, no comparison),
a metric without the asked bound.

**Hospitals under the minimum cell.** A gate is judged over the hospitals that show the metric, and its detail
names those under the minimum cell. Were one small hospital enough to make the gate undecidable, no federation
with a small member could ever release; were its silence hidden, nobody would know. At least one hospital must
show the metric.

**Hospitals with few events.** One that shows the metric, with fewer events or non-events than
`validation.diagnostics.minimum_events`, can fail a gate on every site but does not help to pass it.

A pooled gate looks at the mean hospital. One hospital that gets worse may bring the hospitals closer together
and so narrow the pooled interval: a lower bound can rise by it. A gate on every site does not have this.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from contracts.errors import ConsiliumError
from contracts.evaluation import EvaluationReport
from contracts.gates import FACTS, Fact, Gate
from contracts.release import GateResult
from contracts.study import StudyProtocol
from validation.asked import Asked, asked
from validation.limits import compared, cut, decided, distance, in_words, result, shown, untestable
from validation.non_inferiority import judge_non_inferiority
from validation.subgroup_gap import judge_subgroup_gap


@dataclass(frozen=True)
class Verdict:
    """Whether a fact about the candidate holds; None when nobody could tell.

    Attributes:
        passed: True only when it was checked and holds.
        detail: what was seen.
        site: the hospital where it does not hold, if it is one hospital's.
    """

    passed: bool | None
    detail: str
    site: str | None = None


def judge(
    protocol: StudyProtocol,
    reports: Sequence[EvaluationReport],
    epsilons: Mapping[str, float | None],
    *,
    earlier_releases: int = 0,
    earlier_looks: int | None = None,
) -> list[GateResult]:
    """Decide every gate of the protocol that is not a fact, in its order.

    Args:
        protocol: the gates, fixed before training.
        reports: one per hospital that reported, all on the same model.
        epsilons: hospital -> what it spent on this study, None without differential privacy. Its keys are the
            hospitals expected: one without a report is named in the details.
        earlier_releases: of this product; with none, what is compared with `first` or `previous` passes by
            definition, since this release becomes the reference.
        earlier_looks: studies of this product whose holdouts were looked at before, released or not: each has
            used its share of the error budget. None: as many as released.

    Raises:
        ConsiliumError: E802, the reports are not one per hospital on one model of this protocol.
    """
    _check_reports(protocol, reports)
    looks = earlier_releases if earlier_looks is None else earlier_looks
    silent = sorted(set(epsilons) - {r.site for r in reports})
    results = []
    for gate in protocol.gates:
        if gate.metric in FACTS:
            continue
        found = _judge(gate, protocol, reports, epsilons, earlier_releases, looks)
        if silent and gate.metric != "epsilon":
            detail = cut(f"{found.detail}; no report from {', '.join(silent)}")
            found = found.model_copy(update={"detail": detail})
        results.append(found)
    return results


def judge_facts(protocol: StudyProtocol, verdicts: Mapping[Fact, Verdict]) -> list[GateResult]:
    """Decide the protocol's gates on facts, in its order; one that nobody looked at is not testable.

    Args:
        protocol: which facts must hold.
        verdicts: fact -> what was found.
    """
    results = []
    for gate in protocol.gates:
        if gate.metric not in FACTS:
            continue
        verdict = verdicts.get(gate.metric)
        if verdict is None:
            results.append(untestable(gate, "nobody looked"))
        else:
            results.append(result(gate, verdict.passed, verdict.detail, site=verdict.site))
    return results


def in_protocol_order(protocol: StudyProtocol, *results: Sequence[GateResult]) -> list[GateResult]:
    """Return one result per gate, in the protocol's order; a gate without a result is not testable.

    Raises:
        ConsiliumError: E802, a result belongs to no gate of the protocol.
    """
    waiting: dict[str, list[GateResult]] = {}
    for each in itertools.chain(*results):
        waiting.setdefault(each.gate, []).append(each)
    ordered = []
    for gate in protocol.gates:
        of_gate = waiting.get(gate.title)
        ordered.append(of_gate.pop(0) if of_gate else untestable(gate, "it was not judged"))
    left = sorted(title for title, rest in waiting.items() if rest)
    if left:
        raise ConsiliumError("E802", f"results of gates that the protocol does not have: {'; '.join(left)}")
    return ordered


def accepted(results: Sequence[GateResult]) -> bool:
    """Say whether a release may follow: every gate decided and passed."""
    return all(each.passed is True for each in results)


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


def _judge(
    gate: Gate,
    protocol: StudyProtocol,
    reports: Sequence[EvaluationReport],
    epsilons: Mapping[str, float | None],
    earlier_releases: int,
    earlier_looks: int,
) -> GateResult:
    if not reports:
        return untestable(gate, "no hospital reported")
    if gate.metric == "epsilon":
        return _epsilon(gate, epsilons)
    if len(reports) < protocol.min_sites:
        return untestable(gate, f"{len(reports)} hospitals reported, the study needs {protocol.min_sites}")
    if gate.metric == "subgroup_gap":
        return judge_subgroup_gap(gate, reports)
    if gate.against in ("first", "previous") and earlier_releases == 0:
        return _first_release(gate, reports)
    plan = protocol.validation
    answers = asked(gate, reports, plan.diagnostics.minimum_events)
    if gate.metric == "non_inferiority":
        found = judge_non_inferiority(gate, plan.error_budget, reports, earlier_looks)
        return _unless_untested(gate, found, answers)
    if gate.scope == "site":
        return _each_site(gate, answers)
    return _unless_untested(gate, _pooled(gate, answers), answers)


def _first_release(gate: Gate, reports: Sequence[EvaluationReport]) -> GateResult:
    if not any("auroc" in r.metrics for r in reports):
        return untestable(gate, "no hospital shows the AUROC that later releases would be compared with")
    return result(
        gate, True, "by definition: the first release of this product becomes the reference of later ones"
    )


def _pooled(gate: Gate, answers: Asked) -> GateResult:
    if answers.pooled is None:
        return untestable(gate, "no hospital shows it with an error" if answers.shown else _nobody(answers))
    value = compared(gate, answers.pooled)
    if value is None:
        return untestable(gate, f"it has no {gate.bound} bound")
    number = len(answers.shown) - len(answers.no_error)
    detail = f"{shown(answers.pooled)} over {number} hospitals, {in_words(distance(gate, value))}"
    worst = min(answers.shown, key=lambda s: (distance(gate, answers.shown[s].value), s))
    detail += f"; furthest out at {worst}: {shown(answers.shown[worst])}"
    return decided(gate, value, detail, worst)


def _each_site(gate: Gate, answers: Asked) -> GateResult:
    """One hospital that fails is enough to fail; one that should show the metric and does not, to undecide.

    A hospital with few events may fail here but is not counted among those that pass.
    """
    values = {s: v for s, e in answers.shown.items() if (v := compared(gate, e)) is not None}
    if not values:
        return untestable(gate, f"it has no {gate.bound} bound" if answers.shown else _nobody(answers))
    ordered = sorted(values, key=lambda site: (distance(gate, values[site]), site))
    failed = [site for site in ordered if distance(gate, values[site]) < 0]
    lines = [
        f"{site}: {shown(answers.shown[site])}, {in_words(distance(gate, values[site]))}"
        for site in failed or ordered[:1]
    ]
    detail = ("" if failed else "closest at ") + "; ".join(lines)
    if answers.few_events:
        detail += f"; too few events to pass at {', '.join(sorted(answers.few_events))}"
    if answers.under_cell:
        detail += f"; not testable at {', '.join(answers.under_cell)}, under the minimum cell"
    found = decided(gate, values[ordered[0]], detail, ordered[0])
    missing = [*answers.without, *(site for site in answers.shown if site not in values)]
    if failed:
        return found
    if missing:
        return _undecided(found, f"not testable: {', '.join(missing)} should show it and do not", missing[0])
    if set(values) <= set(answers.few_events):
        return _undecided(found, "not testable: no hospital has enough events")
    return found


def _unless_untested(gate: Gate, found: GateResult, answers: Asked) -> GateResult:
    """Take back a pass of a pooled gate that not all data it needs stand behind."""
    if found.passed and answers.without:
        why = f"not testable: {', '.join(answers.without)} should show it and do not"
        found = _undecided(found, why, answers.without[0])
    elif found.passed and answers.no_error:
        why = f"not testable: its error is unknown at {', '.join(answers.no_error)}"
        found = _undecided(found, why, answers.no_error[0])
    elif found.passed and not answers.enough_in_all:
        found = _undecided(found, "not testable: too few events in all hospitals together")
    if not answers.under_cell:
        return found
    where = f"{found.detail}; not testable at {', '.join(answers.under_cell)}, under the minimum cell"
    return found.model_copy(update={"detail": cut(where)})


def _undecided(found: GateResult, why: str, site: str | None = None) -> GateResult:
    detail = cut(f"{why}; {found.detail}")
    return found.model_copy(update={"passed": None, "detail": detail, "site": site or found.site})


def _nobody(answers: Asked) -> str:
    where = [*answers.without, *answers.under_cell]
    return f"no hospital shows it ({', '.join(where)})"


def _epsilon(gate: Gate, epsilons: Mapping[str, float | None]) -> GateResult:
    values = {s: e for s, e in epsilons.items() if e is not None and math.isfinite(e)}
    unknown = sorted(set(epsilons) - set(values))
    if unknown or not values:
        where = f" at {', '.join(unknown)}" if unknown else ""
        return untestable(gate, f"no epsilon is stated{where}", unknown[0] if unknown else None)
    # `at_least` for an epsilon makes no sense, but is judged as written.
    worst = min(values, key=lambda site: (distance(gate, values[site]), site))
    margin = in_words(distance(gate, values[worst]))
    return decided(
        gate, values[worst], f"closest to its limit at {worst}: {values[worst]:.3f}, {margin}", worst
    )
