"""How much worse the model ranks the patients of one group than those of another, and where."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from contracts.evaluation import Estimate, EvaluationReport
from contracts.gates import Gate
from contracts.release import GateResult
from validation.limits import compared, decided, distance, in_words, shown, untestable
from validation.pooling import pool_subgroups
from validation.proportion import Z


def judge_subgroup_gap(gate: Gate, reports: Sequence[EvaluationReport]) -> GateResult:
    """Decide a gate on the largest pooled difference in AUROC between two groups of one subgroup.

    The interval takes the groups as independent. Every group must show an AUROC somewhere: one that is under
    the minimum cell at every hospital may be the worst one.

    Args:
        gate: with `subgroup`.
        reports: one per hospital.
    """
    groups = pool_subgroups(reports).get(gate.subgroup or "", {})
    testable = {g: m["auroc"] for g, m in groups.items() if "auroc" in m}
    missing = sorted(set(groups) - set(testable))
    if len(testable) < 2 or missing:
        hidden = f" (none of {', '.join(missing)})" if missing else ""
        return untestable(gate, f"{len(testable)} of {len(groups)} groups have a pooled AUROC{hidden}")
    best, worst = max(
        itertools.permutations(testable, 2),
        key=lambda pair: testable[pair[0]].value - testable[pair[1]].value,
    )
    a, b = testable[best], testable[worst]
    gap = a.value - b.value
    error = math.hypot(a.standard_error or 0.0, b.standard_error or 0.0)
    estimate = Estimate(value=gap, standard_error=error, lower=gap - Z * error, upper=gap + Z * error)
    value = compared(gate, estimate)
    assert value is not None
    detail = (
        f"AUROC {a.value:.3f} in {best}, {b.value:.3f} in {worst}: gap {shown(estimate)}, "
        f"{in_words(distance(gate, value))}"
    )
    in_worst = {
        report.site: group.metrics["auroc"].value
        for report in reports
        for group in report.subgroups
        if (group.subgroup, group.group) == (gate.subgroup, worst) and "auroc" in group.metrics
    }
    lowest = min(in_worst, key=lambda site: (in_worst[site], site))
    detail += f"; lowest at {lowest} ({in_worst[lowest]:.3f} in {worst})"
    return decided(gate, value, detail, lowest)
