"""The version of the release at hand, from what changed since the product's release before."""

from __future__ import annotations

import json

from contracts.errors import ConsiliumError
from contracts.release import Change, Lineage
from contracts.study import StudyProtocol, parse_study
from durable.files import read_json
from release.registry import RegisteredRelease, current, releases
from release.versioning import classify, next_version, require_allowed
from tasks.events import read_events
from tasks.home import CoordinatorHome


def earlier(home: CoordinatorHome, protocol: StudyProtocol) -> list[RegisteredRelease]:
    """The product's releases by version, without that of this study, which may be published already."""
    return [
        release
        for release in releases(home.releases, protocol.product_name)
        if release.manifest.study != protocol.study
    ]


def earlier_releases(home: CoordinatorHome, protocol: StudyProtocol) -> int:
    """How many releases of the product there are beside this study's."""
    return len(earlier(home, protocol))


def earlier_looks(home: CoordinatorHome, protocol: StudyProtocol) -> int:
    """How many other studies of the product have had their holdouts looked at.

    Each has used its share of the error budget, whether or not it was released: who may try again until one
    model passes by luck has no error budget.
    """
    looked = {release.manifest.study for release in earlier(home, protocol)}
    for path in home.studies.glob("*/protocol.json"):
        other = parse_study(read_json(path), str(path))
        if other.product_name != protocol.product_name or other.study == protocol.study:
            continue
        if any(event.event == "unsealed" for event in read_events(home, other.study)):
            looked.add(other.study)
    return len(looked)


def previous_release(home: CoordinatorHome, protocol: StudyProtocol) -> RegisteredRelease | None:
    """The release that this one replaces: the current one, which after a rollback is not the newest.

    None for the product's first.
    """
    found = earlier(home, protocol)
    version = current(home.registry, protocol.product_name)
    in_use = [release for release in found if release.manifest.version == version]
    candidates = in_use or found
    return candidates[-1] if candidates else None


def protocol_of(release: RegisteredRelease) -> StudyProtocol:
    """The protocol of a release of this home.

    Raises:
        ConsiliumError: E703, it is missing or damaged.
    """
    path = release.path / "study.json"
    try:
        return parse_study(json.loads(path.read_bytes()), str(path))
    except (OSError, ValueError) as error:
        raise ConsiliumError("E703", f"{path}: {error}") from error


def version_and_change(
    home: CoordinatorHome, protocol: StudyProtocol, lineage: Lineage, sites: list[str]
) -> tuple[str, Change]:
    """Return the version of the study's release and what changed since the release it replaces.

    Raises:
        ConsiliumError: E710, a major change that was not planned.
    """
    previous = previous_release(home, protocol)
    before = protocol_of(previous) if previous else None
    change = classify(previous.manifest if previous else None, before, protocol, lineage, sites)
    require_allowed(change, before)
    found = earlier(home, protocol)
    return next_version(found[-1].manifest if found else None, change), change
