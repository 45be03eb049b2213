"""Whether a study may amend the one before: checked at its registration, before any data are read."""

from __future__ import annotations

from pathlib import Path

from contracts.errors import ConsiliumError
from contracts.release import Change
from contracts.study import StudyProtocol, parse_study
from durable.files import read_json
from release.versioning import changed_in_protocol, require_allowed, widened
from tasks.home import CoordinatorHome
from tasks.versions import previous_release, protocol_of
from validation.tightening import loosened


def check_amendment(home: CoordinatorHome, protocol: StudyProtocol) -> None:
    """Check an amendment against the study that it names and the release that it would replace.

    Both may be apart: the amended study may have been rejected by its gates. A study that amends nothing is
    compared with the release in use too: one that amends it may have been released before it.

    Raises:
        ConsiliumError: E111, the amended study is not known here, is of another product, or asks for more
            than the amendment does; E710, a major change that the release before did not plan.
    """
    amended = _amended(home, protocol)
    previous = previous_release(home, protocol)
    before = protocol_of(previous) if previous else None
    bases = {base.hash: base for base in (amended, before) if base is not None}
    problems = [f"{base.study}: {problem}" for base in bases.values() for problem in loosened(base, protocol)]
    if before is not None:
        problems += [f"{before.study}: {problem}" for problem in widened(before, protocol)]
    if problems:
        raise ConsiliumError("E111", "; ".join(problems))
    if previous is not None and before is not None:
        changed = changed_in_protocol(before, protocol)
        require_allowed(Change(level="major", since=previous.manifest.version, changed=changed), before)


def _amended(home: CoordinatorHome, protocol: StudyProtocol) -> StudyProtocol | None:
    """The study that an amendment names; None for one that amends nothing."""
    if protocol.amends is None:
        return None
    known = {study.hash: study for study in map(_read, sorted(home.studies.glob("*/protocol.json")))}
    amended = known.get(protocol.amends)
    if amended is None:
        raise ConsiliumError("E111", f"no study registered here has the hash {protocol.amends}")
    if amended.product_name != protocol.product_name:
        raise ConsiliumError(
            "E111",
            f"product {protocol.product_name!r}, but {amended.study} is of {amended.product_name!r}",
        )
    return amended


def _read(path: Path) -> StudyProtocol:
    return parse_study(read_json(path), str(path))
