"""A threshold from training: one patient is bounded, noise is the declared one, the rule is met."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from contracts.errors import ConsiliumError
from contracts.study import ThresholdRule
from privacy.accountant import Spend, epsilon
from privacy.calibration import calibrate, planned_spends
from privacy.histogram import BINS, EDGES, choose_threshold, noisy_counts, risk_counts
from privacy.stream import derive_stream
from tests.factories import PRIVACY, private_study

SENSITIVITY, ALERTS = ThresholdRule(sensitivity=0.85), ThresholdRule(alert_rate=0.2)
RISKS = st.floats(0, 1) | st.sampled_from([float("nan"), -0.5, float("inf"), *EDGES.tolist()])
PATIENTS = st.lists(st.tuples(RISKS, st.sampled_from([0.0, 1.0])), min_size=1, max_size=40)


def stream(number: int):
    return derive_stream(bytes(32), plan=f"{number:064x}", cohort="", code_version="1", purpose="histogram")


def cohort(number: int, patients: int, shift: float = -1.5) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated risks, logit normal, and outcomes drawn from them."""
    draw = np.random.default_rng(number)
    risk = 1 / (1 + np.exp(-draw.normal(shift, 1.2, patients)))
    return risk, (draw.random(patients) < risk).astype(np.float32)


def achieved(risk: np.ndarray, label: np.ndarray, threshold: float) -> tuple[float, float]:
    alert = risk >= threshold
    return float(alert[label == 1].mean()), float(alert.mean())


@settings(max_examples=60, deadline=None)
@given(PATIENTS, st.data())
def test_removing_a_patient_moves_the_counts_by_at_most_one(patients, data) -> None:
    gone = data.draw(st.integers(0, len(patients) - 1))
    risk, label = (np.array(part) for part in zip(*patients, strict=True))
    kept = np.arange(len(patients)) != gone
    moved = risk_counts(risk, label) - risk_counts(risk[kept], label[kept])
    assert np.linalg.norm(moved) <= 1.0


@settings(max_examples=60, deadline=None)
@given(PATIENTS)
def test_a_patient_counts_above_an_edge_exactly_when_the_decision_would_be_positive(patients) -> None:
    risk, label = (np.array(part) for part in zip(*patients, strict=True))
    usable = (risk >= 0) & (risk <= 1)
    counts = risk_counts(risk, label)
    for k in range(1, BINS):
        alert = usable & (risk >= EDGES[k])
        assert counts[BINS + k :].sum() == (alert & (label == 1)).sum()
        assert counts[k:BINS].sum() == (alert & (label == 0)).sum()


def test_the_noise_has_the_declared_size() -> None:
    draws = [noisy_counts(np.zeros(2 * BINS), noise_multiplier=7.5, stream=stream(i)) for i in range(40)]
    assert np.std(draws) == pytest.approx(7.5, rel=0.05)
    assert abs(np.mean(draws)) < 4 * 7.5 / np.sqrt(40 * 2 * BINS)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(60, 900), st.floats(-2.0, 0.5))
def test_without_noise_the_rule_is_met_and_the_next_edge_would_break_or_waste_it(
    seed, patients, shift
) -> None:
    risk, label = cohort(seed, patients, shift)
    counts = risk_counts(risk, label)
    for rule in (SENSITIVITY, ALERTS):
        try:
            found = choose_threshold(counts, rule)
        except ConsiliumError as refused:
            assert refused.number == "E427"  # nobody had the outcome, or no inner edge meets the rule
            continue
        assert (found.sensitivity, found.alert_rate) == pytest.approx(achieved(risk, label, found.value))
        assert found.standard_error == 0.0
        if rule.sensitivity is not None:
            assert found.sensitivity >= rule.sensitivity
            assert achieved(risk, label, found.value + 1 / BINS)[0] < rule.sensitivity
        else:
            assert found.alert_rate <= rule.alert_rate
            assert achieved(risk, label, found.value - 1 / BINS)[1] > rule.alert_rate


@pytest.mark.parametrize("rule", [SENSITIVITY, ALERTS])
def test_with_its_share_of_epsilon_the_threshold_is_within_a_few_bins(rule) -> None:
    """4 sites of 4,000 patients, 5 % of epsilon 3; and the stated standard error is the one that is seen."""
    sigma = calibrate(private_study(decision_threshold=rule.model_dump(exclude_none=True))).histogram
    assert sigma is not None
    sites = [cohort(i, 4000) for i in range(4)]
    exact = sum(risk_counts(*site) for site in sites)
    best = choose_threshold(exact, rule)
    risk, label = (np.concatenate(part) for part in zip(*sites, strict=True))
    wanted = rule.sensitivity or rule.alert_rate
    errors, stated = [], []
    for repeat in range(40):
        total = sum(
            noisy_counts(risk_counts(*site), noise_multiplier=sigma, stream=stream(10 * repeat + i))
            for i, site in enumerate(sites)
        )
        found = choose_threshold(total, rule, noise=sigma * 2)
        assert abs(found.value - best.value) <= 4 / BINS
        errors.append(achieved(risk, label, found.value)[0 if rule.sensitivity else 1] - wanted)
        stated.append(found.standard_error)
    seen = np.sqrt(np.mean(np.square(errors)))
    width = np.diff(
        np.sort([achieved(risk, label, e)[0 if rule.sensitivity else 1] for e in EDGES[3:25]])
    ).max()
    assert seen <= 1.5 * np.mean(stated) + width  # noise, and an edge is at most one bin off
    assert abs(np.mean(errors)) < 0.04


def test_shares_of_noisy_counts_fall_with_the_threshold() -> None:
    counts = risk_counts(*cohort(3, 3000))
    for repeat in range(20):
        total = noisy_counts(counts, noise_multiplier=20.0, stream=stream(repeat))
        found = [
            choose_threshold(total, ThresholdRule(alert_rate=rate), noise=20.0)
            for rate in (0.5, 0.3, 0.15, 0.08)
        ]
        for looser, stricter in itertools.pairwise(found):
            assert looser.value <= stricter.value
            assert looser.sensitivity >= stricter.sensitivity and looser.alert_rate >= stricter.alert_rate


def test_more_noise_than_patients_decides_nothing() -> None:
    for seed in range(30):
        noise = noisy_counts(risk_counts(*cohort(seed, 40)), noise_multiplier=60.0, stream=stream(seed))
        with pytest.raises(ConsiliumError, match=r"E427.*positives"):
            choose_threshold(noise - noise.sum() / len(noise), SENSITIVITY, noise=60.0)
    with pytest.raises(ConsiliumError, match="E427"):
        choose_threshold(np.zeros(2 * BINS), SENSITIVITY)
    rare = risk_counts(np.full(500, 0.01), np.ones(500))
    with pytest.raises(ConsiliumError, match=r"E427.*sensitivity 0\.85 at no threshold"):
        choose_threshold(rare, SENSITIVITY)


def test_the_histogram_is_inside_the_studys_epsilon() -> None:
    rule = {"decision_threshold": {"alert_rate": 0.2}}
    with_rule, fixed = calibrate(private_study(**rule)), calibrate(private_study())
    assert fixed.histogram is None and with_rule.histogram is not None
    assert with_rule.epsilon <= PRIVACY["epsilon"] and with_rule.training > fixed.training
    assert planned_spends(private_study(**rule), with_rule)[-1] == Spend(1.0, with_rule.histogram, 1)
    share = 0.05 * PRIVACY["epsilon"]
    assert epsilon([Spend(1.0, with_rule.histogram, 1)], PRIVACY["delta"]) <= share
    assert epsilon([Spend(1.0, with_rule.histogram * 0.998, 1)], PRIVACY["delta"]) > share
    assert calibrate(private_study(**rule)) == with_rule
