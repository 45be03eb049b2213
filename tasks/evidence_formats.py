"""Reading reports that other programs wrote: JUnit XML, CycloneDX JSON, pip-audit JSON. Nothing is trusted.

A report says when it was made, or whoever brings it says so; no date is guessed from the file's own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Literal
from xml.etree import ElementTree

from contracts.errors import ConsiliumError
from release.dossier.vulnerabilities import purl

MAX_BYTES = 64 * 1024 * 1024
_CLOCKS = timedelta(days=1)  # by which another machine's clock may be ahead
_SPEC_VERSIONS = ("1.4", "1.5", "1.6")

Result = Literal["passed", "failed", "skipped"]
_STRENGTH: tuple[Result, ...] = ("skipped", "passed", "failed")


def read_junit(data: bytes, made: str | None = None) -> tuple[dict[str, Result], str]:
    """Return the result of each test by its pytest id, and when the run began, UTC.

    Args:
        data: JUnit XML as pytest writes it (`--junitxml`); no entities, no document type.
        made: when it was made, where the report says nothing.

    Raises:
        ConsiliumError: E715, no such report, no test in it, or no date.
    """
    try:
        text = _text(data).lstrip("\ufeff")
        # Without a document type there are only XML's own five entities: nothing expands or is fetched.
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise ConsiliumError("E715", "the report has a document type, which JUnit XML never needs")
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ConsiliumError("E715", f"no XML: {error}") from error
    if root.tag not in ("testsuites", "testsuite"):
        raise ConsiliumError("E715", f"element {root.tag!r}, expected the testsuites of a JUnit report")
    results: dict[str, Result] = {}
    for case in root.iter("testcase"):
        name, result = _test_id(case), _result(case)
        results[name] = stronger(results.get(name, result), result)
    if not results:
        raise ConsiliumError("E715", "the report holds no test")
    times = [t for suite in root.iter("testsuite") if (t := suite.get("timestamp"))]
    return results, utc(min(times, key=_moment) if times else made)


def stronger(one: Result, other: Result) -> Result:
    """Return the result of a test that ran twice: one failure is a failure; a skipped run says nothing."""
    return max(one, other, key=_STRENGTH.index)


def read_cyclonedx(document: Mapping[str, Any], text: str) -> None:
    """Check a CycloneDX document against the schema of its version. Needs the `verify` extra.

    Raises:
        ConsiliumError: E715, another version or not valid; E110, the extra is missing.
    """
    version = document.get("specVersion")
    if version not in _SPEC_VERSIONS:
        raise ConsiliumError("E715", f"CycloneDX {version!r}, expected one of {', '.join(_SPEC_VERSIONS)}")
    error = _validator(str(version)).validate_str(text)
    if error is not None:
        raise ConsiliumError("E715", f"no valid CycloneDX {version}: {str(error)[:300]}")


def read_scan(data: bytes, made: str | None = None) -> tuple[dict[str, Any], str]:
    """Return a scan for vulnerabilities as CycloneDX, and when it was made, UTC.

    Args:
        data: CycloneDX 1.4 to 1.6 with `vulnerabilities` or `components`, or pip-audit's `--format json`.
        made: when it was made; needed where the report says nothing, as pip-audit's does.

    Raises:
        ConsiliumError: E715, no such report, or no date.
    """
    document, text = _json(data)
    if isinstance(document, dict) and document.get("bomFormat") == "CycloneDX":
        read_cyclonedx(document, text)
        if not document.get("components") and not document.get("vulnerabilities"):
            raise ConsiliumError("E715", "the scan lists neither a component nor a vulnerability")
        for entry in document.get("vulnerabilities", []):
            if not entry.get("id"):
                raise ConsiliumError("E715", "a vulnerability of the scan has no id")
        said = document.get("metadata", {}).get("timestamp")
        return document, utc(said or made)
    entries = document.get("dependencies") if isinstance(document, dict) else document
    if not isinstance(entries, list) or not entries:
        raise ConsiliumError("E715", "neither CycloneDX nor what pip-audit writes with --format json")
    return _from_pip_audit(entries), utc(made)


def read_vex(data: bytes) -> dict[str, Any]:
    """Return VEX statements: CycloneDX 1.4 to 1.6 in which every vulnerability has an id and an analysis.

    Raises:
        ConsiliumError: E715.
    """
    document, text = _json(data)
    if not isinstance(document, dict) or document.get("bomFormat") != "CycloneDX":
        raise ConsiliumError("E715", "no CycloneDX JSON")
    read_cyclonedx(document, text)
    statements = document.get("vulnerabilities") or []
    if not statements:
        raise ConsiliumError("E715", "there is no statement on a vulnerability")
    for entry in statements:
        if not entry.get("id") or not entry.get("analysis", {}).get("state"):
            raise ConsiliumError("E715", f"the statement on {entry.get('id')!r} has no id or no state")
    return document


def utc(text: str | None) -> str:
    """Return a time as contracts write it; one without a zone is of this machine's.

    Raises:
        ConsiliumError: E715, no time, none that is ISO 8601, or one in the future.
    """
    if not text:
        raise ConsiliumError("E715", "the report has no date: say when it was made")
    found = _moment(text)
    if found > datetime.now(UTC) + _CLOCKS:
        raise ConsiliumError("E715", f"dated {text}, which is in the future")
    return found.strftime("%Y-%m-%dT%H:%M:%SZ")


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ConsiliumError("E715", f"date {text[:40]!r}, expected ISO 8601") from error


def _test_id(case: ElementTree.Element) -> str:
    """`tests/a/test_b.py::TestC::test_d[x]` of class name and name; a class name is dotted."""
    name, dotted = case.get("name") or "", case.get("classname") or ""
    if not name or not dotted:
        raise ConsiliumError("E715", "a testcase has no name or no classname")
    parts = dotted.split(".")
    modules = [n for n, part in enumerate(parts) if re.fullmatch(r"test_\w+|\w+_test", part)]
    end = modules[-1] + 1 if modules else len(parts)
    return "::".join(["/".join(parts[:end]) + ".py", *parts[end:], name])


def _result(case: ElementTree.Element) -> Result:
    found = {child.tag for child in case}
    if found & {"failure", "error"}:
        return "failed"
    return "skipped" if "skipped" in found else "passed"


def _from_pip_audit(entries: list[Any]) -> dict[str, Any]:
    """CycloneDX 1.6 of pip-audit's list. It rates nothing; what it skipped is not listed as scanned."""
    components, vulnerabilities = [], []
    try:
        for entry in entries:
            if "skip_reason" in entry:
                continue
            ref = purl(str(entry["name"]), str(entry["version"]))
            part = {"type": "library", "bom-ref": ref, "name": entry["name"], "version": entry["version"]}
            components.append({**part, "purl": ref})
            vulnerabilities += [_vulnerability(ref, found) for found in entry["vulns"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ConsiliumError("E715", f"no report of pip-audit: {error!r}") from error
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "components": components,
        "vulnerabilities": vulnerabilities,
    }


def _vulnerability(ref: str, found: Mapping[str, Any]) -> dict[str, Any]:
    name, fixed = str(found["id"]), [str(v) for v in found.get("fix_versions") or []]
    entry: dict[str, Any] = {"id": name, "source": {"name": _source(name)}, "affects": [{"ref": ref}]}
    aliases = [{"id": str(a), "source": {"name": _source(str(a))}} for a in found.get("aliases") or []]
    if aliases:
        entry["references"] = aliases
    if found.get("description"):
        entry["description"] = str(found["description"])
    if fixed:
        entry["recommendation"] = f"Fixed in {', '.join(fixed)}."
    return entry


def _source(name: str) -> str:
    known = {"CVE": "NVD", "GHSA": "GitHub Advisories", "PYSEC": "PyPI Advisory Database"}
    return known.get(name.partition("-")[0], "OSV")


def _json(data: bytes) -> tuple[Any, str]:
    text = _text(data)
    try:
        return json.loads(text, parse_constant=_no_number), text
    except (ValueError, RecursionError) as error:
        raise ConsiliumError("E715", f"no JSON: {error}"[:300]) from error


def _no_number(text: str) -> Iterator[Any]:
    raise ValueError(f"{text} is no number of JSON")


def _text(data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise ConsiliumError("E715", f"{len(data)} bytes, expected at most {MAX_BYTES}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConsiliumError("E715", f"no UTF-8: {error}") from error


@cache
def _validator(version: str) -> Any:
    try:
        from cyclonedx.schema import SchemaVersion
        from cyclonedx.validation.json import JsonStrictValidator
    except ImportError as error:
        raise ConsiliumError("E110", f"install consilium[verify]: {error.name}") from error
    return JsonStrictValidator(SchemaVersion.from_version(version))
