"""Not worse than a fixed reference, with one error budget over all releases of a product.

Each release is one more chance to let a worse model through. The protocol's error budget shares alpha equally
over the planned releases (Bonferroni): a release passes when the one-sided lower bound of the pooled AUROC
difference, at confidence 1 - alpha / releases, is at least -margin. Compared with `first` a slow decline
over many releases is seen; comparing with `previous` alone would let each step by (Feng, Emerson & Simon,
Biometrics 77, 2021, on bio-creep of modified models).

The budget counts releases. A model that was stopped at its gates used a chance too and is not counted:
whoever trains one model after another until one passes makes more error than alpha. Each attempt is a study
of its own that the hospitals approve.
"""

from __future__ import annotations

from collections.abc import Sequence

from contracts.evaluation import EvaluationReport
from contracts.gates import Gate
from contracts.release import GateResult
from contracts.validation_plan import ErrorBudget
from validation.differences import pooled_difference, site_difference, worst_difference
from validation.limits import in_words, result, untestable


def level(budget: ErrorBudget) -> float:
    """Return the one-sided error that each release may make."""
    return budget.alpha / budget.releases


def lower_bound(reports: Sequence[EvaluationReport], baseline: str, alpha: float) -> float | None:
    """Return the one-sided lower confidence bound of the pooled AUROC difference to a baseline.

    By the same random effects as the pooled estimate, at the quantile `alpha`; None where no hospital shows
    the difference with an error.

    Args:
        reports: one per hospital.
        baseline: whose AUROC is subtracted.
        alpha: one-sided error, 0 < alpha < 0.5.
    """
    pooled = pooled_difference(reports, baseline)
    return None if pooled is None else pooled.quantile(alpha)


def judge_non_inferiority(
    gate: Gate, budget: ErrorBudget, reports: Sequence[EvaluationReport], earlier_looks: int
) -> GateResult:
    """Decide a gate on non-inferiority. A hospital that shows no comparison is for the caller to look at.

    Args:
        gate: with `against` and `margin`.
        budget: of the protocol.
        reports: one per hospital.
        earlier_looks: at the holdouts, by other studies of this product: a rejected one was a chance too.
    """
    assert gate.against is not None and gate.margin is not None  # the contract holds that
    number = earlier_looks + 1
    if number > budget.releases:
        return untestable(
            gate, f"look {number} of {budget.releases} planned ones, no error is left in the budget"
        )
    alpha = level(budget)
    pooled = pooled_difference(reports, gate.against)
    if pooled is None:
        return untestable(gate, f"no hospital shows a difference to the {gate.against} model")
    bound = pooled.quantile(alpha)
    margin = bound + gate.margin
    worst = worst_difference(reports, gate.against)
    detail = (
        f"difference {pooled.mean:+.3f} over {pooled.sites} hospitals, one-sided {100 * (1 - alpha):g} % "
        f"lower bound {bound:+.3f}, {in_words(margin)}"
    )
    report = next((r for r in reports if r.site == worst), None)
    lowest = None if report is None else site_difference(report, gate.against)
    if lowest is not None:
        detail += f"; lowest at {worst}: {lowest.value:+.3f}"
    return result(gate, margin >= 0, detail, value=bound, margin=margin, site=worst)
