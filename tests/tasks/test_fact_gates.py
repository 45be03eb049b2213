"""Facts about a candidate: what does not hold stops it, and what nobody can tell does not pass."""

from __future__ import annotations

from dataclasses import replace

import pytest

from contracts.evaluation import Parity
from release.facts import Evidence
from tasks.fact_gates import (
    approvals_verdict,
    ledgers_verdict,
    parity_verdict,
    vulnerabilities_verdict,
)
from tests.dossiers import tiny_facts
from tests.factories import private_study

NOW = "2026-03-01T12:00:00Z"
SITES = ["ash", "birch"]
WITHDRAWN = {"birch": {"number": "E303", "name": "site-withdrawn", "sentence": ""}}


def scan(*vulnerabilities: dict, time: str = "2026-02-20T08:00:00Z", vex: dict | None = None) -> Evidence:
    return Evidence(scan={"vulnerabilities": list(vulnerabilities)}, scan_time=time, vex=vex)


def rated(severity: str, name: str = "CVE-2026-1", **fields: object) -> dict:
    return {"id": name, "ratings": [{"severity": severity}], **fields}


def test_a_scan_without_an_open_critical_vulnerability_passes() -> None:
    assert vulnerabilities_verdict(scan(), NOW).passed is True
    assert vulnerabilities_verdict(scan(rated("high")), NOW).passed is True


@pytest.mark.parametrize(
    "entry", [rated("critical"), {"id": "CVE-2026-1", "ratings": [{"method": "CVSSv31", "score": 9.8}]}]
)
def test_a_critical_vulnerability_needs_a_statement_that_clears_it(entry: dict) -> None:
    verdict = vulnerabilities_verdict(scan(entry), NOW)
    assert verdict.passed is False and "CVE-2026-1" in verdict.detail
    for state, cleared in (("not_affected", True), ("in_triage", False), ("exploitable", False)):
        vex = {"vulnerabilities": [{"id": "CVE-2026-1", "analysis": {"state": state}}]}
        assert vulnerabilities_verdict(scan(entry, vex=vex), NOW).passed is cleared, state
    other = {"vulnerabilities": [{"id": "CVE-2026-2", "analysis": {"state": "not_affected"}}]}
    assert vulnerabilities_verdict(scan(entry, vex=other), NOW).passed is False


@pytest.mark.parametrize("time", ["2026-01-29T08:00:00Z", "2026-03-05T08:00:00Z"])
def test_an_old_a_future_and_an_absent_scan_are_open(time: str) -> None:
    assert vulnerabilities_verdict(scan(time=time), NOW).passed is None
    assert vulnerabilities_verdict(Evidence(), NOW).passed is None


def test_every_hospital_must_have_verified_under_a_current_approval() -> None:
    assert approvals_verdict(SITES, SITES, {}).passed is True
    withdrawn = approvals_verdict(SITES, ["ash"], WITHDRAWN)
    assert (withdrawn.passed, withdrawn.site) == (False, "birch") and "E303" in withdrawn.detail
    silent = approvals_verdict(SITES, ["ash"], {})
    assert (silent.passed, silent.site) == (None, "birch")
    assert approvals_verdict([], [], {}).passed is None
    other = {"birch": {"number": "E899", "name": "internal", "sentence": ""}}
    assert approvals_verdict(SITES, ["ash"], other).passed is None


def test_parity_holds_everywhere_or_not() -> None:
    facts = tiny_facts()
    assert parity_verdict(facts, SITES).passed is True
    assert parity_verdict(facts, [*SITES, "cedar"]).passed is None
    bad = Parity(max_abs_difference=1.0, decisions_flipped=1, tolerance=1e-5)
    first, second = facts.verification
    broken = replace(facts, verification=[first, second.model_copy(update={"parity": bad})])
    verdict = parity_verdict(broken, SITES)
    assert (verdict.passed, verdict.site) == (False, "birch")
    assert parity_verdict(replace(facts, verification=[]), SITES).passed is None


def test_ledgers_must_replay_to_what_is_stated() -> None:
    facts = tiny_facts(private_study(min_sites=1))
    assert ledgers_verdict(facts, {}).passed is True
    missing = ledgers_verdict(replace(facts, ledgers={"ash": facts.ledgers["ash"]}), {})
    assert (missing.passed, missing.site) == (None, "birch")
    swapped = {"ash": facts.ledgers["birch"], "birch": facts.ledgers["ash"]}
    assert ledgers_verdict(replace(facts, ledgers=swapped), {}).passed is False
    less = [p.model_copy(update={"epsilon_study": 0.1}) for p in facts.site_privacy]
    assert ledgers_verdict(replace(facts, site_privacy=less), {}).passed is False
    refused = {"ash": {"number": "E407", "name": "ledger-rolled-back", "sentence": ""}}
    assert ledgers_verdict(facts, refused).passed is False
    assert ledgers_verdict(tiny_facts(), {}).passed is True  # a study without privacy spends nothing
