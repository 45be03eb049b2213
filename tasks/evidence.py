"""The coordinator's `evidence/`: test results, vulnerability scan and VEX that people bring from outside.

Each kind is one file that is replaced whole, and only by one that was read without fault. The next candidate
carries what is there; a candidate that was made before is never changed by it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from rfc8785 import CanonicalizationError

from contracts.canonical import canonical_json
from contracts.errors import ConsiliumError
from contracts.fields import Contract, Timestamp
from contracts.signing import first_problem
from durable.files import write_atomic
from release.facts import Evidence
from tasks.evidence_formats import Result, read_junit, read_scan, read_vex, stronger
from tasks.home import CoordinatorHome

_Kept = TypeVar("_Kept", bound=Contract)


class KeptTests(Contract):
    """`tests.json`: result of each test, and when the oldest of the runs began."""

    time: Timestamp
    results: dict[str, Result]


class KeptScan(Contract):
    """`scan.json`: a scan as CycloneDX."""

    time: Timestamp
    document: dict[str, Any]


class KeptVex(Contract):
    """`vex.json`: statements as CycloneDX."""

    document: dict[str, Any]


def add_tests(home: CoordinatorHome, *junit_xml: bytes, made: str | None = None) -> KeptTests:
    """Replace the test results by those of these reports.

    A test that failed in one of them has failed; the time is that of the oldest report.

    Args:
        junit_xml: contents of the reports, as pytest's `--junitxml` writes them.
        made: when they were made, where a report does not say.

    Raises:
        ConsiliumError: E715; then nothing is changed.
    """
    results: dict[str, Result] = {}
    times = []
    for data in junit_xml:
        found, time = read_junit(data, made)
        times.append(time)
        for name, result in found.items():
            results[name] = stronger(results.get(name, result), result)
    if not times:
        raise ConsiliumError("E715", "no report was given")
    return _store(home.evidence / "tests.json", KeptTests(time=min(times), results=results))


def add_scan(home: CoordinatorHome, data: bytes, made: str | None = None) -> KeptScan:
    """Replace the vulnerability scan.

    Args:
        data: CycloneDX JSON, or pip-audit's JSON.
        made: when it was made, where the report does not say.

    Raises:
        ConsiliumError: E715; then nothing is changed.
    """
    document, time = read_scan(data, made)
    return _store(home.evidence / "scan.json", KeptScan(time=time, document=document))


def add_vex(home: CoordinatorHome, data: bytes) -> KeptVex:
    """Replace the VEX statements.

    Raises:
        ConsiliumError: E715; then nothing is changed.
    """
    return _store(home.evidence / "vex.json", KeptVex(document=read_vex(data)))


def load_evidence(home: CoordinatorHome) -> Evidence:
    """Return what was brought; what was not is empty.

    Raises:
        ConsiliumError: E715, a stored file was changed.
    """
    tests = _load(home.evidence / "tests.json", KeptTests)
    scan = _load(home.evidence / "scan.json", KeptScan)
    vex = _load(home.evidence / "vex.json", KeptVex)
    return Evidence(
        tests=tests.results if tests else {},
        tests_time=tests.time if tests else None,
        scan=scan.document if scan else None,
        scan_time=scan.time if scan else None,
        vex=vex.document if vex else None,
    )


def _store(path: Path, kept: _Kept) -> _Kept:
    try:
        data = canonical_json(kept)
    except CanonicalizationError as error:  # a whole number beyond 2**53
        raise ConsiliumError("E715", str(error)[:300]) from error
    write_atomic(path, data)
    return kept


def _load(path: Path, kind: type[_Kept]) -> _Kept | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConsiliumError("E715", f"{path}: {error.strerror}") from error
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise ConsiliumError("E715", f"{path}: {first_problem(error)}") from error
