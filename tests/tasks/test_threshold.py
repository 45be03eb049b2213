"""The decision threshold is locked once, before any holdout is read, and repeating a run changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

from contracts.errors import ConsiliumError
from contracts.plan import RoundPlan
from contracts.signing import parse_signed
from privacy.histogram import BINS
from tasks.evaluation import open_evaluation
from tasks.head import advance, load_head
from tasks.replay import replay
from tasks.rounds import close_round, open_round
from tasks.store import get_tensors, load_record, put_tensors, save_record
from tests.factories import TinyFederation, honest_answer, open_next, tiny_study, write_tensors

RULE = {"sensitivity": 0.8}
LAST = 3  # statistics, two rounds, and the histogram


@pytest.fixture
def federation(tmp_path):
    return TinyFederation(tmp_path, tiny_study(decision_threshold=RULE))


def close(federation, run_id, plan, plan_digest, folder, **answers):
    honest = {s: honest_answer(federation, plan, plan_digest, s, folder) for s in federation.keys}
    return close_round(federation.home, "tiny", run_id, honest | answers)


def train(federation, folder):
    """Close every round of training."""
    for r in range(LAST):
        plan, plan_digest = open_next(federation, f"run-{r}")
        assert plan.decision_threshold is None
        assert close(federation, f"run-{r}", plan, plan_digest, folder).next == "round"


def finish(federation, folder):
    """Close every round of training and the histogram."""
    train(federation, folder)
    plan, plan_digest = open_next(federation, "run-3")
    assert (plan.kind, plan.round) == ("histogram", LAST)
    return close(federation, "run-3", plan, plan_digest, folder)


def answer(federation, plan, plan_digest, site, histogram, folder):
    """The signed string of a site that sends this histogram."""
    path = write_tensors(folder / f"own-{site}", {"histogram": histogram})
    return federation.signed(site, federation.envelope(site, plan, plan_digest, path))


def evaluation_plan(federation):
    opened = open_evaluation(federation.home, "tiny", "release", set(federation.keys))
    return RoundPlan.model_validate(parse_signed(opened.plan).document)


def test_the_threshold_is_locked_when_the_histogram_closes_and_every_evaluation_carries_it(
    federation, tmp_path
):
    train(federation, tmp_path)
    assert load_head(federation.home, "tiny").threshold is None
    with pytest.raises(ConsiliumError, match="E706"):
        evaluation_plan(federation)
    plan, plan_digest = open_next(federation, "run-3")
    closed = close(federation, "run-3", plan, plan_digest, tmp_path)
    head = load_head(federation.home, "tiny")
    assert (closed.next, head.status, head.round) == ("finished", "finished", LAST)
    assert head.threshold == closed.record["threshold"]["value"]
    assert head.model == closed.record["model"] == plan.base_model  # the model is what it was
    assert closed.record["threshold"]["sensitivity"] >= RULE["sensitivity"]
    assert evaluation_plan(federation).decision_threshold == head.threshold


def test_cleared_and_repeated_runs_leave_the_threshold(federation, tmp_path):
    finish(federation, tmp_path)
    before = load_head(federation.home, "tiny")
    for run_id in ("run-2", "run-3", "rung-again"):
        assert open_round(federation.home, "tiny", run_id, set(federation.keys)).plan is None
        bell = "finished" if run_id == "run-3" else None
        assert close_round(federation.home, "tiny", run_id, {}).next == bell
    assert load_head(federation.home, "tiny") == before


def test_replay_recomputes_the_histogram_and_notices_another_threshold(federation, tmp_path):
    finish(federation, tmp_path)
    replayed = list(replay(federation.home, "tiny"))
    assert [r.round for r in replayed] == [0, 1, 2, 3] and all(r.matches for r in replayed)
    record = load_record(federation.home, "tiny", "3")
    stored = get_tensors(federation.home, record["histogram"])
    assert stored["threshold"] == [record["threshold"]["value"]]
    forged = put_tensors(federation.home, stored | {"threshold": stored["threshold"] + 0.1})
    save_record(federation.home, "tiny", "3", record | {"histogram": forged})
    assert [r.matches for r in replay(federation.home, "tiny")] == [True, True, True, False]


@pytest.mark.parametrize(
    ("histogram", "number"),
    [
        (np.full(2 * BINS, 25.0, np.float32), "E505"),  # norm 250, of 100 declared patients
        (np.zeros(BINS, np.float32), "E501"),
        (np.full(2 * BINS, np.nan, np.float32), "E502"),
    ],
)
def test_a_bad_histogram_is_refused_by_number_and_does_not_count(federation, tmp_path, histogram, number):
    train(federation, tmp_path)
    plan, plan_digest = open_next(federation, "run-3")
    bad = answer(federation, plan, plan_digest, "cedar", histogram, tmp_path)
    record = close(federation, "run-3", plan, plan_digest, tmp_path, cedar=bad).record
    assert record["refused"]["cedar"]["number"] == number
    assert record["admitted"] == ["ash", "birch"] and record["threshold"]["value"] > 0


def test_a_histogram_that_decides_nothing_ends_the_study_without_a_release(federation, tmp_path):
    train(federation, tmp_path)
    plan, plan_digest = open_next(federation, "run-3")
    nobody = np.zeros(2 * BINS, np.float32)
    answers = {s: answer(federation, plan, plan_digest, s, nobody, tmp_path) for s in federation.keys}
    with pytest.raises(ConsiliumError, match=r"E427.*0 positives of 0 patients"):
        close(federation, "run-3", plan, plan_digest, tmp_path, **answers)
    head = load_head(federation.home, "tiny")
    assert head.status == "rejected" and head.threshold is None and "E427" in (head.reason or "")
    assert open_evaluation(federation.home, "tiny", "release", set(federation.keys)).plan is None
    assert open_round(federation.home, "tiny", "again", set(federation.keys)).plan is None
    assert all(r.matches for r in replay(federation.home, "tiny"))


def test_without_a_locked_threshold_nothing_is_evaluated(federation, tmp_path):
    finish(federation, tmp_path)
    advance(federation.home, load_head(federation.home, "tiny"), threshold=None)
    with pytest.raises(ConsiliumError, match="E426"):
        evaluation_plan(federation)


def test_a_study_with_a_fixed_threshold_has_no_histogram(tmp_path):
    federation = TinyFederation(tmp_path, tiny_study())
    for r in range(LAST):
        plan, plan_digest = open_next(federation, f"run-{r}")
        closed = close(federation, f"run-{r}", plan, plan_digest, tmp_path)
    assert closed.next == "finished" and load_head(federation.home, "tiny").threshold is None
    assert evaluation_plan(federation).decision_threshold is None
