"""What an amendment may not loosen: what a product has to reach may only tighten from release to release."""

from __future__ import annotations

from contracts.gates import Gate
from contracts.study import StudyProtocol


def loosened(before: StudyProtocol, after: StudyProtocol) -> list[str]:
    """Say where `after` asks for less than `before`; empty when it asks for as much or more everywhere.

    Compared are the gates (by metric, scope, bound, subgroup and baseline) with all that they rest on: the
    subgroups they name, the reference score, the hospitals and patients that count; the diagnostics with what
    they check against; the error budget; and the roles that sign off.
    """
    return [
        *_gates(before, after),
        *_grounds(before, after),
        *_patients(before, after),
        *_diagnostics(before, after),
        *_error_budget(before, after),
        *(
            f"sign_off.roles lacks {role!r}"
            for role in before.sign_off.roles
            if role not in after.sign_off.roles
        ),
    ]


def _gates(before: StudyProtocol, after: StudyProtocol) -> list[str]:
    """Every limit of every earlier gate must be held by some gate on the same quantity."""
    found = []
    for gate in before.gates:
        same = [g for g in after.gates if _quantity(g) == _quantity(gate)]
        floors = [g.at_least for g in same if g.at_least is not None]
        ceilings = [g.at_most for g in same if g.at_most is not None]
        margins = [g.margin for g in same if g.margin is not None]
        if not same:
            found.append(f"gate dropped: {gate.title}")
        elif (
            (gate.at_least is not None and max(floors, default=-1e300) < gate.at_least)
            or (gate.at_most is not None and min(ceilings, default=1e300) > gate.at_most)
            or (gate.margin is not None and min(margins, default=1e300) > gate.margin)
        ):
            found.append(f"gate loosened: {gate.title} -> {'; '.join(g.title for g in same)}")
    return found


def _quantity(gate: Gate) -> tuple[str | None, ...]:
    return gate.metric, gate.scope, gate.bound, gate.subgroup, gate.against


def _grounds(before: StudyProtocol, after: StudyProtocol) -> list[str]:
    """What gates are computed from: the same limit over other groups or another score is another limit."""
    groups = {group.name: group for group in after.subgroups}
    named = {gate.subgroup for gate in before.gates if gate.subgroup is not None}
    found = [
        f"subgroup {group.name!r} of a gate changed"
        for group in before.subgroups
        if group.name in named and groups.get(group.name) != group
    ]
    against = {gate.against for gate in before.gates}
    if "reference" in against and before.validation.reference != after.validation.reference:
        found.append("validation.reference, which a gate compares with, changed")
    return found


def _patients(before: StudyProtocol, after: StudyProtocol) -> list[str]:
    """Who is left out of a gate: hospitals under a larger cell, incomplete or chosen patients."""
    if not before.gates:
        return []
    found = []
    if after.min_sites < before.min_sites:
        found.append(f"min_sites {after.min_sites}, before {before.min_sites}")
    cell, old_cell = after.cohort.minimum_cell, before.cohort.minimum_cell
    if cell > old_cell:  # a hospital under it shows no metric and stops no gate
        found.append(f"cohort.minimum_cell {cell}, before {old_cell}")
    if after.cohort.complete_cases and not before.cohort.complete_cases:
        found.append("cohort.complete_cases was switched on: incomplete records would not be tested")
    if after.holdout.method == "list" and before.holdout.method != "list":
        found.append("holdout.method 'list': the patients held out could be chosen")
    return found


def _diagnostics(before: StudyProtocol, after: StudyProtocol) -> list[str]:
    old, new = before.validation.diagnostics, after.validation.diagnostics
    found = []
    for name in ("minimum_events", "testable_sites"):
        if getattr(new, name) < getattr(old, name):
            found.append(f"diagnostics.{name} {getattr(new, name)}, before {getattr(old, name)}")
    for name in ("prevalence", "missingness"):
        if getattr(old, name) and not getattr(new, name):
            found.append(f"diagnostics.{name} was switched off")
    if old.prevalence:
        (low, high), (new_low, new_high) = before.label.prevalence, after.label.prevalence
        if new_low < low or new_high > high:
            found.append(f"label.prevalence {new_low:g} to {new_high:g}, before {low:g} to {high:g}")
    if old.missingness:
        allowed = {feature.name: feature.max_missing for feature in before.features}
        found += [
            f"max_missing of {feature.name} {feature.max_missing:g}, before {allowed[feature.name]:g}"
            for feature in after.features
            if feature.max_missing > allowed.get(feature.name, 1.0)
        ]
    return found


def _error_budget(before: StudyProtocol, after: StudyProtocol) -> list[str]:
    """Over all releases the error adds up: so neither one release's share nor their number may grow."""
    old, new = before.validation.error_budget, after.validation.error_budget
    if new.releases > old.releases or new.alpha / new.releases > old.alpha / old.releases * (1 + 1e-12):
        return [
            f"error_budget {new.alpha:g} over {new.releases} releases, before {old.alpha:g} over "
            f"{old.releases}"
        ]
    return []
