"""The study's page says of every hospital in every round what it did, and of every failure what to do."""

from __future__ import annotations

import re

import pytest

from contracts.errors import ConsiliumError
from contracts.refusal import Refusal
from contracts.signing import to_text
from contracts.strategy import Secure, Strategy
from durable.files import write_json
from tasks.presence import present_sites
from tasks.rounds import close_round
from tasks.study_page import StudyPage, study_page
from tasks.study_words import PROTECTS, STATES
from tests.factories import (
    TinyFederation,
    honest_answer,
    honest_tensors,
    open_next,
    tiny_study,
    write_tensors,
)


def refusal(federation, site, number, digest):
    said = Refusal.of(ConsiliumError(number), study="tiny", site=site, stage="train", plan=digest)
    return to_text(federation.keys[site].sign(said))


@pytest.fixture
def federation(tmp_path):
    """Five hospitals after three rounds in which one of them each was late, absent, withdrawn, too loud."""
    federation = TinyFederation(tmp_path, tiny_study(rounds=5), ("ash", "birch", "cedar", "elm", "oak"))
    for number in range(4):
        there = set(federation.keys) - ({"oak"} if number == 1 else set())
        plan, digest = open_next(federation, f"run-{number}", there)
        answers = {
            s: honest_answer(federation, plan, digest, s, tmp_path) for s in [e.site for e in plan.roster]
        }
        if number == 1:
            answers["birch"] = None
        if number == 2:
            answers["cedar"] = refusal(federation, "cedar", "E303", digest)
        if number == 3:
            tensors = {name: -500 * array for name, array in honest_tensors(federation, plan, "elm").items()}
            path = write_tensors(tmp_path / "loud", tensors)
            loud = federation.envelope("elm", plan, digest, path).model_copy(update={"policy": "b" * 64})
            answers["elm"] = federation.signed("elm", loud)
        close_round(federation.home, "tiny", f"run-{number}", answers)
    open_next(federation, "run-4")
    return federation


def states(page):
    return {title: {site: cell.state for site, cell in cells.items()} for title, cells in page.columns}


def test_every_hospital_has_its_state_in_every_round(federation):
    page = StudyPage(federation.home, "tiny")
    found = states(page)
    assert list(found) == ["statistics", "1", "2", "3", "4"]
    assert set(found["statistics"].values()) == {"admitted"}
    assert found["1"] == {
        "ash": "admitted",
        "birch": "silent",
        "cedar": "admitted",
        "elm": "admitted",
        "oak": "absent",
    }
    assert found["2"]["cedar"] == "withdrawn"
    assert found["3"]["cedar"] == "absent"  # who withdrew is not asked again
    assert found["4"] == dict.fromkeys(("ash", "birch", "elm", "oak"), "waiting") | {"cedar": "absent"}


def test_what_went_wrong_is_explained_and_every_cell_leads_there(federation):
    page = StudyPage(federation.home, "tiny")
    told = {(p.site, p.state, p.number): p for p in page.problems}
    assert set(told) == {
        ("birch", "silent", None),
        ("oak", "absent", None),
        ("cedar", "absent", None),
        ("cedar", "withdrawn", "E303"),
    }
    assert "withdrawn" in told["cedar", "withdrawn", "E303"].sentence
    assert all(problem.remedy for problem in page.problems)
    text = study_page(federation.home, "tiny")
    targets = set(re.findall(r'href="#([^"]+)"', text))
    assert len(targets) > 8 and targets <= set(re.findall(r'id="([^"]+)"', text))


def test_the_last_intake_is_a_column_with_the_checks_that_failed(federation):
    record = {"admitted": ["ash"], "quality_failed": {"elm": ["range(age)"]}, "refused": {"oak": "E205"}}
    write_json(federation.home.study("tiny") / "records" / "intake.json", record)
    page = StudyPage(federation.home, "tiny")
    assert states(page)["intake"] == {
        "ash": "admitted",
        "birch": "silent",
        "cedar": "silent",
        "elm": "refused",
        "oak": "refused",
    }
    assert "These failed: range(age)." in study_page(federation.home, "tiny")


def test_a_changed_policy_and_a_scaled_update_are_pointed_at(federation):
    page = StudyPage(federation.home, "tiny")
    assert {site: changed for site, _, changed in page.policies if changed} == {"elm": ["3"]}
    assert page.marked == [("elm", [3], [])]
    text = study_page(federation.home, "tiny")
    assert "<b>elm</b> was scaled down in round 3" in text and 'class="scaled"' in text


def test_a_study_that_nobody_has_answered_yet_has_a_page(tmp_path):
    federation = TinyFederation(tmp_path, tiny_study())
    text = study_page(federation.home, "tiny")
    assert "No round was opened yet" in text and "more hospitals must pass intake" in text
    assert present_sites(federation.home) == set()


def test_what_people_wrote_is_escaped(tmp_path):
    federation = TinyFederation(tmp_path, tiny_study(title="A <script>alert(1)</script> & B"))
    text = study_page(federation.home, "tiny")
    assert "<script" not in text and "&lt;script&gt;" in text


def test_an_unknown_study_has_no_page(federation):
    with pytest.raises(ConsiliumError, match="E102"):
        study_page(federation.home, "another")


@pytest.mark.parametrize("method", PROTECTS)
def test_every_aggregation_says_what_it_does_and_what_it_leaves_open(tmp_path, method):
    federation = TinyFederation(tmp_path, tiny_study(strategy={"aggregation": {"method": method}}))
    does, open_to = StudyPage(federation.home, "tiny").aggregation
    assert "{" not in does + open_to and len(open_to) > 60


def test_no_aggregation_is_left_out():
    union = Strategy.model_fields["aggregation"].annotation
    methods = {m.model_fields["method"].annotation.__args__[0] for m in union.__args__}
    assert methods == set(PROTECTS) and Secure in union.__args__
    assert len({sign for sign, _ in STATES.values()}) == len(STATES)
