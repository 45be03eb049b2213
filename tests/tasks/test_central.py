"""Hospital-level privacy over whole rounds: charged once, noised by plan and set, replayed, refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import tasks.rounds as rounds
from contracts.errors import ConsiliumError
from contracts.signing import SigningKey
from privacy.accountant import Spend, epsilon
from privacy.calibration import calibrate
from privacy.central import sensitivity
from privacy.ledger import Ledger
from tasks.aggregate import Base, aggregate
from tasks.answers import gather
from tasks.central import CLIP
from tasks.federation_ledger import account, federation_ledger
from tasks.head import load_head
from tasks.replay import replay
from tasks.rounds import close_round, open_round
from tasks.spending import site_privacy
from tasks.store import get_tensors, load_record
from tests.factories import (
    STUDY,
    TinyFederation,
    honest_answer,
    honest_tensors,
    open_next,
    tiny_study,
)

pytestmark = pytest.mark.slow

SITE = {"mode": "site", "epsilon": 8.0, "delta": 1e-3, "max_update_norm": 0.05}
DECLARED = {"training": STUDY["training"] | {"normalisation": "declared"}}
TWELVE = tuple(f"site{i:02}" for i in range(12))


def hospital_study(**changes):
    return tiny_study(**({"privacy": SITE} | DECLARED | changes))


@pytest.fixture
def federation(tmp_path):
    return TinyFederation(tmp_path, hospital_study(), TWELVE)


def answers_of(federation, plan, digest, folder, sites=None):
    return {s: honest_answer(federation, plan, digest, s, folder) for s in sites or federation.keys}


def run_round(federation, run_id, folder):
    plan, digest = open_next(federation, run_id)
    return close_round(federation.home, "tiny", run_id, answers_of(federation, plan, digest, folder))


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
@pytest.mark.parametrize("clipping", ["flat", "adaptive"])
def test_a_study_runs_is_charged_once_a_round_and_replays(tmp_path, strategy, clipping):
    study = hospital_study(privacy=SITE | {"clipping": clipping}, strategy={"name": strategy}, rounds=3)
    federation = TinyFederation(tmp_path, study, TWELVE)
    records = [run_round(federation, f"run-{r}", tmp_path).record for r in (1, 2, 3)]
    sigma = calibrate(study).training
    ledger = federation_ledger(federation.home)
    assert ledger.spends() == [Spend(1.0, sigma, 1)] * 3
    assert [s.document["kind"] for s, _ in ledger.entries()] == ["genesis", *["reserve", "commit"] * 3]
    spent = records[-1]["epsilon"]
    assert spent["maximum"] == epsilon([Spend(1.0, sigma, 3)], 1e-3) <= spent["planned"] == 8.0
    assert set(spent["sites"]) == set(TWELVE)
    clips = [record["clip"] for record in records]
    assert clips[0] == 0.05 and (len(set(clips)) == 3) == (clipping == "adaptive") and max(clips) <= 0.05
    assert all(r.matches for r in replay(federation.home, "tiny"))
    assert {p.epsilon_study for p in site_privacy(federation.home, study)} == {spent["maximum"]}


def test_the_model_moves_by_the_clipped_mean_and_noise_of_the_stated_size(federation, tmp_path):
    plan, digest = open_next(federation, "run-1")
    before = get_tensors(federation.home, plan.base_model)
    closed = close_round(federation.home, "tiny", "run-1", answers_of(federation, plan, digest, tmp_path))
    after = get_tensors(federation.home, closed.record["model"])
    names = [name for name in sorted(before) if name.startswith("network.")]
    vectors = []
    for site in TWELVE:
        tensors = honest_tensors(federation, plan, site)
        vector = np.concatenate([tensors[name].reshape(-1) for name in names]).astype(np.float64)
        vectors.append(vector * min(1.0, 0.05 / np.linalg.norm(vector)))
    moved = np.concatenate([(after[name] - before[name]).reshape(-1) for name in names])
    std = plan.noise_multiplier * sensitivity(dict.fromkeys(TWELVE, 100.0), 0.05)
    noise = moved - np.mean(vectors, axis=0)
    assert np.abs(noise).max() < 6 * std and noise.std() > std / 6


def aggregated(federation, plan, digest, answers):
    """The model that a set of answers gives, without touching ledger or head."""
    documents = gather(federation.home, plan, answers, rounds.UpdateEnvelope).documents
    weights = dict.fromkeys(documents, 100.0)
    base = Base(plan.base_model, None)
    result = aggregate(
        federation.home, federation.protocol, plan, digest, base, list(documents.values()), weights
    )
    return get_tensors(federation.home, result.model)


def test_the_same_set_has_the_same_noise_and_another_set_or_plan_has_its_own(federation, tmp_path):
    run_round(federation, "run-1", tmp_path)  # the noise key is there
    plan, digest = open_next(federation, "run-2")
    answers = answers_of(federation, plan, digest, tmp_path)
    fewer = {site: text for site, text in answers.items() if site != "site03"}
    std = plan.noise_multiplier * sensitivity(dict.fromkeys(TWELVE, 100.0), 0.05)
    first, again = (aggregated(federation, plan, digest, answers) for _ in range(2))
    less = aggregated(federation, plan, digest, fewer)
    other = aggregated(federation, plan, "f" * 64, answers)
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    gone = honest_tensors(federation, plan, "site03")
    names = [name for name in first if name.startswith("network.")]
    size = sum(first[name].size for name in names)
    # Under one noise the difference of both sums would be the missing hospital's own update.
    for changed, removed in ((less, 1.0), (other, 0.0)):
        left = np.concatenate(
            [(first[name] - changed[name] - removed * gone[name] / 12).reshape(-1) for name in names]
        )
        assert np.linalg.norm(left) > 0.1 * std * np.sqrt(size)


def crash(*arguments, **keywords):
    raise RuntimeError("killed")


def test_a_crash_before_the_record_repeats_the_round_under_the_same_reservation(
    federation, tmp_path, monkeypatch
):
    plan, digest = open_next(federation, "run-1")
    answers = answers_of(federation, plan, digest, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(rounds, "save_record", crash)
        with pytest.raises(RuntimeError):
            close_round(federation.home, "tiny", "run-1", answers)
    reserved = federation_ledger(federation.home).spends()
    assert len(reserved) == 1 and load_head(federation.home, "tiny").plan == digest
    assert close_round(federation.home, "tiny", "run-1", answers).next == "round"
    assert federation_ledger(federation.home).spends() == reserved


def test_a_crash_after_the_record_publishes_that_record_whoever_answers_then(
    federation, tmp_path, monkeypatch
):
    plan, digest = open_next(federation, "run-1")
    answers = answers_of(federation, plan, digest, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(rounds, "advance", crash)
        with pytest.raises(RuntimeError):
            close_round(federation.home, "tiny", "run-1", answers)
    stored = load_record(federation.home, "tiny", "1")
    fewer = {site: answers[site] for site in TWELVE[:5]}
    closed = close_round(federation.home, "tiny", "run-1", fewer)
    assert closed.next == "round" and closed.record == stored
    assert load_head(federation.home, "tiny").model == stored["model"]
    assert len(federation_ledger(federation.home).spends()) == 1
    assert close_round(federation.home, "tiny", "run-1", answers).next is None
    assert all(r.matches for r in replay(federation.home, "tiny"))


def test_a_missed_quorum_spends_nothing(tmp_path):
    federation = TinyFederation(tmp_path, hospital_study(min_sites=6), TWELVE)
    plan, digest = open_next(federation, "run-1")
    few = answers_of(federation, plan, digest, tmp_path, TWELVE[:5])
    with pytest.raises(ConsiliumError, match="E506"):
        close_round(federation.home, "tiny", "run-1", few)
    assert federation_ledger(federation.home).spends() == []


def budget(federation, **fields):
    path = federation.home.root / "budget.json"
    path.write_text(json.dumps(fields))
    return path


def test_the_budget_is_written_at_first_use_and_binds_before_anybody_trains(federation, tmp_path):
    open_next(federation, "run-1")
    path = federation.home.root / "budget.json"
    assert json.loads(path.read_text()) == {"epsilon": 50.0, "delta": 1e-3}


def test_a_study_that_would_pass_the_budget_is_not_begun_and_says_so(federation):
    budget(federation, epsilon=7.5, delta=1e-3)
    with pytest.raises(ConsiliumError, match=r"E401.*epsilon 7\.9.*at most 7\.5"):
        open_round(federation.home, "tiny", "run-1", set(TWELVE))
    head = load_head(federation.home, "tiny")
    assert head.plan is None and "E401" in head.reason
    budget(federation, epsilon=8.0, delta=1e-5)  # held to the smaller delta
    with pytest.raises(ConsiliumError, match="E401"):
        open_round(federation.home, "tiny", "run-1", set(TWELVE))
    budget(federation, epsilon=8.0, delta=1e-3)
    assert open_round(federation.home, "tiny", "run-1", set(TWELVE)).plan is not None


def test_a_budget_that_was_lowered_meanwhile_stops_the_aggregate(federation, tmp_path):
    plan, digest = open_next(federation, "run-1")
    budget(federation, epsilon=1.0, delta=1e-3)
    with pytest.raises(ConsiliumError, match="E401"):
        close_round(federation.home, "tiny", "run-1", answers_of(federation, plan, digest, tmp_path))
    assert load_head(federation.home, "tiny").plan == digest
    assert federation_ledger(federation.home).spends() == []


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"epsilon": -1, "delta": 0.001}', '{"epsilon": 9, "cap": 1}']
)
def test_a_damaged_budget_is_no_budget(federation, content):
    (federation.home.root / "budget.json").write_text(content)
    with pytest.raises(ConsiliumError, match="E423"):
        open_round(federation.home, "tiny", "run-1", set(TWELVE))


def test_a_second_study_adds_to_the_same_ledger(federation, tmp_path):
    from tasks.head import register_study
    from tasks.store import save_sheet

    for run in ("run-1", "run-2"):
        run_round(federation, run, tmp_path)
    budget(federation, epsilon=9.0, delta=1e-3)
    second = hospital_study(study="second")
    register_study(federation.home, second)
    for site in TWELVE:
        sheet = federation.sheet(site, study="second", protocol_hash=second.hash)
        save_sheet(federation.home, "second", site, sheet)
    with pytest.raises(ConsiliumError, match=r"E401.*all hospitals"):
        open_round(federation.home, "second", "other-1", set(TWELVE))
    spent = account(federation.home, second)
    assert spent.epsilon_study == 0.0 and 7.9 < spent.epsilon_lineage <= 8.0
    assert spent.epsilon_left == pytest.approx(9.0 - spent.epsilon_lineage)


def test_a_ledger_that_was_deleted_or_put_back_is_no_empty_budget(federation, tmp_path):
    run_round(federation, "run-1", tmp_path)
    folder = federation.home.root / "ledger"
    shutil.copytree(folder, tmp_path / "older")
    run_round(federation, "run-2", tmp_path)
    shutil.rmtree(folder)
    with pytest.raises(ConsiliumError, match="E407"):
        federation_ledger(federation.home)
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "older", folder)
    with pytest.raises(ConsiliumError, match="E407"):
        federation_ledger(federation.home)


def test_a_lost_noise_key_is_not_replaced(federation, tmp_path):
    run_round(federation, "run-1", tmp_path)
    key = federation.home.root / "keys" / "noise.key"
    assert len(key.read_bytes()) == 32 and key.stat().st_mode & 0o077 == 0
    plan, digest = open_next(federation, "run-2")
    key.unlink()
    with pytest.raises(ConsiliumError, match="E424"):
        close_round(federation.home, "tiny", "run-2", answers_of(federation, plan, digest, tmp_path))
    with pytest.raises(ConsiliumError, match="E424"):
        list(replay(federation.home, "tiny"))
    assert not key.exists()


def test_delta_must_be_below_one_over_the_hospitals(tmp_path):
    federation = TinyFederation(tmp_path, hospital_study(privacy=SITE | {"delta": 0.09}), TWELVE)
    with pytest.raises(ConsiliumError, match=r"E425.*1/12"):
        open_round(federation.home, "tiny", "run-1", set(TWELVE))
    assert open_round(federation.home, "tiny", "run-1", set(TWELVE[:10])).plan is not None


def test_the_ledger_is_one_that_anybody_with_the_coordinators_key_can_verify(federation, tmp_path):
    run_round(federation, "run-1", tmp_path)
    home = federation.home
    key = SigningKey.load("coordinator", home.signing_key)
    ledger = Ledger(home.root / "ledger" / "federation.jsonl", "coordinator", "federation", key)
    ledger.verify()
    shown = load_record(home, "tiny", "1")["federation_ledger"]
    ledger.check_head(shown["head"])
    assert (ledger.length, shown["length"]) == (3, 2)  # genesis, the reservation; then the commit


def test_the_adaptive_clip_norm_is_kept_state_of_the_coordinator_and_no_strategys(tmp_path):
    study = hospital_study(privacy=SITE | {"clipping": "adaptive"}, strategy={"name": "fedadam"})
    federation = TinyFederation(tmp_path, study, TWELVE)
    first = run_round(federation, "run-1", tmp_path).record
    kept = get_tensors(federation.home, first["optimiser"])
    assert kept[CLIP].shape == (1,) and len([name for name in kept if name.startswith("first.")]) == 2
    assert run_round(federation, "run-2", tmp_path).record["clip"] == float(kept[CLIP][0])
