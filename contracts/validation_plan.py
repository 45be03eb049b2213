"""What a protocol says beforehand of its validation: comparisons, diagnostics, error budget, sign-off."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from contracts.fields import Contract, FeatureName, Finite, Text

Role = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{1,31}$")]


class ThresholdRange(Contract):
    """Decision thresholds over which net benefit is reported (Vickers & Elkin, Med Decis Making 26, 2006)."""

    low: Annotated[float, Field(gt=0, lt=1)]
    high: Annotated[float, Field(gt=0, lt=1)]

    @model_validator(mode="after")
    def _ordered(self) -> ThresholdRange:
        if not self.low < self.high:
            raise ValueError(f"net_benefit must be low < high, got {self.low:g} and {self.high:g}")
        return self


class ScoreTerm(Contract):
    """What one feature adds to a reference score: `coefficient` x value, or the points of its level.

    A missing value counts as `missing`; a level that is not named adds 0.
    """

    feature: FeatureName
    coefficient: Finite | None = None  # per unit of the feature, as the protocol declares the unit
    levels: Annotated[dict[str, Finite], Field(max_length=64)] | None = None  # level as text -> points
    missing: Finite = 0.0  # value (of a coefficient) or points (of levels)

    @model_validator(mode="after")
    def _one(self) -> ScoreTerm:
        if (self.coefficient is None) == (self.levels is None):
            raise ValueError(f"term {self.feature} needs exactly one of coefficient and levels")
        for level in self.levels or {}:
            try:
                float(level)
            except ValueError:
                raise ValueError(f"term {self.feature}: level {level!r} is no number") from None
        return self


class ReferenceScore(Contract):
    """The current standard of care as a published score: risk = sigmoid(intercept + sum of terms)."""

    name: Text
    source: Text  # citation
    intercept: Finite
    terms: Annotated[list[ScoreTerm], Field(min_length=1, max_length=200)]


class Diagnostics(Contract):
    """What must hold before anybody may see how well the model does.

    A hospital counts as testable with at least `minimum_events` events and as many non-events in its
    holdout; `testable_sites` hospitals must be. Prevalence and missingness of every testable holdout must lie
    within what the protocol declares (`label.prevalence`, `max_missing`), and every holdout must be the one
    that was frozen before its hospital's first round.
    """

    minimum_events: Annotated[int, Field(ge=1)] = 10
    testable_sites: Annotated[int, Field(ge=1)] = 1
    prevalence: bool = True
    missingness: bool = True


class ErrorBudget(Contract):
    """How much error non-inferiority may make over the planned releases of a product, shared equally.

    Each of `releases` gets alpha / releases (Bonferroni), one-sided.
    """

    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    releases: Annotated[int, Field(ge=1, le=100)] = 10


class ValidationPlan(Contract):
    """The validation that was planned before training.

    `local_model`: each hospital also trains a model of its own, with the same mechanism and as many steps,
    and compares it on its holdout; with differential privacy it is a planned part of the study's spending.
    `leave_one_site_out`: one further model per hospital, trained by all the others; the number is the most
    hospitals that may take part, which the spending is planned for.
    """

    net_benefit: ThresholdRange | None = None
    reference: ReferenceScore | None = None
    local_model: bool = False
    leave_one_site_out: Annotated[int, Field(ge=3, le=100)] | None = None
    diagnostics: Diagnostics = Diagnostics()
    error_budget: ErrorBudget = ErrorBudget()


class SignOff(Contract):
    """Who approves a candidate: one or two people in different roles, each an Airflow user of that name."""

    roles: Annotated[list[Role], Field(min_length=1, max_length=2)] = ["clinician"]

    @model_validator(mode="after")
    def _different(self) -> SignOff:
        if len(set(self.roles)) < len(self.roles):
            raise ValueError(f"two different people approve, got roles {', '.join(self.roles)}")
        return self
