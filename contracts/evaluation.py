"""A site's evaluation of a model on its own holdout, as it may leave: estimates with their errors."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from contracts.fields import (
    Contract,
    Count,
    Digest,
    FeatureName,
    Finite,
    Probability,
    SiteName,
    StudyName,
    Timestamp,
)
from contracts.gates import Baseline, MetricName


class Estimate(Contract):
    """A metric with its standard error and 95 % interval, as far as they are defined.

    `at_worst`: a hospital tells only a range of counts; the value is the worst of it, the interval covers it.
    """

    value: Finite
    standard_error: Finite | None = None
    lower: Finite | None = None
    upper: Finite | None = None
    at_worst: Literal[True] | None = None


class CalibrationBin(Contract):
    """A merged bin of the calibration plot: at least the minimum cell of events and of non-events."""

    mean_predicted: Probability
    observed: Probability
    n: Count


class SubgroupResult(Contract):
    """Metrics of one group of a subgroup; `suppressed` when a class is under the minimum cell."""

    subgroup: FeatureName
    group: Annotated[str, Field(max_length=40)]
    suppressed: bool
    n: Count | None = None
    events: Count | None = None
    metrics: dict[MetricName, Estimate] = {}


class DecisionPoint(Contract):
    """Net benefit at one decision threshold, rounded to four decimals; treating none has 0."""

    threshold: Probability
    model: Finite
    treat_all: Finite


class Comparison(Contract):
    """The model beside a baseline on the same holdout patients. Differences are model minus baseline.

    `left_out` is the model that all other hospitals trained without this one (internal-external validation).
    """

    baseline: Baseline | Literal["left_out"]
    metrics: dict[MetricName, Estimate] = {}  # of the baseline
    differences: dict[Literal["auroc", "net_benefit", "brier"], Estimate] = {}


class HoldoutDiagnostics(Contract):
    """One bit each, of the holdout alone: what must hold before performance may be seen."""

    enough_events: bool
    prevalence: bool  # within the protocol's plausible range
    missingness: bool  # of every feature, within what the protocol allows


class Parity(Contract):
    """Agreement of the exported model (onnxruntime) with the trained one on the same patients.

    Over a holdout it leaves a hospital as one bit (`contracts.evaluation.one_bit`): an exact count of
    flipped decisions would tell whether a patient whom a crafted model singles out is there.
    """

    max_abs_difference: Finite
    decisions_flipped: Count
    tolerance: Finite


class EvaluationReport(Contract):
    """Metrics that a site computed from its own scores; a score never leaves.

    Below twice the minimum cell in a class only accuracy and n are given; `suppressed` then says so.
    """

    study: StudyName
    protocol_hash: Digest
    plan: Digest
    kind: Literal["evaluation", "verification"]
    site: SiteName
    created: Timestamp  # by the hospital's clock
    model: Digest  # what was evaluated: the safetensors or the ONNX file
    cohort: Digest
    n: Count | None = None
    events: Count | None = None
    metrics: dict[MetricName, Estimate]
    suppressed: bool
    calibration: Annotated[list[CalibrationBin], Field(max_length=20)] = []
    decision_curve: Annotated[list[DecisionPoint], Field(max_length=21)] = []
    subgroups: Annotated[list[SubgroupResult], Field(max_length=200)] = []
    comparisons: Annotated[list[Comparison], Field(max_length=5)] = []
    diagnostics: HoldoutDiagnostics | None = None  # evaluation only
    parity: Parity | None = None
    epsilon_study: Finite | None = None  # all that this site's ledger reserved for the study, at its delta
    epsilon_lineage: Finite | None = None
    ledger_head: Digest | None = None
    ledger: Digest | None = (
        None  # of the ledger's excerpt for this study (JSONL in the exchange); evaluation only
    )


class SealedReport(Contract):
    """An evaluation that nobody can read yet: its diagnostics, and the signed report, sealed.

    `sealed` holds the canonical text of the hospital's signed `EvaluationReport`, sealed to the plan's
    `seal_key` (contracts.sealing). The coordinator opens it only when the diagnostics hold.
    """

    study: StudyName
    protocol_hash: Digest
    plan: Digest
    site: SiteName
    cohort: Digest
    created: Timestamp
    diagnostics: HoldoutDiagnostics
    sealed: Annotated[str, Field(max_length=200_000)]


def one_bit(found: Parity) -> Parity:
    """Reduce a parity to whether it holds: the tolerance and 0, or 1 and 1."""
    holds = found.max_abs_difference <= found.tolerance and found.decisions_flipped == 0
    return Parity(
        max_abs_difference=found.tolerance if holds else 1.0,
        decisions_flipped=0 if holds else 1,
        tolerance=found.tolerance,
    )
