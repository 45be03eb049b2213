"""Calibration: the whole planned study meets its epsilon, with the least noise of four digits that does."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

import privacy.calibration as calibration
from contracts.errors import ConsiliumError
from contracts.privacy import Adjacency
from contracts.schedule import slots
from contracts.study import StudyProtocol, parse_study
from privacy.accountant import Spend, epsilon, epsilon_gaussian
from privacy.calibration import calibrate, check_delta, planned_spends, projection, spend_of, still_planned


def protocol(rounds: int = 20, **changes: Any) -> StudyProtocol:
    training = {"steps": 10, "sample_rate": 0.1, "learning_rate": 0.1} | changes.pop("training", {})
    privacy = {"mode": "patient", "epsilon": 3.0, "delta": 1e-4, "max_grad_norm": 1.0}
    return parse_study(
        {
            "schema": "consilium/study/1",
            "study": "calibrated",
            "title": "t",
            "intended_use": "t",
            "cohort": {},
            "features": [{"name": "age", "kind": "numeric", "unit": "a", "range": [0, 120]}],
            "label": {"name": "died", "positive": "death"},
            "model": {"name": "logistic"},
            "training": training,
            "privacy": changes.pop("mode", privacy | changes.pop("privacy", {})),
            "rounds": rounds,
            "min_sites": 2,
            **changes,
        }
    )


DECLARED = {"normalisation": "declared"}
HOSPITAL = {"mode": "site", "epsilon": 8.0, "delta": 1e-3, "max_update_norm": 1.0}


@pytest.mark.parametrize(
    "study",
    [
        protocol(),
        protocol(rounds=1),
        protocol(privacy={"epsilon": 0.3}),
        protocol(privacy={"epsilon": 12.0, "delta": 1e-6}),
        protocol(training={"normalisation": "declared"}),
        protocol(training={"sample_rate": 1.0}),
        protocol(rounds=100, training={"steps": 50, "sample_rate": 0.01}),
    ],
)
def test_the_study_meets_its_epsilon_with_no_more_noise_than_needed(study: StudyProtocol) -> None:
    noise = calibrate(study)
    target, delta = study.privacy.epsilon, study.privacy.delta
    spends = planned_spends(study, noise)
    assert noise.epsilon == epsilon(spends, delta) <= target
    assert float(f"{noise.training:.4g}") == noise.training
    last = float(f"1e{len(str(int(noise.training))) - 4}") if noise.training >= 1 else 1e-4
    less = [Spend(s.sample_rate, s.noise_multiplier - last * 1.01, s.steps) for s in spends[-study.rounds :]]
    assert epsilon([*spends[: -study.rounds], *less], delta) > target
    if noise.statistics is not None:
        share = study.privacy.statistics_fraction * target
        assert epsilon(spends[:1], delta) <= share < epsilon([Spend(1.0, noise.statistics * 0.999, 1)], delta)


@pytest.mark.parametrize("adjacency", ["add-or-remove-one", "replace-one"])
def test_a_threshold_from_training_is_part_of_what_the_study_costs(adjacency: Adjacency) -> None:
    public = adjacency == "replace-one"
    study = protocol(privacy={"public_n": public}, decision_threshold={"sensitivity": 0.9})
    noise = calibrate(study)
    spends = planned_spends(study, noise)
    assert noise.statistics is not None and noise.histogram is not None
    assert spends[-1] == spend_of(study, "histogram", noise.histogram) == Spend(1.0, noise.histogram, 1)
    assert noise.epsilon == epsilon(spends, 1e-4, adjacency) <= 3.0
    assert epsilon(spends[-1:], 1e-4, adjacency) <= 0.05 * 3.0 < epsilon(spends[-1:], 1e-4, adjacency) * 1.001
    without = calibrate(protocol(privacy={"public_n": public}))
    assert without.histogram is None and noise.training > without.training


def test_replacing_a_patient_needs_more_noise_than_removing_one_and_at_most_twice() -> None:
    one, replaced = calibrate(protocol()), calibrate(protocol(privacy={"public_n": True}))
    assert one.statistics is not None and replaced.statistics is not None
    assert one.training < replaced.training <= 2 * one.training
    assert replaced.statistics == pytest.approx(2 * one.statistics, rel=2e-3)


def test_hospital_privacy_is_one_release_a_round_without_amplification() -> None:
    study = protocol(mode=HOSPITAL, training={"normalisation": "declared"})
    noise = calibrate(study)
    assert noise.statistics is None and noise.histogram is None
    assert planned_spends(study, noise) == [Spend(1.0, noise.training, 1)] * 20
    exact = epsilon_gaussian(noise.training / 20**0.5, 1e-3)
    assert noise.epsilon == pytest.approx(exact, rel=1e-9) and exact <= 8.0
    assert epsilon_gaussian(0.999 * noise.training / 20**0.5, 1e-3) > 8.0


def test_a_delta_that_would_lose_a_hospital_is_refused() -> None:
    check_delta(protocol(mode=HOSPITAL, training=DECLARED), 10**9)  # the number of patients does not matter
    study = protocol(mode=HOSPITAL | {"delta": 0.5}, training=DECLARED)
    with pytest.raises(ConsiliumError, match="min_sites") as error:
        calibrate(study)
    assert error.value.number == "E403"


def test_the_projection_is_epsilon_after_each_exchange() -> None:
    study = protocol(rounds=12, decision_threshold={"alert_rate": 0.1})
    noise = calibrate(study)
    points = projection(study, noise)
    spends = planned_spends(study, noise)
    assert [p.epsilon for p in points] == [epsilon(spends[: i + 1], 1e-4) for i in range(14)]
    assert [p.kind for p in points] == ["statistics", *["training"] * 12, "histogram"]
    assert [p.round for p in points] == [*range(13), 12]
    assert points[-1].epsilon == noise.epsilon
    few = projection(study, noise, most=4)
    assert {p.kind for p in few} == {"statistics", "training", "histogram"} and len(few) <= 6
    assert set(few) <= set(points) and few[-1] == points[-1]


def test_a_hundred_rounds_are_projected_in_seconds() -> None:
    study = protocol(rounds=100, training={"steps": 50, "sample_rate": 0.01})
    noise = calibrate(study)
    started = time.monotonic()
    points = projection(study, noise)
    assert time.monotonic() - started < 30.0  # a few seconds on a quiet core
    rising = [p.epsilon for p in points]
    assert len(points) == 101 and all(a < b + 1e-3 for a, b in itertools.pairwise(rising))


def test_calibration_is_the_same_every_time() -> None:
    first = calibrate(protocol())
    calibration._calibrated.clear()
    assert calibrate(protocol()) == first
    assert calibrate(protocol()) is calibrate(protocol())


def test_the_plan_is_one_release_then_the_rounds() -> None:
    study = protocol(rounds=3)
    noise = calibrate(study)
    assert noise.statistics is not None
    assert planned_spends(study, noise) == [
        Spend(1.0, noise.statistics, 1),
        *[Spend(0.1, noise.training, 10)] * 3,
    ]


def test_an_impossible_target_is_refused() -> None:
    with pytest.raises(ConsiliumError) as error:
        calibrate(
            protocol(
                rounds=10_000, training={"steps": 100_000, "sample_rate": 1.0}, privacy={"epsilon": 0.01}
            )
        )
    assert error.value.number == "E409"
    with pytest.raises(ConsiliumError) as error:
        calibrate(protocol(mode={"mode": "none"}))
    assert error.value.number == "E409"


def test_a_delta_that_would_lose_a_patient_is_refused() -> None:
    check_delta(protocol(), 9_900)
    for declared in (10_000, 11_000):
        with pytest.raises(ConsiliumError) as error:
            check_delta(protocol(), declared)
        assert error.value.number == "E403"


FURTHER = {"local_model": True, "leave_one_site_out": 4}


@pytest.mark.parametrize(
    ("validation", "models"),
    [({}, 1), ({"local_model": True}, 2), ({"leave_one_site_out": 4}, 4), (FURTHER, 5)],
)
def test_what_validation_trains_is_part_of_what_the_study_costs(validation: Any, models: int) -> None:
    """One more model for the hospital's own, and one for every other hospital that is left out."""
    study = protocol(rounds=4, validation=validation, decision_threshold={"sensitivity": 0.9})
    noise = calibrate(study)
    spends = planned_spends(study, noise)
    assert noise.epsilon == epsilon(spends, 1e-4) <= 3.0
    assert sum(s.steps for s in spends if s.noise_multiplier == noise.training) == models * 4 * 10
    less = [replace(s, noise_multiplier=0.999 * s.noise_multiplier) if s.steps > 1 else s for s in spends]
    assert epsilon(less, 1e-4) > 3.0
    plain = calibrate(protocol(rounds=4, decision_threshold={"sensitivity": 0.9}))
    assert (noise.statistics, noise.histogram) == (plain.statistics, plain.histogram)
    assert (noise.training > plain.training) == (models > 1)
    assert (noise == plain) == (models == 1)


@pytest.mark.parametrize("site", ["ash", "birch", "cedar", "dogwood"])
@pytest.mark.parametrize("rule", [{"alert_rate": 0.1}, 0.5])
def test_what_was_spent_and_what_is_still_planned_is_the_whole_study_at_every_hospital(
    site: str, rule: Any
) -> None:
    """Wherever in the order the fold without the hospital comes: it spends nothing then."""
    study = protocol(rounds=3, validation=FURTHER, decision_threshold=rule)
    noise, names = calibrate(study), ["ash", "birch", "cedar", "dogwood"]

    def total(spends: list[Spend]) -> Counter[tuple[float, float]]:
        steps: Counter[tuple[float, float]] = Counter()
        for spend in spends:
            steps[spend.sample_rate, spend.noise_multiplier] += spend.steps
        return steps

    spent: list[Spend] = []
    for slot in slots(study, 4):
        if slot.fold is not None and names[slot.fold] == site:
            continue
        sigma = noise.of(slot.purpose)
        assert sigma is not None
        spent.append(spend_of(study, slot.kind, sigma))
        past = slot.fold is not None and site < names[slot.fold]
        still = still_planned(study, noise, slot.number, past)
        assert total([*spent, *still]) == total(planned_spends(study, noise))
    assert still == []


def test_a_projection_names_the_folds_that_a_hospital_trains_in() -> None:
    study = protocol(rounds=2, validation=FURTHER)
    points = projection(study, calibrate(study))
    told = [(p.kind, p.round, p.fold) for p in points]
    assert told[:4] == [
        ("statistics", 0, None), ("training", 1, None), ("training", 2, None), ("local", 2, None)
    ]  # fmt: skip
    assert told[4:] == [("fold", r, f) for f in (1, 2, 3) for r in (1, 2)]
    assert [p.number for p in points] == list(range(1, 11))


def test_a_plan_for_what_the_study_does_not_plan_has_no_noise() -> None:
    noise = calibrate(protocol())
    assert noise.of("local") is None and noise.of("fold") is None and noise.of("evaluation") is None
