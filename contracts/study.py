"""The study protocol: one clinical question and every rule of how it is answered. No site is named in it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Discriminator, Field, Tag, ValidationError, model_validator

from contracts.canonical import digest
from contracts.dossier import Dossier
from contracts.errors import ConsiliumError
from contracts.fields import (
    Contract,
    FeatureName,
    Finite,
    LongText,
    Positive,
    Probability,
    StudyName,
    Text,
    Unit,
)
from contracts.gates import Gate
from contracts.privacy import HospitalPrivacy, Privacy
from contracts.signing import first_problem
from contracts.strategy import MAX_SECURE_SITES, Secure, Strategy
from contracts.validation_plan import SignOff, ValidationPlan
from contracts.yaml_text import load_yaml


class NumericFeature(Contract):
    """A measured quantity. Values outside `range` are implausible in `unit`."""

    name: FeatureName
    kind: Literal["numeric"]
    unit: Unit
    range: tuple[Finite, Finite]
    max_missing: Probability = 0.5
    description: Text = ""

    @model_validator(mode="after")
    def _ordered(self) -> NumericFeature:
        if not self.range[0] < self.range[1]:
            raise ValueError(f"range of {self.name} must be [low, high] with low < high, got {self.range}")
        return self


class CategoricalFeature(Contract):
    """A coded quantity; the first level is the reference of the one-hot encoding."""

    name: FeatureName
    kind: Literal["categorical"]
    levels: Annotated[list[Finite], Field(min_length=2, max_length=64)]
    unit: Unit = "code"
    max_missing: Probability = 0.5
    description: Text = ""

    @model_validator(mode="after")
    def _distinct(self) -> CategoricalFeature:
        if len(set(self.levels)) < len(self.levels):
            raise ValueError(f"levels of {self.name} must differ, got {self.levels}")
        return self


Feature = Annotated[NumericFeature | CategoricalFeature, Field(discriminator="kind")]


class Cohort(Contract):
    """Who is in the study and how records become a patient's contribution."""

    description: Text = ""
    max_records: Annotated[int, Field(ge=1, le=64)] = 1  # of one patient, per step
    complete_cases: bool = False  # drop a record in which any feature is missing
    minimum_patients: Annotated[int, Field(ge=1)] = 50  # in training
    minimum_cell: Annotated[int, Field(ge=2)] = 10  # smallest count that may leave a site


class Label(Contract):
    """The outcome, coded 0/1, and the prevalence that a plausible site has."""

    name: FeatureName
    positive: Text
    prevalence: tuple[Probability, Probability] = (0.0, 1.0)

    @model_validator(mode="after")
    def _ordered(self) -> Label:
        if not self.prevalence[0] < self.prevalence[1]:
            raise ValueError(f"prevalence must be [low, high] with low < high, got {self.prevalence}")
        return self


class Subgroup(Contract):
    """A partition of patients by one feature: its levels, or the bands between `edges`."""

    name: FeatureName
    feature: FeatureName
    edges: Annotated[list[Finite], Field(max_length=8)] = []

    @model_validator(mode="after")
    def _increasing(self) -> Subgroup:
        if any(low >= high for low, high in itertools.pairwise(self.edges)):
            raise ValueError(f"edges of {self.name} must increase, got {self.edges}")
        return self


class Holdout(Contract):
    """Patients that training never sees: a keyed hash, or (declared exception) a list at the site."""

    method: Literal["keyed", "list"] = "keyed"
    fraction: Annotated[float, Field(gt=0, lt=0.9)] = 0.25
    minimum_patients: Annotated[int, Field(ge=1)] = 10


class Model(Contract):
    """An entry of the model registry and its size.

    Every model reads one vector of features per record. `lstm` reads it as `time_steps` blocks of equal
    length, oldest first; `cnn` as an image [channels x] height x width, row by row.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{1,31}$")]
    hidden: Annotated[list[Annotated[int, Field(ge=1, le=4096)]], Field(max_length=8)] = []
    missing_indicators: bool = False
    time_steps: Annotated[int, Field(ge=2, le=1000)] | None = None
    image: Annotated[list[Annotated[int, Field(ge=1, le=1024)]], Field(min_length=2, max_length=3)] | None = (
        None
    )
    norm: Literal["group", "batch", "none"] = "group"  # between the layers of a cnn


class Training(Contract):
    """What a site does in one round: `steps` optimiser steps on Poisson batches of patients."""

    steps: Annotated[int, Field(ge=1, le=100_000)]  # per round
    sample_rate: Annotated[float, Field(gt=0, le=1)]
    learning_rate: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    normalisation: Literal["federated", "declared"] = "federated"
    sampling: Literal["poisson", "shuffled"] = "poisson"  # shuffled: only without differential privacy
    normaliser: Literal["declared", "cohort"] = "declared"  # of the summed gradient; cohort: only without
    class_weights: Literal["none", "balanced"] = "none"  # balanced: by the label counts of round 0


class ThresholdRule(Contract):
    """A decision threshold read off a ledgered histogram of the training patients' risks (design section 5).

    It is locked before any holdout is read: the largest threshold with at least `sensitivity`, or the
    smallest with at most `alert_rate` alerts per patient.
    """

    sensitivity: Annotated[float, Field(gt=0, lt=1)] | None = None
    alert_rate: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _one(self) -> ThresholdRule:
        if (self.sensitivity is None) == (self.alert_rate is None):
            raise ValueError("a threshold rule needs exactly one of sensitivity and alert_rate")
        return self


def _threshold_form(value: object) -> str:
    return "rule" if isinstance(value, (dict, ThresholdRule)) else "number"


# Told apart by their form, so that a mistake in a rule is not reported as a number that is none.
DecisionThreshold = Annotated[
    Annotated[float, Field(gt=0, lt=1), Tag("number")] | Annotated[ThresholdRule, Tag("rule")],
    Discriminator(_threshold_form),
]


class Quality(Contract):
    """Severity of the data-quality checks: blocking ones keep a site out of the next plan."""

    blocking: Annotated[
        list[Literal["type", "range", "levels", "missingness", "uniqueness", "label", "prevalence", "time"]],
        Field(max_length=8),
    ] = ["type", "range", "levels", "missingness", "uniqueness", "label", "prevalence", "time"]
    max_out_of_range: Probability = 0.01  # share of a column's present values


class StudyProtocol(Contract):
    """One clinical question with its protocol; `hash` identifies it for ever."""

    schema_version: Literal["consilium/study/1"] = Field(alias="schema")
    study: StudyName
    title: Text
    intended_use: LongText
    cohort: Cohort
    features: Annotated[list[Feature], Field(min_length=1, max_length=2000)]
    label: Label
    auxiliary_labels: Annotated[list[Label], Field(max_length=16)] = []  # further heads, for training alone
    subgroups: Annotated[list[Subgroup], Field(max_length=16)] = []
    quality: Quality = Quality()
    holdout: Holdout = Holdout()
    model: Model
    strategy: Strategy = Strategy()
    training: Training
    privacy: Privacy
    rounds: Annotated[int, Field(ge=1, le=10_000)]
    min_sites: Annotated[int, Field(ge=1, le=1000)]
    deadline_seconds: Annotated[int, Field(ge=5, le=7 * 86400)] = 120  # for one site's task in one round
    cadence: Literal["continuous", "cron"] = "continuous"
    cron: Text | None = None
    intake_cron: Text | None = None
    decision_threshold: DecisionThreshold = 0.5
    gates: Annotated[list[Gate], Field(max_length=64)] = []
    validation: ValidationPlan = ValidationPlan()
    sign_off: SignOff = SignOff()
    dossier: Dossier = Dossier()
    # A product is released again by a study that amends the one before, under a name of its own.
    product: StudyName | None = None  # the study's own name when not given
    amends: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> StudyProtocol:
        names = [f.name for f in self.features]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"features are named twice: {', '.join(twice)}")
        labels = [label.name for label in (self.label, *self.auxiliary_labels)]
        for label in labels:
            if label in names:
                raise ValueError(f"label {label!r} is also a feature")
        if len(set(labels)) < len(labels):
            raise ValueError(f"labels are named twice: {', '.join(labels)}")
        for group in self.subgroups:
            feature = next((f for f in self.features if f.name == group.feature), None)
            if feature is None:
                raise ValueError(f"subgroup {group.name!r} names unknown feature {group.feature!r}")
            if isinstance(feature, NumericFeature) and not group.edges:
                raise ValueError(f"subgroup {group.name!r} on numeric {group.feature!r} needs edges")
        known = {s.name for s in self.subgroups}
        if len(known) < len(self.subgroups):
            raise ValueError("two subgroups have the same name")
        for gate in self.gates:
            if gate.subgroup is not None and gate.subgroup not in known:
                raise ValueError(f"gate names unknown subgroup {gate.subgroup!r}")
        self._validation_fits()
        if isinstance(self.privacy, HospitalPrivacy):
            self._only_noised_sums()
            if self.strategy.aggregation.method not in ("norm_bound", "mean"):
                raise ValueError(
                    f"strategy.aggregation {self.strategy.aggregation.method!r}, expected 'mean' with "
                    "privacy.mode site, which clips every update and noises the weighted sum"
                )
        if self.secure is not None:
            self._sums_hide(self.secure)
        if (self.cadence == "cron") != (self.cron is not None):
            raise ValueError("cadence: cron and cron: '...' go together")
        if self.training.class_weights == "balanced" and self.training.normalisation != "federated":
            raise ValueError("class_weights: balanced needs normalisation: federated, to count labels")
        if self.threshold_rule is not None and self.privacy.mode == "site":
            raise ValueError("a threshold from training has no noise of its own under privacy mode site")
        return self

    def _sums_hide(self, secure: Secure) -> None:
        """Under masks no two planned sums may differ by one hospital's exact part."""
        if self.min_sites > MAX_SECURE_SITES:
            raise ValueError(
                f"min_sites {self.min_sites}, expected at most {MAX_SECURE_SITES} with "
                f"strategy.aggregation {secure.method}"
            )
        if self.validation.leave_one_site_out and self.first_round == 0:
            raise ValueError(
                "validation.leave_one_site_out takes one hospital's statistics off their sum, which "
                "strategy.aggregation secure keeps from everybody; expected training.normalisation declared"
            )
        if self.validation.leave_one_site_out and self.privacy.mode != "patient":
            raise ValueError(
                "validation.leave_one_site_out trains from one first model with and without a hospital: the "
                "sums differ by its exact update, which strategy.aggregation secure keeps from everybody; "
                "expected privacy.mode patient"
            )

    def _validation_fits(self) -> None:
        """The planned comparisons must be possible, and every gate's baseline planned."""
        plan, names = self.validation, {f.name for f in self.features}
        for term in plan.reference.terms if plan.reference else []:
            if term.feature not in names:
                raise ValueError(f"validation.reference names unknown feature {term.feature!r}")
        for gate in self.gates:
            planned = {"local": plan.local_model, "reference": plan.reference is not None}
            if gate.against is not None and not planned.get(gate.against, True):
                raise ValueError(f"a gate compares with {gate.against!r}, which validation does not plan")
        extra = "local_model" if plan.local_model else "leave_one_site_out"
        if self.privacy.mode == "site" and (plan.local_model or plan.leave_one_site_out):
            raise ValueError(f"validation.{extra} has no noise of its own under privacy mode site")
        if self.product is not None and self.product != self.study and self.amends is None:
            raise ValueError(f"product {self.product!r} of another study needs amends: that study's hash")

    def _only_noised_sums(self) -> None:
        """With hospital-level privacy only the noised sums of updates may come from a hospital's data."""
        reason = "with privacy.mode site, which covers model updates alone"
        if self.training.normalisation != "declared":
            raise ValueError(
                f"training.normalisation {self.training.normalisation!r}, expected 'declared' {reason}"
            )
        if self.training.class_weights != "none":
            raise ValueError(
                f"training.class_weights {self.training.class_weights!r}, expected 'none' {reason}"
            )
        if isinstance(self.decision_threshold, ThresholdRule):
            raise ValueError(f"decision_threshold is a rule, expected a number {reason}")

    def body(self) -> dict[str, Any]:
        """The fields the author wrote, plus the schema version: what is hashed and signed."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON of `body()`."""
        return digest(self.body())

    @property
    def product_name(self) -> str:
        """Under which name releases are versioned."""
        return self.product or self.study

    @property
    def secure(self) -> Secure | None:
        """How updates are summed under masks; None when the coordinator sees every update."""
        return self.strategy.aggregation if isinstance(self.strategy.aggregation, Secure) else None

    @property
    def first_round(self) -> int:
        """0 when a round of federated statistics comes before training, else 1."""
        return 0 if self.training.normalisation == "federated" else 1

    @property
    def threshold_rule(self) -> ThresholdRule | None:
        """How the decision threshold is read off training; None when the protocol fixes it."""
        return self.decision_threshold if isinstance(self.decision_threshold, ThresholdRule) else None

    @property
    def last_round(self) -> int:
        """The last exchange that makes the released model: a histogram, if a rule asks for one.

        What validation plans beyond it is in `contracts.schedule`.
        """
        return self.rounds if self.threshold_rule is None else self.rounds + 1

    @property
    def feature_names(self) -> list[str]:
        """Names of the features in the order of the model's input."""
        return [f.name for f in self.features]


def threshold_of(protocol: StudyProtocol, locked: float | None) -> float:
    """Return the decision threshold of a study: the protocol's own number, or the one locked after training.

    Args:
        locked: of the head or of a plan; None where nothing was locked.

    Raises:
        ConsiliumError: E426, a rule and nothing locked, or a number locked beside the protocol's own.
    """
    declared = protocol.decision_threshold
    if isinstance(declared, ThresholdRule):
        if locked is None:
            raise ConsiliumError("E426", "decision_threshold is a rule, and no threshold was locked")
        return locked
    if locked is not None and locked != declared:
        raise ConsiliumError("E426", f"decision_threshold {locked:g}, expected {declared:g}")
    return declared


def parse_study(value: Any, source: str = "study") -> StudyProtocol:
    """Validate the content of a study file.

    Raises:
        ConsiliumError: E101, naming the field, the value and what was expected.
    """
    if not isinstance(value, dict):
        raise ConsiliumError("E101", f"{source}: expected a mapping, got {type(value).__name__}")
    seed = find_seed(value)
    if seed is not None and value.get("privacy") != {"mode": "none"}:
        raise ConsiliumError("E405", f"{source}: field {seed!r}, expected none")
    try:
        return StudyProtocol.model_validate(value)
    except ValidationError as error:
        raise ConsiliumError("E101", f"{source}: {first_problem(error)}") from error


def find_seed(value: Any, path: str = "") -> str | None:
    """Where a configuration names a seed, at any depth; None if nowhere."""
    parts: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        parts = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list):
        parts = [(str(number), inner) for number, inner in enumerate(value)]
    for key, inner in parts:
        here = f"{path}.{key}" if path else key
        if key in ("seed", "random_seed", "noise_seed"):
            return here
        found = find_seed(inner, here)
        if found is not None:
            return found
    return None


def load_study(path: Path) -> StudyProtocol:
    """Read a study from a YAML (or JSON) file.

    Raises:
        ConsiliumError: E101 for a file that is missing, no YAML or no valid study.
    """
    try:
        value = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConsiliumError("E101", f"{path}: {error}") from error
    return parse_study(value, str(path))
