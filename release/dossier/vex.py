"""`vex.cdx.json`: CycloneDX 1.6 VEX, what the scan found and what people said about it.

A finding that nobody analysed has no `analysis` and the property `consilium:analysis` = `open`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from release.dossier.model_card import properties
from release.dossier.sbom import header, numbered, tools
from release.dossier.vulnerabilities import SCAN_DAYS, Finding, findings, scan_is_current, unanswered
from release.facts import Evidence, ReleaseFacts

# Fields of a scan's entry that are carried over as they are; the others may name the scanner's machine.
_KEPT = ("id", "source", "references", "ratings", "cwes", "description", "recommendation", "advisories")
_DATES = ("created", "published", "updated")


def vex(facts: ReleaseFacts) -> bytes:
    """Return the statements on vulnerabilities; the same facts give the same bytes.

    Without a scan the list is empty and the property `consilium:scan` says that this is open, not that there
    are none.
    """
    found = findings(facts.evidence)
    body: dict[str, Any] = {
        **header(),
        "metadata": {
            "timestamp": facts.created,
            "tools": tools(facts),
            "component": {
                "type": "application",
                "bom-ref": facts.release_id,
                "name": facts.product,
                "version": facts.version,
            },
            "properties": _state(facts),
        },
        "vulnerabilities": _entries(facts.evidence, found),
    }
    affected = sorted({f.component for f in found if f.component})
    if affected:
        body["components"] = [_affected(component) for component in affected]
    return numbered(body)


def _state(facts: ReleaseFacts) -> list[dict[str, str]]:
    evidence = facts.evidence
    state, left = unanswered(evidence, facts.created)
    said = {"open": "open", "unanswered": f"open: {len(left)} findings", "answered": "none open"}[state]
    if evidence.scan is None:
        scan = "open: no scan was brought"
    elif not scan_is_current(evidence, facts.created):
        scan = f"open: older than {SCAN_DAYS} days, or without a date"
    else:
        scan = "current"
    return properties(
        {"scan": scan, "scan_time": evidence.scan_time, "critical_or_unrated_without_analysis": said}
    )


def _entries(evidence: Evidence, found: list[Finding]) -> list[dict[str, Any]]:
    """One entry for all components of a vulnerability about which the same was said."""
    raw = {str(e.get("id")): e for e in (evidence.scan or {}).get("vulnerabilities", [])}
    ordered = sorted(found, key=lambda f: (f.id, sorted(map(str, f.analysis.items())), f.component))
    return [
        _entry(raw[name], analysis, sorted({f.component for f in group if f.component}))
        for (name, _), each in groupby(ordered, key=lambda f: (f.id, sorted(map(str, f.analysis.items()))))
        if (group := list(each)) and (analysis := group[0].analysis) is not None
    ]


def _entry(raw: Mapping[str, Any], analysis: Mapping[str, Any], components: list[str]) -> dict[str, Any]:
    entry: dict[str, Any] = {key: raw[key] for key in (*_KEPT, *_DATES) if key in raw}
    if analysis:
        entry["analysis"] = dict(analysis)
    else:
        entry["properties"] = properties({"analysis": "open"})
    if components:
        entry["affects"] = [{"ref": component} for component in components]
    return entry


def _affected(component: str) -> dict[str, Any]:
    if not component.startswith("pkg:"):
        return {"type": "library", "bom-ref": component, "name": component}
    name, _, version = component.rpartition("/")[2].partition("@")
    part = {"type": "library", "bom-ref": component, "name": name, "purl": component}
    return part | {"version": version} if version else part
