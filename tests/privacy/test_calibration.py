"""Calibration: the whole planned study meets its epsilon, with the least noise of four digits that does."""

from __future__ import annotations

from typing import Any

import pytest

import privacy.calibration as calibration
from contracts.errors import ConsiliumError
from contracts.study import StudyProtocol, parse_study
from privacy.accountant import Spend, epsilon
from privacy.calibration import calibrate, check_delta, planned_spends


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
        }
    )


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
