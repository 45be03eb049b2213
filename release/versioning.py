"""What changed since a product's release before, which version follows, and whether the change was planned.

Semantic versions of a model: another training of the same model on the same data is a patch; other data,
other hospitals or another architecture a minor version; another intended use, other inputs, outputs or
another threshold a major one. A major change makes another device, and is refused unless the predetermined
change control plan of the release before named it (section 515C of the FD&C Act; FDA, Marketing Submission
Recommendations for a Predetermined Change Control Plan, 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from contracts.dossier import Changed, Modification
from contracts.errors import ConsiliumError
from contracts.release import Change, Lineage, ReleaseManifest
from contracts.study import CategoricalFeature, Feature, StudyProtocol

MAJOR: frozenset[Changed] = frozenset({"intended_use", "inputs", "outputs", "threshold"})
MINOR: frozenset[Changed] = frozenset({"data", "sites", "architecture"})

# Parts of the intended purpose that stand in the dossier: filling one that was open states what held before.
_PURPOSE = ("users", "setting", "patients", "out_of_scope", "use_of_output")


def classify(
    previous: ReleaseManifest | None,
    before: StudyProtocol | None,
    protocol: StudyProtocol,
    lineage: Lineage,
    sites: Sequence[str],
) -> Change:
    """Say what changed since the product's release before, and which planned modification this is.

    - weights: the trained model is another file (always, unless training gave the same bytes).
    - data: a hospital that is in both releases has another cohort digest, or one of them has none. The digest
      covers the values that the model reads of every patient, and who is held out; it is the same in all
      studies of a product.
    - sites: another set of hospitals.
    - architecture: the protocol's `model`, or its auxiliary labels (heads of the network in training).
    - inputs: names, kinds, units, ranges, levels and order of the features.
    - outputs: name and meaning of the label.
    - threshold: the protocol's number or rule. A number that the same rule read off a new training is not: it
      is part of the retraining, and `release diff` shows it.
    - intended_use: the protocol's text, or a part of the purpose that the dossier already stated.

    Args:
        previous: manifest of that release; None for the first.
        before: its protocol.
        protocol: of the release at hand.
        lineage: of the release at hand.
        sites: hospitals of the release at hand.

    Raises:
        ConsiliumError: E710, there is a release before but no protocol of it, so nothing can be compared.
    """
    if previous is None:
        return Change(level="first")
    if before is None:
        raise ConsiliumError("E710", f"the protocol of {previous.release_id} is missing: nothing to compare")
    found = set(changed_in_protocol(before, protocol))
    if _model(lineage) != previous.model:
        found.add("weights")
    if sorted(sites) != sorted(previous.sites):
        found.add("sites")
    if _data_changed(previous, lineage, sites):
        found.add("data")
    changed = _ordered(found)
    level = "major" if found & MAJOR else "minor" if found & MINOR else "patch"
    planned = next((m for m in planned_modifications(before) if found <= set(m.changes)), None)
    return Change(
        level=level,
        since=previous.version,
        changed=changed,
        modification=planned.id if planned else None,
    )


def changed_in_protocol(before: StudyProtocol, protocol: StudyProtocol) -> list[Changed]:
    """Say what of a change is known from the protocols alone, before anything is trained."""
    found: set[Changed] = set()
    if (before.model, before.auxiliary_labels) != (protocol.model, protocol.auxiliary_labels):
        found.add("architecture")
    if before.decision_threshold != protocol.decision_threshold:
        found.add("threshold")
    if list(map(_input, before.features)) != list(map(_input, protocol.features)):
        found.add("inputs")
    if (before.label.name, before.label.positive) != (protocol.label.name, protocol.label.positive):
        found.add("outputs")
    restated = any(
        getattr(before.dossier, part) not in (None, getattr(protocol.dossier, part)) for part in _PURPOSE
    )
    if restated or before.intended_use != protocol.intended_use:
        found.add("intended_use")
    return _ordered(found)


def next_version(newest: ReleaseManifest | None, change: Change) -> str:
    """Return the version that follows a product's newest one.

    Args:
        newest: release with the highest version, whether or not it is the current one; None for the first.
        change: since the release before.
    """
    if newest is None:
        return "1.0.0"
    major, minor, patch = semver(newest.version)
    if change.level == "major":
        return f"{major + 1}.0.0"
    if change.level == "minor":
        return f"{major}.{minor + 1}.0"
    return f"{major}.{minor}.{patch + 1}"


def planned_modifications(before: StudyProtocol) -> list[Modification]:
    """Modifications that the release before planned; none where nobody authorised the plan."""
    control = before.dossier.change_control
    return list(control.modifications) if control is not None and control.authorised_by else []


def widened(before: StudyProtocol, protocol: StudyProtocol) -> list[str]:
    """Say which major changes a plan allows that the plan of the release before did not name.

    A plan that may grow by a patch allows everything one release later; that it is authorised later is no
    growth.
    """
    named, allowed = (
        {
            kind
            for m in (p.dossier.change_control.modifications if p.dossier.change_control else ())
            for kind in m.changes
        }
        for p in (before, protocol)
    )
    new = [kind for kind in _ordered(allowed - named) if kind in MAJOR]
    return [f"dossier.change_control would allow {kind}, which it did not name" for kind in new]


def require_allowed(change: Change, before: StudyProtocol | None) -> None:
    """Refuse a major change that the release before did not plan.

    Raises:
        ConsiliumError: E710, naming what changed.
    """
    major = [kind for kind in change.changed if kind in MAJOR]
    planned = planned_modifications(before) if before is not None else []
    named = {kind for modification in planned for kind in modification.changes}
    missing = [kind for kind in major if kind not in named]
    if missing:
        control = before.dossier.change_control if before is not None else None
        plan = "no plan" if control is None else "nobody authorised its plan"
        plan = f"plan names {', '.join(sorted(named))}" if planned else plan
        raise ConsiliumError("E710", f"{', '.join(missing)} changed since {change.since}, whose {plan}")


def semver(version: str) -> tuple[int, int, int]:
    """Return a version as numbers that sort; 0, 0, 0 for what is none."""
    try:
        major, minor, patch = (int(part) for part in version.split("."))
    except ValueError:
        return 0, 0, 0
    return major, minor, patch


def _model(lineage: Lineage) -> str | None:
    """The trained model: after the last exchange that had one, of those that are no fold."""
    return next((r.model for r in reversed(lineage.rounds) if r.model is not None and r.fold is None), None)


def _data_changed(previous: ReleaseManifest, lineage: Lineage, sites: Sequence[str]) -> bool:
    before = {data.site: data.cohort for data in previous.lineage.data}
    after = {data.site: data.cohort for data in lineage.data}
    both = set(sites) & set(previous.sites)
    return any(site not in before or before[site] != after.get(site) for site in both)


def _input(feature: Feature) -> tuple[object, ...]:
    values = feature.levels if isinstance(feature, CategoricalFeature) else feature.range
    return feature.name, feature.kind, feature.unit, tuple(values)


def _ordered(found: set[Changed]) -> list[Changed]:
    kinds: tuple[Changed, ...] = get_args(Changed)
    return [kind for kind in kinds if kind in found]
