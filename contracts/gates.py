"""Acceptance gates: what a model must reach before it may be released, fixed in the protocol."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from contracts.fields import Contract, FeatureName, Finite

# Facts about the candidate that hold or do not: no limit belongs to them.
Fact = Literal["parity", "ledgers", "approvals", "vulnerabilities"]
FACTS: tuple[Fact, ...] = ("parity", "ledgers", "approvals", "vulnerabilities")

MetricName = Literal[
    "auroc",
    "auprc",
    "accuracy",
    "sensitivity",
    "specificity",
    "ppv",
    "npv",
    "alert_rate",
    "brier",
    "ece",
    "calibration_slope",
    "calibration_intercept",
    "observed_expected",
    "net_benefit",
]
Metric = Literal[MetricName, "subgroup_gap", "difference", "non_inferiority", "epsilon", Fact]

Baseline = Literal["local", "reference", "previous", "first"]


class Gate(Contract):
    """An acceptance criterion, fixed before training.

    `bound` says which end of the 95 % interval is compared. `net_benefit` is the advantage over the better of
    treating all and treating none, at the decision threshold. `subgroup_gap` is the largest difference in
    AUROC between groups of `subgroup`, over the pooled federation. `difference` and `non_inferiority` compare
    the AUROC with a baseline (`against`) on the same patients; `non_inferiority` passes when the lower bound
    of the pooled difference, at the level that `validation.error_budget` leaves this release, is at least
    `-margin`. `parity`, `ledgers`, `approvals` and `vulnerabilities` are facts that hold or do not.
    """

    metric: Metric
    scope: Literal["pooled", "site"] = "pooled"
    bound: Literal["point", "lower", "upper"] = "point"
    at_least: Finite | None = None
    at_most: Finite | None = None
    subgroup: FeatureName | None = None
    against: Baseline | None = None
    margin: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_validator(mode="after")
    def _decidable(self) -> Gate:
        limited = self.at_least is not None or self.at_most is not None
        if self.metric in FACTS or self.metric == "non_inferiority":
            if limited:
                raise ValueError(f"a gate on {self.metric} takes neither at_least nor at_most")
        elif not limited:
            raise ValueError("a gate needs at_least or at_most")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"at_least {self.at_least:g} is above at_most {self.at_most:g}")
        if (self.metric == "subgroup_gap") != (self.subgroup is not None):
            raise ValueError("subgroup_gap and subgroup go together")
        if (self.metric in ("difference", "non_inferiority")) != (self.against is not None):
            raise ValueError("difference or non_inferiority and against go together")
        if (self.metric == "non_inferiority") != (self.margin is not None):
            raise ValueError("non_inferiority and margin go together")
        if self.metric in ("non_inferiority", "subgroup_gap") and self.scope == "site":
            raise ValueError(f"{self.metric} is judged over the pooled federation, got scope: site")
        if self.metric == "non_inferiority" and self.bound != "point":
            raise ValueError("non_inferiority has a bound of its own, got bound")
        return self

    @property
    def title(self) -> str:
        """One line for pages: `pooled auroc (lower bound) >= 0.70`."""
        if self.metric in FACTS:
            return {
                "parity": "the exported model agrees with the trained one at every hospital",
                "ledgers": "every hospital's ledger replays to its stated epsilon",
                "approvals": "every hospital's approval of the study is current",
                "vulnerabilities": "no critical vulnerability without a VEX statement",
            }[self.metric]
        if self.metric == "non_inferiority":
            return f"pooled auroc not worse than the {self.against} model by {self.margin:g} or more"
        limits = [f">= {self.at_least:g}"] if self.at_least is not None else []
        limits += [f"<= {self.at_most:g}"] if self.at_most is not None else []
        bound = "" if self.bound == "point" else f" ({self.bound} bound)"
        of = f" of {self.subgroup}" if self.subgroup else ""
        of += f" in auroc to the {self.against} model" if self.against else ""
        scope = "pooled" if self.scope == "pooled" else "every site's"
        return f"{scope} {self.metric}{of}{bound} {' and '.join(limits)}"
