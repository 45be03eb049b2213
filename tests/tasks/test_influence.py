"""The influence of a hospital is what its absence would change, and a record cannot state another."""

from __future__ import annotations

import numpy as np
import pytest

from contracts.errors import ConsiliumError
from durable.files import read_json, write_json
from tasks.head import load_head
from tasks.influence import measured
from tasks.replay import replay
from tasks.rounds import close_round, open_round
from tasks.store import load_record
from tests.factories import (
    TinyFederation,
    honest_answer,
    honest_tensors,
    open_next,
    tiny_study,
    write_tensors,
)
from tests.updates import SHAPES, SIZE, admitted

WEIGHTS = [10.0, 20.0, 30.0, 5.0, 35.0]


def values(seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return (draw.normal(size=SIZE) + 0.5 * draw.normal(size=(5, SIZE))).astype(np.float32)


def study(**aggregation):
    return tiny_study(strategy={"aggregation": aggregation})


def test_moved_is_what_leaving_the_hospital_out_would_change_and_cosine_its_angle_to_the_others():
    updates = values().astype(np.float64)
    found = measured(study(method="mean"), admitted(updates, weights=WEIGHTS), SHAPES)
    mean = np.average(updates, axis=0, weights=WEIGHTS)
    for i, site in enumerate(found):
        others = np.average(np.delete(updates, i, axis=0), axis=0, weights=np.delete(WEIGHTS, i))
        moved = np.linalg.norm(mean - others) / np.linalg.norm(mean)
        cosine = others @ updates[i] / np.linalg.norm(others) / np.linalg.norm(updates[i])
        assert found[site]["moved"] == pytest.approx(moved, rel=1e-4)
        assert found[site]["cosine"] == pytest.approx(cosine, rel=1e-4)
        assert (found[site]["scale"], found[site]["kept"]) == (1.0, 1.0)


def test_a_scaled_update_moves_the_mean_by_what_is_left_of_it():
    sent = values()
    sent[2] *= -100
    found = measured(study(method="norm_bound"), admitted(sent), SHAPES)
    plain = measured(study(method="mean"), admitted(sent), SHAPES)
    assert found["cedar"]["scale"] < 0.05 and found["cedar"]["cosine"] < -0.5
    assert {site: f["scale"] for site, f in found.items() if site != "cedar"} == dict.fromkeys(
        ("ash", "birch", "elm", "hazel"), 1.0
    )
    others = np.delete(sent, 2, axis=0).astype(np.float64)
    scaled = sent[2].astype(np.float64) * found["cedar"]["scale"]
    mean = np.vstack([others, scaled]).mean(axis=0)
    moved = np.linalg.norm(mean - others.mean(axis=0)) / np.linalg.norm(mean)
    assert found["cedar"]["moved"] == pytest.approx(moved, rel=1e-3)
    assert plain["cedar"]["scale"] == 1.0


def test_krum_says_whose_update_it_dropped():
    sent = values()
    sent[4] *= -50
    found = measured(study(method="krum", keep=4), admitted(sent), SHAPES)
    assert {site: f["kept"] for site, f in found.items()} == {
        "ash": 1.0,
        "birch": 1.0,
        "cedar": 1.0,
        "elm": 1.0,
        "hazel": 0.0,
    }


def test_of_an_update_that_lies_outside_the_trimmed_mean_uses_nothing():
    sent = values()
    sent[1] = 1000.0
    found = measured(study(method="trimmed_mean", trim=1), admitted(sent), SHAPES)
    assert found["birch"]["kept"] == 0.0
    # Every coordinate keeps three of five values.
    assert sum(f["kept"] for f in found.values()) == pytest.approx(3.0, abs=1e-5)
    median = measured(study(method="median"), admitted(sent), SHAPES)
    assert sum(f["kept"] for f in median.values()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("sent", [np.ones((1, SIZE)), np.zeros((3, SIZE))])
def test_where_there_is_nothing_to_compare_with_nothing_is_stated(sent):
    for found in measured(study(method="norm_bound"), admitted(sent), SHAPES).values():
        assert (found["moved"], found["cosine"], found["scale"]) == (None, None, 1.0)


def run(federation, folder, rounds=3, spoil=None):
    """Close rounds in which every hospital is honest, but for cedar's part in training."""
    for number in range(rounds):
        plan, digest = open_next(federation, f"run-{number}")
        answers = {s: honest_answer(federation, plan, digest, s, folder) for s in federation.keys}
        if spoil and plan.kind == "training":
            tensors = spoil(honest_tensors(federation, plan, "cedar"))
            path = write_tensors(folder / f"spoilt-{number}", tensors)
            answers["cedar"] = federation.signed("cedar", federation.envelope("cedar", plan, digest, path))
        close_round(federation.home, "tiny", f"run-{number}", answers)


def scaled_up(tensors):
    return {name: 1000 * array for name, array in tensors.items()}


def test_a_round_records_whom_it_scaled_and_replays_to_the_same_model_and_influence(tmp_path):
    federation = TinyFederation(tmp_path, tiny_study())
    run(federation, tmp_path, spoil=scaled_up)
    assert "influence" not in load_record(federation.home, "tiny", "0")
    for number in ("1", "2"):
        found = load_record(federation.home, "tiny", number)["influence"]
        assert set(found) == {"ash", "birch", "cedar"}
        assert found["cedar"]["scale"] < 0.01 and found["ash"]["scale"] == found["birch"]["scale"] == 1.0
    assert all(r.matches for r in replay(federation.home, "tiny"))


def test_the_scaling_reaches_the_model(tmp_path):
    """With the plain mean the same attack moves the model a hundred times as far."""
    from tasks.store import get_tensors

    lengths = {}
    for method in ("norm_bound", "mean"):
        federation = TinyFederation(
            tmp_path / method, tiny_study(strategy={"aggregation": {"method": method}})
        )
        run(federation, tmp_path / method, spoil=scaled_up)
        model = get_tensors(federation.home, load_head(federation.home, "tiny").model)
        lengths[method] = float(np.linalg.norm(model["network.weight"]))
    assert lengths["mean"] > 20 * lengths["norm_bound"]


def test_a_record_that_states_another_influence_does_not_replay(tmp_path):
    federation = TinyFederation(tmp_path, tiny_study())
    run(federation, tmp_path)
    path = federation.home.study("tiny") / "records" / "2.json"
    record = read_json(path)
    record["influence"]["birch"]["moved"] *= 0.5
    write_json(path, record)
    with pytest.raises(ConsiliumError, match=r"E521.*round 2, birch"):
        list(replay(federation.home, "tiny"))


def test_hospital_level_privacy_tells_nobody_what_a_hospital_did(tmp_path):
    privacy = {"mode": "site", "epsilon": 20.0, "delta": 0.001, "max_update_norm": 1.0}
    training = {"steps": 3, "sample_rate": 0.2, "learning_rate": 0.5, "normalisation": "declared"}
    federation = TinyFederation(tmp_path, tiny_study(privacy=privacy, training=training))
    run(federation, tmp_path, rounds=2)
    for number in ("1", "2"):
        assert "influence" not in load_record(federation.home, "tiny", number)


@pytest.mark.parametrize(
    ("aggregation", "needed"),
    [({"method": "krum", "malicious": 1}, 5), ({"method": "trimmed_mean", "trim": 2}, 5)],
)
def test_too_few_hospitals_to_compare_are_refused_before_anything_is_planned(tmp_path, aggregation, needed):
    federation = TinyFederation(tmp_path, study(**aggregation))
    with pytest.raises(ConsiliumError, match=f"E520.*{aggregation['method']}.*3 of at least {needed}"):
        open_round(federation.home, "tiny", "run", set(federation.keys))
    head = load_head(federation.home, "tiny")
    assert head.plan is None and head.reason.startswith("E520")


def test_a_round_that_ends_with_too_few_to_compare_misses_its_quorum(tmp_path):
    federation = TinyFederation(tmp_path, study(method="trimmed_mean", trim=1))
    plan, digest = open_next(federation, "run")
    answers = {s: honest_answer(federation, plan, digest, s, tmp_path) for s in ("ash", "birch")}
    with pytest.raises(ConsiliumError, match=r"E506.*2 updates, at least 3 needed"):
        close_round(federation.home, "tiny", "run", answers)
