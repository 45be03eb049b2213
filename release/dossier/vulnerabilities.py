"""Which vulnerabilities of a scan nobody has answered: what the gate on vulnerabilities looks at.

A vulnerability counts as critical from a CVSS base score of 9.0 (FIRST, CVSS v3.1 section 5 and v4.0 section
6: qualitative severity rating scale) or where a source rates it `critical`. One that no source rates may be
critical, so it has to be answered too.

**Which VEX analysis answers.** `not_affected`, `false_positive`, `resolved` and `resolved_with_pedigree`,
with a `justification` or a `detail`: a state without a reason is nobody's analysis. `in_triage` says that
nobody knows yet. `exploitable` says that it does harm here; a `response` to it is a plan, and the release
would go out before the plan is carried out. Both leave the gate closed. An analysis that names components
answers for those alone, so that one of an earlier version of a package does not outlive it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple
from urllib.parse import quote, unquote

from release.facts import Component, Evidence

SCAN_DAYS = 30  # an older scan says nothing of what was published since
CRITICAL_SCORE = 9.0
ANSWERS = frozenset({"not_affected", "false_positive", "resolved", "resolved_with_pedigree"})
_CLOCKS = timedelta(days=1)  # by which the clock of whoever scanned may be ahead

State = Literal["open", "unanswered", "answered"]


class Verdict(NamedTuple):
    """Whether the gate on vulnerabilities holds: None when nobody could tell."""

    passed: bool | None
    detail: str


@dataclass(frozen=True)
class Finding:
    """A vulnerability in one component of the scan.

    Attributes:
        id: as the scan names it.
        names: `id` and its aliases, by any of which a VEX statement may name it.
        component: package URL where the scan gives one, else its reference; empty when it names none.
        severity: `critical`, `unrated` or `lower`.
        analysis: of the VEX statement that is about it; empty without one.
    """

    id: str
    names: frozenset[str]
    component: str
    severity: Literal["critical", "unrated", "lower"]
    analysis: Mapping[str, Any]

    @property
    def answered(self) -> bool:
        """Say whether somebody analysed it, with a reason, and found no harm here."""
        reason = str(self.analysis.get("justification") or self.analysis.get("detail") or "")
        return self.analysis.get("state") in ANSWERS and bool(reason.strip())

    @property
    def title(self) -> str:
        """`CVE-2026-1 in pkg:pypi/onnx@1.0`."""
        return f"{self.id} in {self.component}" if self.component else self.id


def normal_name(name: str) -> str:
    """Return a package's name as PyPI compares names (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def purl(name: str, version: str) -> str:
    """Return the package URL of a Python package (purl specification, type pypi)."""
    return f"pkg:pypi/{normal_name(name)}@{quote(version, safe='')}"


def findings(evidence: Evidence) -> list[Finding]:
    """Return every finding of the scan with its analysis, by id and component; none without a scan."""
    scan, vex = evidence.scan or {}, evidence.vex or {}
    known, stated = _purls(scan), _purls(vex)
    found = []
    for entry in scan.get("vulnerabilities", []):
        names = frozenset({str(entry.get("id")), *(str(r["id"]) for r in entry.get("references", []))})
        for component in [_component(a["ref"], known) for a in entry.get("affects", [])] or [""]:
            analysis = _analysis(names, component, vex, stated)
            found.append(Finding(str(entry.get("id")), names, component, _severity(entry), analysis))
    return sorted(found, key=lambda f: (f.id, f.component))


def unanswered(evidence: Evidence, now: str) -> tuple[State, list[Finding]]:
    """Return the state of the evidence and the critical or unrated findings that nobody answered.

    Args:
        now: UTC, `2026-01-31T12:00:00Z`.

    Returns:
        `open`, and an empty list, without a scan of the 30 days before `now`; else `unanswered` and what is
        left, or `answered`.
    """
    if not scan_is_current(evidence, now):
        return "open", []
    left = [f for f in findings(evidence) if f.severity != "lower" and not f.answered]
    return ("unanswered" if left else "answered"), left


def verdict(evidence: Evidence, now: str, components: Iterable[Component] = ()) -> Verdict:
    """Decide the gate: no critical vulnerability without a VEX statement, in a scan of the last 30 days.

    Args:
        now: UTC.
        components: of which each that a deployment runs must be in the scan; a scan of something else decides
            nothing.
    """
    state, left = unanswered(evidence, now)
    if state == "open":
        made = f"the last is of {evidence.scan_time}" if evidence.scan is not None else "there is none"
        return Verdict(None, f"open: no vulnerability scan of the last {SCAN_DAYS} days, {made}")
    critical = [f.title for f in left if f.severity == "critical"]
    if critical:
        return Verdict(False, _short("critical without a VEX statement", critical))
    if left:
        return Verdict(None, _short("not testable: no source rates", [f.title for f in left]))
    missing = uncovered(evidence, [c for c in components if c.runtime])
    if missing:
        return Verdict(None, _short("not testable: the scan does not cover", missing))
    return Verdict(True, f"no critical vulnerability is open in the scan of {evidence.scan_time}")


def scan_is_current(evidence: Evidence, now: str) -> bool:
    """Say whether there is a scan that is at most 30 days old."""
    if evidence.scan is None or evidence.scan_time is None:
        return False
    return -_CLOCKS <= _time(now) - _time(evidence.scan_time) <= timedelta(days=SCAN_DAYS)


def uncovered(evidence: Evidence, components: Sequence[Component]) -> list[str]:
    """Return the package URLs of those components that the scan does not list in that version."""
    scanned = set(_purls(evidence.scan or {}).values())
    return sorted({purl(c.name, c.version) for c in components} - scanned)


def _purls(document: Mapping[str, Any]) -> dict[str, str]:
    """Package URLs by reference, of every component however deep."""
    waiting = [*document.get("components", [])]
    main = document.get("metadata", {}).get("component")
    waiting += [main] if main else []
    found = {}
    while waiting:
        part = waiting.pop()
        if part.get("purl"):
            found[str(part.get("bom-ref") or part["purl"])] = _one_spelling(part["purl"])
        waiting += part.get("components", [])
    return found


def _component(ref: str, known: Mapping[str, str]) -> str:
    """The package URL behind a reference, of this document or of another (BOM-Link, `urn:cdx:...#ref`)."""
    local = unquote(ref.partition("#")[2]) if ref.startswith("urn:cdx:") else ref
    return known.get(local, _one_spelling(local))


def _one_spelling(url: str) -> str:
    """A package URL of PyPI without qualifiers, as `purl` writes it; anything else as it is."""
    name, _, version = url.removeprefix("pkg:pypi/").split("?")[0].split("#")[0].partition("@")
    return purl(name, unquote(version)) if url.startswith("pkg:pypi/") and version else url


def _analysis(
    names: frozenset[str], component: str, vex: Mapping[str, Any], stated: Mapping[str, str]
) -> Mapping[str, Any]:
    """The analysis of the statement about this finding; of several the one that leaves it open."""
    about: list[Mapping[str, Any]] = []
    for entry in vex.get("vulnerabilities", []):
        covered = {_component(a["ref"], stated) for a in entry.get("affects", [])}
        named = {str(entry.get("id")), *(str(r["id"]) for r in entry.get("references", []))}
        if named & names and (not covered or component in covered):
            about.append(entry.get("analysis") or {})
    return min(about, key=lambda a: a.get("state") in ANSWERS, default={})


def _severity(entry: Mapping[str, Any]) -> Literal["critical", "unrated", "lower"]:
    known = list(_ratings(entry))
    if "critical" in known:
        return "critical"
    return "lower" if known else "unrated"


def _ratings(entry: Mapping[str, Any]) -> Iterator[str]:
    for rating in entry.get("ratings", []):
        score, severity = rating.get("score"), rating.get("severity", "unknown")
        cvss = str(rating.get("method", "CVSS")).startswith("CVSS")
        if severity == "critical" or (cvss and score is not None and score >= CRITICAL_SCORE):
            yield "critical"
        elif severity != "unknown" or (cvss and score is not None):
            yield severity


def _short(said: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{said}: {', '.join(names[:5])}{more}"[:400]


def _time(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)
