"""Facts about a candidate: what does not hold stops it, and what nobody can tell does not pass."""

from __future__ import annotations

from dataclasses import replace

from contracts.evaluation import Parity
from tasks.fact_gates import (
    approvals_verdict,
    ledgers_verdict,
    parity_verdict,
)
from tests.dossiers import tiny_facts
from tests.factories import private_study

NOW = "2026-03-01T12:00:00Z"
SITES = ["ash", "birch"]
WITHDRAWN = {"birch": {"number": "E303", "name": "site-withdrawn", "sentence": ""}}


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
