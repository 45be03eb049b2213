"""A critical vulnerability stays open until somebody analysed it, with a reason, for that component."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from release.dossier.vex import vex
from release.dossier.vulnerabilities import ANSWERS, findings, unanswered, verdict
from release.facts import Evidence
from tests.release.dossier.materials import (
    COMPONENTS,
    ORT,
    TORCH,
    analysed,
    brought,
    scanned,
    silent,
    spoken,
    vulnerability,
)

NOW = "2026-01-01T00:00:00Z"
CRITICAL = scanned(vulnerability("CVE-1", "ref-4"))


@pytest.mark.parametrize(
    ("time", "state"),
    [
        ("2025-12-02T00:00:00Z", "answered"),
        ("2025-12-01T00:00:00Z", "open"),  # 31 days
        ("2026-01-03T00:00:00Z", "open"),  # not made yet
        (None, "open"),
    ],
)
def test_only_a_dated_scan_of_the_last_thirty_days_decides(time: str | None, state: str) -> None:
    evidence = dataclasses.replace(brought(), scan_time=time)
    assert unanswered(evidence, NOW) == (state, [])
    assert verdict(evidence, NOW, COMPONENTS).passed is (True if state == "answered" else None)


def test_no_scan_is_open_and_no_pass() -> None:
    found = verdict(Evidence(), NOW)
    assert found.passed is None and "no vulnerability scan" in found.detail


@pytest.mark.parametrize(
    ("entry", "passed"),
    [
        (vulnerability("CVE-1", "ref-4", score=9.0), False),
        (vulnerability("CVE-1", "ref-4", score=8.9), True),
        (vulnerability("CVE-1", "ref-4", score=None, ratings=[{"severity": "critical"}]), False),
        (vulnerability("CVE-1", "ref-4", score=None, ratings=[{"severity": "low"}]), True),
        # One source rates it critical, another does not.
        (vulnerability("CVE-1", "ref-4", score=None, ratings=[{"severity": "low"}, {"score": 9.9}]), False),
        (vulnerability("CVE-1", "ref-4", score=None), None),  # pip-audit rates nothing: it may be critical
        (vulnerability("CVE-1", "ref-4", score=None, ratings=[{"severity": "unknown"}]), None),
        (vulnerability("CVE-1", "ref-4", score=None, ratings=[{"score": 2, "method": "OWASP"}]), None),
        (vulnerability("CVE-1"), False),  # of no component that it names
    ],
)
def test_critical_fails_the_gate_and_unrated_leaves_it_undecided(
    entry: dict[str, Any], passed: bool | None
) -> None:
    found = verdict(brought(scanned(entry)), NOW, COMPONENTS)
    assert found.passed is passed and (passed or "CVE-1" in found.detail)


@pytest.mark.parametrize("state", [*sorted(ANSWERS), "exploitable", "in_triage"])
def test_an_analysis_answers_when_it_says_why_no_harm_is_done(state: str) -> None:
    assert verdict(brought(CRITICAL, analysed("CVE-1", state)), NOW).passed is (state in ANSWERS)
    assert verdict(brought(CRITICAL, analysed("CVE-1", state, detail=" ")), NOW).passed is False


def test_a_response_to_an_exploitable_vulnerability_is_a_plan_and_no_answer() -> None:
    vex_document = analysed("CVE-1", "exploitable")
    vex_document["vulnerabilities"][0]["analysis"]["response"] = ["update"]
    assert verdict(brought(CRITICAL, vex_document), NOW).passed is False


@pytest.mark.parametrize(
    ("refs", "passed"),
    [
        ((TORCH,), True),
        ((f"urn:cdx:3e671687-395b-41f5-a30f-a58921a69b79/1#{TORCH}",), True),
        (("pkg:pypi/Torch@2.13.0+cpu?extra=1",), True),  # another spelling of the same package
        (("pkg:pypi/torch@2.12.0",), False),  # of the version before
        ((ORT,), False),
        ((), True),  # about the vulnerability wherever it is
    ],
)
def test_an_analysis_answers_for_the_components_that_it_names(refs: tuple[str, ...], passed: bool) -> None:
    found = verdict(brought(CRITICAL, analysed("CVE-1", "not_affected", *refs)), NOW)
    assert found.passed is passed


def test_one_component_that_nobody_analysed_keeps_the_vulnerability_open() -> None:
    scan = scanned(vulnerability("CVE-1", "ref-4", "ref-1"))
    state, left = unanswered(brought(scan, analysed("CVE-1", "not_affected", TORCH)), NOW)
    assert state == "unanswered" and [f.component for f in left] == [ORT]


def test_a_statement_may_use_an_alias_and_of_two_the_one_that_leaves_it_open_counts() -> None:
    alias = [{"id": "GHSA-x", "source": {"name": "GitHub"}}]
    scan = scanned(vulnerability("CVE-1", "ref-4", references=alias))
    good = analysed("GHSA-x", "false_positive")
    assert verdict(brought(scan, good), NOW).passed
    good["vulnerabilities"] += analysed("CVE-1", "in_triage")["vulnerabilities"]
    assert verdict(brought(scan, good), NOW).passed is False


def test_a_scan_of_something_else_decides_nothing() -> None:
    other = scanned(components=COMPONENTS[2:])
    found = verdict(brought(other), NOW, COMPONENTS)
    assert found.passed is None and ORT in found.detail
    assert verdict(brought(scanned(components=COMPONENTS[:4])), NOW, COMPONENTS).passed  # torch is not run


def test_the_document_carries_every_finding_with_its_analysis_or_as_open() -> None:
    document = json.loads(vex(spoken()))
    entries = {e["id"]: e for e in document["vulnerabilities"]}
    assert set(entries) == {f.id for f in findings(spoken().evidence)} == {"CVE-2026-1", "CVE-2026-2"}
    assert entries["CVE-2026-1"]["analysis"]["state"] == "not_affected"
    assert entries["CVE-2026-1"]["affects"] == [{"ref": TORCH}] and "ratings" in entries["CVE-2026-1"]
    assert entries["CVE-2026-2"]["properties"] == [{"name": "consilium:analysis", "value": "open"}]
    assert {c["bom-ref"] for c in document["components"]} == {TORCH, ORT}


def test_without_a_scan_the_list_is_empty_and_says_that_this_is_open() -> None:
    document = json.loads(vex(silent()))
    said = {p["name"]: p["value"] for p in document["metadata"]["properties"]}
    assert document["vulnerabilities"] == [] and said["consilium:scan"].startswith("open")
