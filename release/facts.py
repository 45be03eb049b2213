"""Everything that a release is made from, as one typed value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from contracts.evaluation import EvaluationReport
from contracts.release import GateResult, SitePrivacy
from contracts.study import StudyProtocol, threshold_of


@dataclass(frozen=True)
class ReleaseFacts:
    """What the coordinator knows when a candidate is written; the candidate's bytes follow from it alone.

    Attributes:
        protocol: the study.
        version: SemVer of this release, without `v`.
        code_version: of the coordinator.
        rounds: closed training rounds.
        model: digest of the trained safetensors in the exchange.
        created: UTC, `2026-01-31T12:00:00Z`.
        evaluation: one report per hospital on its holdout.
        metrics: `validation.pooling.metrics_tree(evaluation)`.
        gates: `validation.gates.judge(...)`.
        site_privacy: what each hospital spent, by its own ledger.
        verification: one report per hospital on the exported file, with `parity`.
        training_noise: noise multiplier of each training step; None without differential privacy.
        statistics_noise: noise multiplier of the normalisation statistics; None when declared or without DP.
        histogram_noise: noise multiplier of the histogram for the threshold; None without one or without DP.
        threshold: the decision threshold locked after training; None when the protocol fixes it.
        threshold_found: of the histogram's record: rule, value, what it achieves in training, standard error.
        achievable_auroc: of the true risk, where a simulated cohort makes it known.
    """

    protocol: StudyProtocol
    version: str
    code_version: str
    rounds: int
    model: str
    created: str
    evaluation: Sequence[EvaluationReport]
    metrics: Mapping[str, Any]
    gates: Sequence[GateResult]
    site_privacy: Sequence[SitePrivacy] = ()
    verification: Sequence[EvaluationReport] = ()
    training_noise: float | None = None
    statistics_noise: float | None = None
    histogram_noise: float | None = None
    threshold: float | None = None
    threshold_found: Mapping[str, Any] = field(default_factory=dict)
    achievable_auroc: Mapping[str, float] = field(default_factory=dict)

    @property
    def sites(self) -> list[str]:
        """Names of the hospitals, sorted."""
        return sorted({r.site for r in self.evaluation} | {p.site for p in self.site_privacy})

    @property
    def decision_threshold(self) -> float:
        """Probability from which a patient counts as positive."""
        return threshold_of(self.protocol, self.threshold)

    @property
    def threshold_source(self) -> str:
        """Say in one sentence where the decision threshold comes from."""
        rule, found = self.protocol.threshold_rule, self.threshold_found
        if rule is None:
            return "Fixed in the protocol before training."
        wanted = (
            f"the largest with a sensitivity of at least {rule.sensitivity:g}"
            if rule.sensitivity is not None
            else f"the smallest with at most {rule.alert_rate:g} alerts per patient"
        )
        sentence = (
            f"Read off a histogram of the training patients' risks ({wanted}) and locked before any holdout "
            "was read"
        )
        if not found:
            return sentence + "."
        sentence += (
            f"; in training: sensitivity {found['sensitivity']:.3f}, alerts per patient "
            f"{found['alert_rate']:.3f}"
        )
        if found["standard_error"] > 0:
            sentence += (
                f", standard error {found['standard_error']:.3f} from the noise of the histogram alone"
            )
        return sentence + ". New patients may differ from those of training."

    @property
    def epsilon(self) -> float | None:
        """The largest epsilon over the hospitals for this study; None when any states none."""
        stated = [p.epsilon_study for p in self.site_privacy]
        if self.protocol.privacy.mode == "none" or not stated or any(e is None for e in stated):
            return None
        return max(e for e in stated if e is not None)

    @property
    def delta(self) -> float | None:
        """The protocol's delta; None without differential privacy."""
        privacy = self.protocol.privacy
        return None if privacy.mode == "none" else privacy.delta
