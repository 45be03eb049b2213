"""Federated normalisation: one patient is bounded, noise is the declared one, the numbers are useful."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from contracts.study import StudyProtocol, parse_study
from privacy.calibration import calibrate
from privacy.statistics import (
    clip_bound,
    clipped_sums,
    exact_sums,
    noise_of_total,
    noisy_sums,
    normalisation_from_sums,
    patient_vectors,
    prevalence_from_sums,
    vector_length,
)
from privacy.stream import derive_stream

RANGES = [(0.0, 300.0), (20.0, 45.0), (0.0, 20.0), (0.0, 1000.0), (-10.0, 10.0)]
TRUTH = [(85.0, 18.0), (37.0, 0.9), (1.4, 0.8), (220.0, 90.0), (0.3, 2.5)]


def protocol(features: int = 15, class_weights: str = "none") -> StudyProtocol:
    return parse_study(
        {
            "schema": "consilium/study/1",
            "study": "normalisation",
            "title": "t",
            "intended_use": "t",
            "cohort": {"max_records": 3},
            "features": [
                {"name": "sex", "kind": "categorical", "levels": [0, 1]},
                *(
                    {"name": f"f{i}", "kind": "numeric", "unit": "1", "range": RANGES[i % 5]}
                    for i in range(features)
                ),
            ],
            "label": {"name": "died", "positive": "death"},
            "model": {"name": "logistic"},
            "training": {"steps": 10, "sample_rate": 0.1, "learning_rate": 0.1}
            | {"class_weights": class_weights},
            "privacy": {"mode": "patient", "epsilon": 3.0, "delta": 1e-4, "max_grad_norm": 1.0},
            "rounds": 10,
            "min_sites": 2,
        }
    )


def site(number: int, patients: int, features: int = 15) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(number)
    mean, std = np.array(TRUTH * 6)[:features].T
    x = mean + std * random.normal(size=(patients, 3, features)) + 0.1 * std * random.normal(size=features)
    x[random.random(x.shape) < 0.1] = np.nan
    mask = np.arange(3) < random.integers(1, 4, size=(patients, 1))
    sex = random.integers(0, 2, size=(patients, 3, 1))
    return np.concatenate([sex, x], axis=2).astype(np.float32), mask


def stream(number: int):
    return derive_stream(bytes(32), plan=f"{number:064x}", cohort="", code_version="1", purpose="statistics")


def labels(number: int, mask: np.ndarray, prevalence: float) -> np.ndarray:
    return (np.random.default_rng(number).random(mask.shape) < prevalence).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    weights=st.sampled_from(["none", "balanced"]),
    value=st.sampled_from([0.0, 1e3, -1e9, 1e30, float("inf"), float("nan")]),
    records=st.integers(0, 3),
    patient=st.integers(0, 19),
)
def test_removing_a_patient_moves_the_sums_by_at_most_the_clip(
    weights: str, value: float, records: int, patient: int
) -> None:
    study = protocol(class_weights=weights)
    x, mask = site(1, 20)
    x[patient] *= value
    mask[patient] = np.arange(3) < records
    kept = np.arange(20) != patient
    clip = clip_bound(study)
    with np.errstate(invalid="ignore"):
        y = labels(2, mask, 0.5)
        whole = clipped_sums(patient_vectors(x, mask, study, y), clip)
        rest = clipped_sums(patient_vectors(x[kept], mask[kept], study, y[kept]), clip)
    assert np.linalg.norm(whole - rest) <= clip * (1 + 1e-9)


def test_the_noise_has_the_declared_size() -> None:
    vectors = np.zeros((5, 4000))
    released = noisy_sums(vectors, clip=2.5, noise_multiplier=3.0, stream=stream(1))
    assert released.std() == pytest.approx(7.5, rel=0.05)
    assert abs(released.mean()) < 4 * 7.5 / np.sqrt(4000)


def test_exact_sums_give_the_mean_and_deviation_of_all_sites_together() -> None:
    study = protocol()
    sites = [site(i, 300) for i in range(4)]
    total = sum(exact_sums(patient_vectors(x, mask, study)) for x, mask in sites)
    found = normalisation_from_sums(total, study)
    mean, std = np.array(TRUTH * 3).T
    np.testing.assert_allclose(found.mean, mean, atol=0.2 * std.max(), rtol=0.05)
    assert (np.abs(found.mean - mean) < 0.25 * std).all()
    np.testing.assert_allclose(found.std, std, rtol=0.1)
    np.testing.assert_allclose(found.present, 0.9, atol=0.03)


@pytest.mark.parametrize(
    ("patients", "features", "mean_error", "std_factor"), [(1000, 15, 0.6, 2.0), (4000, 30, 0.25, 1.6)]
)
def test_a_tenth_of_epsilon_three_is_enough_to_standardise(
    patients: int, features: int, mean_error: float, std_factor: float
) -> None:
    study = protocol(features)
    sigma = calibrate(study).statistics
    assert sigma is not None
    exact, total = 0.0, 0.0
    for i in range(4):
        vectors = patient_vectors(*site(i, patients, features), study)
        exact = exact + exact_sums(vectors)
        total = total + noisy_sums(
            vectors, clip=clip_bound(study), noise_multiplier=sigma, stream=stream(10 + i)
        )
    best = normalisation_from_sums(exact, study)
    found = normalisation_from_sums(total, study, noise=noise_of_total(study, sigma, 4))
    error = (found.mean - best.mean) / best.std
    ratio = found.std / best.std
    wide = best.std > 0.1 * np.array([(b - a) / 2 for a, b in RANGES * 6])[:features]
    assert np.sqrt((error[wide] ** 2).mean()) < mean_error
    assert (ratio[wide] < std_factor).all() and (ratio[wide] > 1 / std_factor).all()


@pytest.mark.parametrize("fill", [0.0, -50.0, 1e6])
def test_any_total_gives_numbers_that_can_be_divided_by(fill: float) -> None:
    study = protocol()
    random = np.random.default_rng(3)
    for noise in (0.0, 40.0):
        found = normalisation_from_sums(fill + 40 * random.normal(size=46), study, noise=noise)
        low, high = np.array(RANGES * 3).T
        assert ((found.mean >= low) & (found.mean <= high)).all()
        assert (found.std > 0).all() and np.isfinite(found.std).all()
        assert ((found.present >= 0) & (found.present <= 1)).all()


def test_the_vector_is_the_same_whatever_a_padded_row_holds() -> None:
    study = protocol()
    x, mask = site(2, 30)
    other = x.copy()
    other[~mask] = 77.0
    np.testing.assert_array_equal(patient_vectors(x, mask, study), patient_vectors(other, mask, study))


@pytest.mark.parametrize("prevalence", [0.02, 0.1, 0.5, 0.98])
def test_exact_sums_give_the_share_of_positive_records_and_the_same_normalisation(prevalence: float) -> None:
    study, without = protocol(class_weights="balanced"), protocol()
    x, mask = site(4, 900)
    y = labels(5, mask, prevalence)
    total = exact_sums(patient_vectors(x, mask, study, y))
    assert len(total) == vector_length(study) == vector_length(without) + 1
    each = np.where(mask, y, 0.0).sum(axis=1) / np.maximum(mask.sum(axis=1), 1)
    assert prevalence_from_sums(total) == pytest.approx(each.mean(), abs=1e-9)
    found = normalisation_from_sums(total, study)
    expected = normalisation_from_sums(exact_sums(patient_vectors(x, mask, without)), without)
    np.testing.assert_array_equal(found.mean, expected.mean)
    np.testing.assert_array_equal(found.present, expected.present)


@pytest.mark.parametrize("prevalence", [0.1, 0.4])
def test_clipping_and_a_tenth_of_epsilon_three_leave_the_share_of_positives(prevalence: float) -> None:
    """Both classes have vectors of one length, so that the clip does not favour either."""
    study = protocol(class_weights="balanced")
    sigma, clip = calibrate(study).statistics, clip_bound(study)
    assert sigma is not None
    errors = []
    vectors = []
    for i in range(4):
        x, mask = site(i, 1000)
        mask[:, 1:] = False  # one record each: a patient of both classes has a shorter vector
        vectors.append(patient_vectors(x, mask, study, labels(20 + i, mask, prevalence)))
    truth = prevalence_from_sums(sum(exact_sums(v) for v in vectors))
    assert prevalence_from_sums(sum(clipped_sums(v, clip) for v in vectors)) == pytest.approx(truth, abs=0.01)
    for repeat in range(20):
        total = sum(
            noisy_sums(v, clip=clip, noise_multiplier=sigma, stream=stream(100 + 4 * repeat + i))
            for i, v in enumerate(vectors)
        )
        errors.append(prevalence_from_sums(total, noise=noise_of_total(study, sigma, 4)) - truth)
    assert np.sqrt(np.mean(np.square(errors))) < 0.02


def test_more_noise_than_patients_weighs_both_classes_alike() -> None:
    total = np.zeros(vector_length(protocol(class_weights="balanced")))
    total[[0, -1]] = 10.0, -400.0
    assert prevalence_from_sums(total, noise=40.0) == 0.5
    assert prevalence_from_sums(total) == 0.01
