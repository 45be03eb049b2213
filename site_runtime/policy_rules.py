"""What a hospital's policy says of a study: one rule after the other, each with a number of its own.

A rule reads the protocol, `site.yaml` and the clock, never data, so that a refusal tells nothing of a
patient. A study may ask for more protection than the policy, never for less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from contracts.errors import ConsiliumError
from contracts.privacy import HospitalPrivacy, NoPrivacy, PatientPrivacy
from contracts.schedule import deadline_of, task_seconds
from contracts.study import StudyProtocol
from privacy.calibration import steps_of
from site_runtime.config import SiteConfig
from site_runtime.policy_terms import Output, Use, listed, permitted

# What data are touched for: an intake, or a plan by its kind.
Purpose = Literal["intake", "statistics", "training", "histogram", "local", "evaluation", "verification"]

USES: dict[Purpose, Use] = {
    "statistics": "training",
    "training": "training",
    "histogram": "training",
    "local": "training",
    "evaluation": "evaluation",
    "verification": "evaluation",
}


@dataclass(frozen=True)
class Verdict:
    """One rule on one study: what the study asks for, what the hospital allows, the refusal if it is one."""

    rule: str
    asked: str
    allowed: str
    error: ConsiliumError | None = None


def study_purposes(protocol: StudyProtocol) -> list[Purpose]:
    """Everything that a study will touch data for, from intake to release, in order."""
    planned: list[tuple[Purpose, bool]] = [
        ("intake", True),
        ("statistics", protocol.first_round == 0),
        ("training", True),
        ("histogram", protocol.threshold_rule is not None),
        ("local", protocol.validation.local_model),
        ("evaluation", True),
        ("verification", True),
    ]
    return [purpose for purpose, wanted in planned if wanted]


def outputs_of(protocol: StudyProtocol, purpose: Purpose) -> list[Output]:
    """What leaves for a purpose, beside the data sheet of an intake. Of a local model nothing does."""
    if purpose in ("statistics", "histogram"):
        return ["sums"]
    if purpose == "training":
        return ["updates"]
    if purpose == "evaluation" and isinstance(protocol.privacy, PatientPrivacy):
        return ["evaluation", "ledger"]
    return ["evaluation"] if purpose in ("evaluation", "verification") else []


def first_refusal(verdicts: Sequence[Verdict]) -> None:
    """Raise the first refusal there is.

    Raises:
        ConsiliumError: the number of the rule that refuses.
    """
    for verdict in verdicts:
        if verdict.error is not None:
            raise verdict.error


def verdict(rule: str, asked: str, allowed: str, check: Callable[[], None]) -> Verdict:
    """Make the verdict of a check that passes or raises its refusal."""
    try:
        check()
    except ConsiliumError as error:
        return Verdict(rule, asked, allowed, error)
    return Verdict(rule, asked, allowed)


def study_rules(
    config: SiteConfig, protocol: StudyProtocol, purposes: Sequence[Purpose], moment: datetime
) -> list[Verdict]:
    """What the policy says of a study, for everything that data shall be touched for.

    Raises:
        Nothing: refusals (E304, E307 to E318, E320) are in the verdicts.
    """
    return [
        *_ethics(config, protocol, moment),
        *_agreement(config, protocol, purposes, moment),
        *_least(config, protocol),
        *_methods(config, protocol),
        *_resources(config, protocol, purposes),
    ]


def hours_rule(config: SiteConfig, moment: datetime) -> Verdict:
    """Whether data may be touched now (E319)."""
    policy = config.policy
    allowed = ", ".join(policy.hours) or "always"
    shown = f"{moment:%Y-%m-%dT%H:%M:%SZ}"
    error = None
    if not policy.opens(moment):
        error = ConsiliumError("E319", f"{shown}, expected within {allowed} ({policy.time_zone})")
    return Verdict("hours", f"work at {shown}", f"{allowed} ({policy.time_zone})", error)


def _refused(number: str, field: str, value: object, expected: str) -> ConsiliumError:
    return ConsiliumError(number, f"site.yaml, {field}: {value}, expected {expected}")


def _ethics(config: SiteConfig, protocol: StudyProtocol, moment: datetime) -> Iterator[Verdict]:
    irb, dpia, today = config.policy.irb, config.policy.dpia, config.policy.today(moment)
    asked = f"study {protocol.study}, version {protocol.hash[:12]}"
    if irb is None:
        yield Verdict(
            "ethics approval",
            asked,
            "none",
            _refused("E307", "policy.irb", "not there", "the IRB's approval"),
        )
    else:
        error: ConsiliumError | None = None
        if not irb.approved <= today <= irb.expires:
            span = f"{irb.approved} to {irb.expires}"
            error = _refused("E308", "policy.irb", span, f"a span that holds today, {today}")
        elif not permitted(protocol.study, irb.scope) and protocol.hash not in irb.scope:
            wanted = f"{protocol.study} or {protocol.hash}"
            error = _refused("E309", "policy.irb.scope", listed(irb.scope), wanted)
        reliance = "" if irb.reliance == "none" else f", relying on {irb.reliance}"
        yield Verdict("ethics approval", asked, f"{irb.protocol}{reliance}, until {irb.expires}", error)
    if dpia is None:
        error = _refused("E314", "policy.dpia", "not there", "reference and date of the assessment")
        yield Verdict("impact assessment", "one on record", "none", error)
    else:
        yield Verdict("impact assessment", "one on record", f"{dpia.reference}, {dpia.date}")


def _agreement(
    config: SiteConfig, protocol: StudyProtocol, purposes: Sequence[Purpose], moment: datetime
) -> Iterator[Verdict]:
    dua, today = config.policy.dua, config.policy.today(moment)
    uses = list(dict.fromkeys(USES[p] for p in purposes if p in USES))
    outputs = list(dict.fromkeys(o for p in purposes for o in outputs_of(protocol, p)))
    if dua is None:
        error = _refused("E310", "policy.dua", "not there", "the data use agreement")
        yield Verdict("data use agreement", ", ".join([*uses, *outputs]), "none", error)
        return
    expired: ConsiliumError | None = None
    if today > dua.expires:
        expired = _refused("E311", "policy.dua.expires", dua.expires, f"a day from today, {today}, on")
    yield Verdict(
        "data use agreement", "one in force", f"{dua.reference} until {dua.expires}".strip(), expired
    )
    for number, rule, field, wanted, allowed in (
        ("E312", "purposes", "policy.dua.purposes", uses, dua.purposes),
        ("E313", "what leaves", "policy.dua.permitted_outputs", outputs, dua.permitted_outputs),
    ):
        missing = [name for name in wanted if name not in allowed]
        named = ", ".join(allowed) or "nothing"
        absent = _refused(number, field, named, ", ".join(missing)) if missing else None
        yield Verdict(rule, ", ".join(wanted) or "a data sheet", named, absent)


def _least(config: SiteConfig, protocol: StudyProtocol) -> Iterator[Verdict]:
    """The smallest cohort and count, and how exact an update may be."""
    policy, cohort, error = config.policy, protocol.cohort, None
    if cohort.minimum_patients < policy.minimum_cohort:
        least = f"at most {cohort.minimum_patients}, which the study asks for"
        error = _refused("E315", "policy.minimum_cohort", policy.minimum_cohort, least)
    yield Verdict(
        "smallest cohort",
        f"{cohort.minimum_patients} patients in training",
        f"from {policy.minimum_cohort} patients on",
        error,
    )
    cell = max(cohort.minimum_cell, policy.minimum_cell)
    yield Verdict(
        "smallest count",
        f"counts from {cohort.minimum_cell} patients on",
        f"from {policy.minimum_cell} on; the larger of the two, {cell}, is kept",
    )
    yield _exactness(config, protocol)


def _exactness(config: SiteConfig, protocol: StudyProtocol) -> Verdict:
    rule, privacy, allowed = "exact updates", protocol.privacy, config.policy.exact_updates
    named = {True: "yes", False: "no", "summed": "only under secure aggregation"}[allowed]
    if isinstance(privacy, PatientPrivacy):
        return Verdict(rule, f"none: noise is added here, epsilon {privacy.epsilon:g} for a patient", named)
    if isinstance(privacy, NoPrivacy):
        asked = "sends updates without differential privacy"
    else:
        assert isinstance(privacy, HospitalPrivacy)
        asked = "sends exact updates to the coordinator, which adds the noise"
    error = None
    if not config.policy.lets_exact_leave(protocol):
        error = ConsiliumError(
            "E304",
            f"study {protocol.study!r} {asked} (privacy.mode {privacy.mode}); "
            "site.yaml would have to say policy.exact_updates: true",
        )
    return Verdict(rule, asked, named, error)


def _methods(config: SiteConfig, protocol: StudyProtocol) -> Iterator[Verdict]:
    policy = config.policy
    for number, field, name, allowed in (
        ("E316", "models", protocol.model.name, policy.models),
        ("E317", "strategies", protocol.strategy.name, policy.strategies),
        ("E318", "aggregation", protocol.strategy.aggregation.method, policy.aggregation),
    ):
        shown = listed(allowed)
        error = None
        if not permitted(name, allowed):
            error = _refused(number, f"policy.{field}", shown, f"{name} or any")
        yield Verdict({"models": "model", "strategies": "strategy"}.get(field, field), name, shown, error)


def _resources(config: SiteConfig, protocol: StudyProtocol, purposes: Sequence[Purpose]) -> Iterator[Verdict]:
    limits = config.policy.resources
    seconds = max(
        task_seconds(protocol, "intake") if purpose == "intake" else deadline_of(protocol, purpose)
        for purpose in purposes
    )
    steps = max((steps_of(protocol, p) for p in purposes if p in ("training", "local")), default=0)
    for field, unit, needed, most in (
        ("max_seconds", "seconds for a task", seconds, limits.max_seconds),
        ("max_steps", "optimiser steps in a task", steps, limits.max_steps),
    ):
        if not needed:
            continue
        error = None
        if most is not None and needed > most:
            error = _refused("E320", f"policy.resources.{field}", most, f"at least {needed}")
        yield Verdict("resources", f"{needed} {unit}", "no limit" if most is None else f"{most}", error)
