"""Rounds: the quorum holds, bad updates are refused by number, and repeating a run changes nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest

from contracts.canonical import canonical_json
from contracts.errors import ConsiliumError
from contracts.refusal import Refusal
from contracts.signing import SigningKey, to_text
from tasks.head import advance, load_head
from tasks.replay import replay
from tasks.roster import eligible_sites, last_ledger_heads, note_ledger_heads
from tasks.rounds import close_round, open_round
from tasks.store import get_tensors, load_record, save_sheet
from tasks.watchdog import idle_studies
from tasks.withdrawals import withdrawn_since
from tests.factories import (
    TinyFederation,
    honest_answer,
    honest_tensors,
    open_next,
    private_study,
    tiny_study,
    write_tensors,
)


@pytest.fixture
def federation(tmp_path):
    return TinyFederation(tmp_path, tiny_study())


def answer_all(federation, plan, digest, folder, sites=None):
    return {s: honest_answer(federation, plan, digest, s, folder) for s in sites or federation.keys}


def run_round(federation, run_id, folder):
    plan, digest = open_next(federation, run_id)
    return close_round(federation.home, "tiny", run_id, answer_all(federation, plan, digest, folder))


def everything(federation):
    """Every document and digest of the study, without times."""
    folder = federation.home.study("tiny")
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.json")}


def test_a_study_runs_to_its_end_and_replays_to_the_same_digests(federation, tmp_path):
    assert [run_round(federation, f"run-{r}", tmp_path).next for r in range(3)] == [
        "round",
        "round",
        "finished",
    ]
    replayed = list(replay(federation.home, "tiny"))
    assert [r.round for r in replayed] == [0, 1, 2] and all(r.matches for r in replayed)


def test_replay_notices_an_altered_update(federation, tmp_path):
    for r in range(3):
        run_round(federation, f"run-{r}", tmp_path)
    record = load_record(federation.home, "tiny", "1")
    path = federation.home.study("tiny") / "answers" / record["plan"] / "ash.json"
    document = json.loads(path.read_text())
    document["document"]["tensors"] = record["updates"][1]["tensors"]
    path.write_bytes(canonical_json(document))
    with pytest.raises(ConsiliumError, match="E803"):
        list(replay(federation.home, "tiny"))


def test_the_global_model_does_not_depend_on_the_order_of_arrival(tmp_path):
    digests = set()
    for name in ("one", "two"):
        federation = TinyFederation(tmp_path / name, tiny_study())
        run_round(federation, "run-0", tmp_path / name)
        plan, digest = open_next(federation, "run-1")
        answers = answer_all(federation, plan, digest, tmp_path / name)
        if name == "two":
            answers = dict(reversed(answers.items()))
        digests.add(close_round(federation.home, "tiny", "run-1", answers).record["model"])
    assert len(digests) == 1


def test_fedavg_is_the_weighted_mean(federation, tmp_path):
    run_round(federation, "run-0", tmp_path)
    plan, digest = open_next(federation, "run-1")
    before = get_tensors(federation.home, plan.base_model)
    after = get_tensors(
        federation.home,
        close_round(federation.home, "tiny", "run-1", answer_all(federation, plan, digest, tmp_path)).record[
            "model"
        ],
    )
    changes = [honest_tensors(federation, plan, s)["network.weight"] for s in ("ash", "birch", "cedar")]
    expected = before["network.weight"] + np.mean(np.array(changes, dtype=np.float64), axis=0)
    np.testing.assert_allclose(after["network.weight"], expected, rtol=0, atol=1e-7)


def nan(tensors):
    tensors["network.weight"][0, 0] = np.nan
    return tensors


def infinite(tensors):
    tensors["network.bias"][0] = np.inf
    return tensors


def huge(tensors):
    tensors["network.weight"][:] = 3e37
    return tensors


def reshaped(tensors):
    tensors["network.weight"] = tensors["network.weight"].T.copy()
    return tensors


def double(tensors):
    tensors["network.weight"] = tensors["network.weight"].astype(np.float64)
    return tensors


def additional(tensors):
    return tensors | {"network.extra": np.zeros(1, np.float32)}


@pytest.mark.parametrize(
    ("spoil", "number"),
    [
        (nan, "E502"),
        (infinite, "E502"),
        (huge, "E505"),
        (reshaped, "E501"),
        (double, "E501"),
        (additional, "E501"),
    ],
)
def test_bad_tensors_are_refused_by_number_and_the_round_goes_on(federation, tmp_path, spoil, number):
    run_round(federation, "run-0", tmp_path)
    plan, digest = open_next(federation, "run-1")
    answers = answer_all(federation, plan, digest, tmp_path, ["ash", "birch"])
    path = write_tensors(tmp_path / "spoilt", spoil(honest_tensors(federation, plan, "cedar")))
    answers["cedar"] = federation.signed("cedar", federation.envelope("cedar", plan, digest, path))
    closed = close_round(federation.home, "tiny", "run-1", answers)
    assert closed.next == "round"
    assert closed.record["refused"]["cedar"]["number"] == number
    assert (closed.record["trained"], closed.record["admitted"]) == (
        ["ash", "birch", "cedar"],
        ["ash", "birch"],
    )


@pytest.mark.parametrize(
    ("field", "value", "number"),
    [
        ("base_model", "f" * 64, "E503"),
        ("plan", "f" * 64, "E504"),
        ("round", 0, "E504"),
        ("site", "ash", "E504"),
        ("protocol_hash", "f" * 64, "E504"),
        ("data_sheet", "f" * 64, "E511"),
        ("code_version", "0.0.1", "E305"),
        ("tensors", "f" * 64, "E509"),
        ("tensor_bytes", 1, "E509"),
    ],
)
def test_an_envelope_that_does_not_fit_the_plan_is_refused(federation, tmp_path, field, value, number):
    run_round(federation, "run-0", tmp_path)
    plan, digest = open_next(federation, "run-1")
    answers = answer_all(federation, plan, digest, tmp_path, ["ash", "birch"])
    path = write_tensors(tmp_path / "cedar", honest_tensors(federation, plan, "cedar"))
    envelope = federation.envelope("cedar", plan, digest, path).model_copy(update={field: value})
    answers["cedar"] = federation.signed("cedar", envelope)
    record = close_round(federation.home, "tiny", "run-1", answers).record
    assert record["refused"]["cedar"]["number"] == number


def test_a_foreign_signature_and_an_earlier_rounds_update_are_refused(federation, tmp_path):
    plan, digest = open_next(federation, "run-0")
    first = answer_all(federation, plan, digest, tmp_path)
    close_round(federation.home, "tiny", "run-0", first)
    plan, digest = open_next(federation, "run-1")
    answers = answer_all(federation, plan, digest, tmp_path)
    foreign = SigningKey.generate("cedar")
    path = write_tensors(tmp_path / "cedar", honest_tensors(federation, plan, "cedar"))
    answers["cedar"] = to_text(foreign.sign(federation.envelope("cedar", plan, digest, path)))
    answers["birch"] = first["birch"]
    with pytest.raises(ConsiliumError, match="E506"):
        close_round(federation.home, "tiny", "run-1", answers)
    refused = load_record(federation.home, "tiny", "1")["refused"]
    assert {site: r["number"] for site, r in refused.items()} == {"cedar": "E803", "birch": "E504"}


def test_a_missed_quorum_says_why_and_resumes_under_the_same_plan(federation, tmp_path):
    plan, digest = open_next(federation, "run-0")
    no = Refusal.of(ConsiliumError("E302"), study="tiny", site="birch", stage="train", plan=digest)
    answers = {
        "ash": honest_answer(federation, plan, digest, "ash", tmp_path),
        "birch": to_text(federation.keys["birch"].sign(no)),
        "cedar": None,
    }
    with pytest.raises(ConsiliumError, match=r"E506.*1 updates, at least 2.*birch \(E302 .*silent: cedar"):
        close_round(federation.home, "tiny", "run-0", answers)
    record = load_record(federation.home, "tiny", "0")
    assert record["status"] == "refused" and record["silent"] == ["cedar"]
    assert record["expected"] == ["ash", "birch", "cedar"]
    again, same = open_next(federation, "run-1")
    assert same == digest and again == plan
    closed = close_round(federation.home, "tiny", "run-1", answer_all(federation, plan, digest, tmp_path))
    assert closed.next == "round" and closed.record["status"] == "closed"


def test_a_roster_that_cannot_reach_the_quorum_is_planned_anew(federation, tmp_path):
    plan, digest = open_next(federation, "run-0", present={"ash", "birch"})
    answers = {"ash": honest_answer(federation, plan, digest, "ash", tmp_path), "birch": None}
    with pytest.raises(ConsiliumError, match="E506"):
        close_round(federation.home, "tiny", "run-0", answers)
    again, other = open_next(federation, "run-1", present={"ash", "cedar"})
    assert other != digest and again.attempt == 2
    assert [e.site for e in again.roster] == ["ash", "cedar"]
    record = load_record(federation.home, "tiny", "0")
    assert [a["plan"] for a in record["attempts"]] == [digest]


def test_too_few_hospitals_there_is_refused_before_anything_is_planned(federation):
    with pytest.raises(ConsiliumError, match=r"E506.*1 of at least 2 sites.*birch: not connected"):
        open_round(federation.home, "tiny", "run-0", {"ash"})
    assert load_head(federation.home, "tiny").plan is None


def test_a_cleared_run_of_a_closed_round_does_nothing(federation, tmp_path):
    for r in range(3):
        run_round(federation, f"run-{r}", tmp_path)
    before = everything(federation)
    for run_id in ("run-0", "run-1", "run-2", "rung-again"):
        opened = open_round(federation.home, "tiny", run_id, set(federation.keys))
        assert opened.plan is None and opened.reason
        # The run of the last round rings for the release again: its bell may have been lost.
        bell = "finished" if run_id == "run-2" else None
        assert close_round(federation.home, "tiny", run_id, {}).next == bell
    assert everything(federation) == before


def test_a_run_cleared_in_the_middle_of_a_study_does_not_train_the_next_round(federation, tmp_path):
    run_round(federation, "run-0", tmp_path)
    opened = open_round(federation.home, "tiny", "run-0", set(federation.keys))
    assert opened.plan is None and "closed" in opened.reason
    assert load_head(federation.home, "tiny").round == 1


def test_a_deleted_runs_round_is_resumed_by_the_next_run_under_the_same_plan(federation, tmp_path):
    plan, digest = open_next(federation, "deleted")
    again, same = open_next(federation, "by-hand")
    assert (again, same) == (plan, digest)
    closed = close_round(federation.home, "tiny", "by-hand", answer_all(federation, plan, digest, tmp_path))
    assert closed.next == "round"
    assert close_round(federation.home, "tiny", "deleted", {}).next is None


def test_the_coordinator_never_forgets_the_longest_ledger_it_was_shown(tmp_path):
    federation = TinyFederation(tmp_path, private_study())
    note_ledger_heads(federation.home, {"ash": (4, "a" * 64), "birch": (1, "b" * 64)})
    note_ledger_heads(federation.home, {"ash": (3, "c" * 64)})  # an earlier answer, closed later
    assert last_ledger_heads(federation.home) == {"ash": "a" * 64, "birch": "b" * 64}
    note_ledger_heads(federation.home, {"ash": (5, "d" * 64)})
    assert last_ledger_heads(federation.home)["ash"] == "d" * 64


def test_the_ledger_of_an_update_that_missed_its_quorum_is_remembered(tmp_path):
    federation = TinyFederation(tmp_path, private_study())
    plan, digest = open_next(federation, "run")
    path = write_tensors(tmp_path / "u", honest_tensors(federation, plan, "ash"))
    envelope = federation.envelope("ash", plan, digest, path)
    shown = envelope.model_copy(update={"ledger_head": "e" * 64, "ledger_length": 7})
    with pytest.raises(ConsiliumError, match="E506"):
        close_round(federation.home, "tiny", "run", {"ash": federation.signed("ash", shown)})
    assert last_ledger_heads(federation.home) == {"ash": "e" * 64}


def test_a_study_whose_hospitals_refuse_is_rung_less_and_less_often(federation, monkeypatch):
    open_next(federation, "run")
    monkeypatch.setattr("tasks.watchdog.present_sites", lambda home: set(federation.keys))
    waits = []
    for refusals in range(4):
        head = load_head(federation.home, "tiny")
        advance(federation.home, head, refusals=refusals)
        rung = [s for s in range(0, 2000, 5) if rings(federation, monkeypatch, float(s))]
        waits.append(rung[0])
    assert waits == [55, 45, 85, 165]  # the open plan's deadline first, then 20 s doubled for each refusal


def test_an_open_round_that_no_run_will_close_is_rung_without_waiting_for_its_deadline(
    federation, monkeypatch
):
    open_next(federation, "run")
    monkeypatch.setattr("tasks.watchdog.present_sites", lambda home: set(federation.keys))
    for seconds, active, rung in ((15.0, False, False), (25.0, False, True), (25.0, True, False)):
        monkeypatch.setattr("tasks.watchdog.seconds_since", lambda timestamp, s=seconds: s)
        assert bool(idle_studies(federation.home, lambda study, a=active: a)) == rung


def rings(federation, monkeypatch, seconds: float) -> bool:
    """Say whether the watchdog rings the study after so many seconds without activity."""
    monkeypatch.setattr("tasks.watchdog.seconds_since", lambda timestamp: seconds)
    return "tiny" in idle_studies(federation.home)


def test_a_hospital_that_withdrew_is_left_out_until_it_publishes_another_sheet(tmp_path):
    federation = TinyFederation(tmp_path, tiny_study())
    plan, digest = open_next(federation, "one")
    no = Refusal.of(ConsiliumError("E303"), study="tiny", site="birch", stage="train", plan=digest)
    answers = {s: honest_answer(federation, plan, digest, s, tmp_path) for s in ("ash", "cedar")}
    close_round(
        federation.home, "tiny", "one", {**answers, "birch": to_text(federation.keys["birch"].sign(no))}
    )
    everybody = set(federation.keys)
    eligible, absent = eligible_sites(federation.home, federation.protocol, everybody)
    assert sorted(eligible) == ["ash", "cedar"] and absent == {"birch": "withdrawn from the study"}
    plan, _ = open_next(federation, "two")
    assert [entry.site for entry in plan.roster] == ["ash", "cedar"]
    again = federation.sheet("birch", created="2030-01-01T00:00:00Z")
    save_sheet(federation.home, "tiny", "birch", again)
    assert sorted(eligible_sites(federation.home, federation.protocol, everybody)[0]) == sorted(everybody)
    assert withdrawn_since(federation.home, "tiny") == {"birch": 0}  # the record keeps it
