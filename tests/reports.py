"""Hospitals' evaluation reports as tests need them: few fields, no data behind them."""

from __future__ import annotations

from typing import Any

from contracts.evaluation import Comparison, Estimate, EvaluationReport, SubgroupResult
from contracts.study import StudyProtocol
from tests.factories import ZERO, tiny_study


def report(site: str, study: StudyProtocol | None = None, **fields: Any) -> EvaluationReport:
    """A report of 200 patients with 60 events and no metric, with some fields replaced."""
    study = study or tiny_study()
    base: dict[str, Any] = {"n": 200, "events": 60, "metrics": {}, "suppressed": False}
    return EvaluationReport(
        study=study.study,
        protocol_hash=study.hash,
        plan=ZERO,
        kind="evaluation",
        site=site,
        created="2026-01-01T00:00:00Z",
        model=ZERO,
        cohort=ZERO,
        **{**base, **fields},
    )


def estimate(value: float, error: float = 0.03) -> Estimate:
    """An estimate with an interval of two standard errors each way."""
    return Estimate(value=value, standard_error=error, lower=value - 2 * error, upper=value + 2 * error)


def with_auroc(
    site: str, value: float, error: float = 0.03, study: StudyProtocol | None = None, **fields: Any
) -> EvaluationReport:
    """A report that shows an AUROC."""
    return report(site, study, metrics={"auroc": estimate(value, error)}, **fields)


def group(name: str, value: float | None, error: float = 0.02) -> SubgroupResult:
    """A group of `sex` with an AUROC; withheld when there is none."""
    metrics = {} if value is None else {"auroc": Estimate(value=value, standard_error=error)}
    return SubgroupResult(
        subgroup="sex", group=name, suppressed=value is None, n=None if value is None else 80, metrics=metrics
    )


def against(baseline: str, difference: float, error: float = 0.01, own: float = 0.75) -> Comparison:
    """A comparison: the model's AUROC less the baseline's, and the baseline's own."""
    return Comparison.model_validate(
        {
            "baseline": baseline,
            "metrics": {"auroc": estimate(own).model_dump()},
            "differences": {"auroc": estimate(difference, error).model_dump()},
        }
    )
