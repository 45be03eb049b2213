"""Everything that a release is made from, as one typed value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from contracts.evaluation import EvaluationReport, HoldoutDiagnostics
from contracts.release import INVESTIGATIONAL, Change, GateResult, Lineage, ReleaseManifest, SitePrivacy
from contracts.study import StudyProtocol, threshold_of


@dataclass(frozen=True)
class Evidence:
    """What was brought to the coordinator from outside the study, each part with its own date.

    Attributes:
        tests: result of each test by its pytest id, `passed`, `failed` or `skipped`; from a JUnit report.
        tests_time: when these tests ran, UTC; None without a report.
        scan: vulnerability scan as CycloneDX JSON (parsed); None without one.
        scan_time: when it was made, UTC.
        vex: VEX statements as CycloneDX JSON (parsed): id of a vulnerability and its analysis.
    """

    tests: Mapping[str, str] = field(default_factory=dict)
    tests_time: str | None = None
    scan: Mapping[str, Any] | None = None
    scan_time: str | None = None
    vex: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Component:
    """One installed package: third-party software (SOUP, IEC 62304:2006 clause 8.1.2)."""

    name: str
    version: str
    license: str = ""  # as its own metadata says; empty when it says nothing
    runtime: bool = False  # needed to run model.onnx at a deployment; else to make the release
    requires: Sequence[str] = ()  # names of installed packages that it needs; empty where nobody looked


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
        ledgers: excerpts of the ledgers (JSONL) by who keeps them, a hospital or (hospital-level privacy) the
            coordinator; the epsilon above can be composed anew from them.
        verification: one report per hospital on the exported file, with `parity`.
        training_noise: noise multiplier of each training step; None without differential privacy.
        statistics_noise: noise multiplier of the normalisation statistics; None when declared or without DP.
        histogram_noise: noise multiplier of the histogram for the threshold; None without one or without DP.
        threshold: the decision threshold locked after training; None when the protocol fixes it.
        threshold_found: of the histogram's record: rule, value, what it achieves in training, standard error.
        achievable_auroc: of the true risk, where a simulated cohort makes it known.
        lineage: data, rounds, code and environment.
        change: since the product's release before.
        previous: manifest of that release; None for the first.
        verified: when the last hospital had verified the exported model, UTC.
        triggered_by: the Airflow user who started the release run; None when nobody did.
        data_sheets: each hospital's signed data sheet (canonical text), by hospital.
        diagnostics: what each hospital's holdout must fulfil before performance is seen, by hospital.
        events: the study's event log (JSONL, hash-chained) up to this candidate.
        evidence: test results, vulnerability scan, VEX statements.
        components: installed packages of the coordinator, where training's other half ran.
        regulatory: the regulatory status that applies.
        regulatory_statement: signed text by the person who changed it; None while it is the default.
        withdrawn: hospitals that withdrew in mid-study, with the first exchange without them.
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
    ledgers: Mapping[str, bytes] = field(default_factory=dict)
    verification: Sequence[EvaluationReport] = ()
    training_noise: float | None = None
    statistics_noise: float | None = None
    histogram_noise: float | None = None
    threshold: float | None = None
    threshold_found: Mapping[str, Any] = field(default_factory=dict)
    achievable_auroc: Mapping[str, float] = field(default_factory=dict)
    lineage: Lineage = field(default_factory=lambda: Lineage(data=[], rounds=[], environment="0" * 64))
    change: Change = field(default_factory=lambda: Change(level="first"))
    previous: ReleaseManifest | None = None
    verified: str | None = None  # None: as `created`
    triggered_by: str | None = None
    data_sheets: Mapping[str, str] = field(default_factory=dict)
    diagnostics: Mapping[str, HoldoutDiagnostics] = field(default_factory=dict)
    events: bytes = b""
    evidence: Evidence = field(default_factory=Evidence)
    components: Sequence[Component] = ()
    regulatory: str = INVESTIGATIONAL
    regulatory_statement: str | None = None
    withdrawn: Mapping[str, int] = field(default_factory=dict)

    @property
    def product(self) -> str:
        """Under which name releases are versioned."""
        return self.protocol.product_name

    @property
    def release_id(self) -> str:
        """`heart-disease@v1.0.0`."""
        return f"{self.product}@v{self.version}"

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
        return largest_epsilon(self.protocol, self.site_privacy)

    @property
    def delta(self) -> float | None:
        """The protocol's delta; None without differential privacy."""
        privacy = self.protocol.privacy
        return None if privacy.mode == "none" else privacy.delta


def largest_epsilon(protocol: StudyProtocol, spent: Sequence[SitePrivacy]) -> float | None:
    """The largest epsilon over the hospitals for a study; None without privacy or when any states none."""
    stated = [p.epsilon_study for p in spent]
    if protocol.privacy.mode == "none" or not stated or any(e is None for e in stated):
        return None
    return max(e for e in stated if e is not None)
