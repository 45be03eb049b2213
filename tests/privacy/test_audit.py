"""The audit: its bound is the paper's and holds, and it finds a broken mechanism and not a sound one."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy.stats import binom

from consilium.audit import attack_study, audited
from consilium.canary_models import canary_target
from contracts.study import StudyProtocol
from privacy.accountant import Spend, epsilon
from privacy.audit import (
    FAULTS,
    Fault,
    Verdict,
    epsilon_lower_bound,
    expected_power,
    guesses_for,
    judge,
    p_value,
    right_guesses,
    runs_needed,
    simulated_scores,
)
from privacy.canaries import attack
from tests.factories import tiny_study

pytestmark = pytest.mark.slow

CANARIES, DELTA, CLIP = 1000, 1e-5, 2.0
PRIVACY = {"mode": "patient", "epsilon": 3.0, "delta": DELTA, "max_grad_norm": CLIP}
FIELDS: dict[str, Any] = {
    "training": {"steps": 50, "sample_rate": 0.1, "learning_rate": 0.5, "normalisation": "declared"},
    "rounds": 3,
    "privacy": PRIVACY,
}
STUDY = tiny_study(**FIELDS)


def verdict(fault: Fault, study: StudyProtocol = STUDY) -> Verdict:
    """Attack the real mechanism once, with the noise and all steps of the study, and judge what was seen."""
    seen = attack_study(study, CANARIES, fault, path="logistic")
    return judge(seen.scores, seen.included, claim=epsilon([audited(study)[1]], DELTA), delta=DELTA)


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "delta", "published"),
    [
        (1000, 100, 75, 1e-4, 0.673),  # arXiv:2305.08846, appendix D
        (100_000, 1510, 1439, 1e-5, 2.675),  # section 7, figure 11; printed rounded down
    ],
)
def test_the_bound_is_the_one_printed_in_the_paper(
    canaries: int, guesses: int, correct: int, delta: float, published: float
) -> None:
    assert epsilon_lower_bound(correct, guesses, canaries, delta) == pytest.approx(published, abs=1e-3)


@given(guesses=st.integers(1, 300), share=st.floats(0.5, 1.0))
def test_without_delta_the_bound_inverts_the_binomial_tail(guesses: int, share: float) -> None:
    correct = math.ceil(share * guesses)
    bound = epsilon_lower_bound(correct, guesses, 1000, 0.0)
    tail = binom.sf(correct - 1, guesses, 1 / (1 + math.exp(-bound)))
    assert tail == pytest.approx(0.05, rel=1e-6) if bound > 0 else tail >= 0.05 * (1 - 1e-9)


@settings(max_examples=30, deadline=None)
@given(
    guesses=st.integers(2, 60),
    delta=st.sampled_from([0.0, 1e-6, 1e-4, 1e-3]),
    confidence=st.floats(0.8, 0.999),
)
def test_more_right_guesses_never_lower_the_bound_and_delta_never_raises_it(
    guesses: int, delta: float, confidence: float
) -> None:
    bounds = [epsilon_lower_bound(c, guesses, 500, delta, confidence) for c in range(guesses + 1)]
    assert bounds == sorted(bounds)
    assert bounds[guesses // 2] == 0.0  # what tossing coins gets right shows nothing
    assert all(
        bound <= epsilon_lower_bound(c, guesses, 500, 0.0, confidence) for c, bound in enumerate(bounds)
    )


@given(correct=st.integers(100, 200), delta=st.sampled_from([0.0, 1e-5, 1e-4]))
def test_every_epsilon_below_the_bound_is_rejected(correct: int, delta: float) -> None:
    bound = epsilon_lower_bound(correct, 200, 1000, delta)
    for smaller in np.linspace(0.0, bound, 20, endpoint=False) if bound > 0.0 else []:
        assert p_value(correct, 200, 1000, float(smaller), delta) <= 0.05 + 1e-9


@pytest.mark.parametrize("true_epsilon", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("delta", [0.0, 1e-4])
def test_the_bound_stays_below_the_truth_of_an_ideal_mechanism_in_95_percent_of_runs(
    true_epsilon: float, delta: float
) -> None:
    """Randomised response is the mechanism that theorem 5.2 is tight for: each coin is told truly with odds
    of e^eps, and with probability delta for certain."""
    draws = np.random.default_rng(1)
    runs, guesses = 4000, 200
    certain = draws.random((runs, guesses)) < delta
    told = draws.random((runs, guesses)) < 1 / (1 + math.exp(-true_epsilon))
    correct = (certain | told).sum(axis=1)
    bounds = np.array([epsilon_lower_bound(int(c), guesses, CANARIES, delta) for c in correct])
    exceeded = np.mean(bounds > true_epsilon)
    assert exceeded <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    if delta == 0.0 and true_epsilon > 0.0:
        assert exceeded > 0.01  # and is no wider than it must be


def test_the_most_extreme_canaries_are_guessed_and_the_rest_abstained_on() -> None:
    scores = np.array([5.0, -3.0, 0.0, 4.0, -4.0, 1.0])
    included = np.array([True, False, True, False, False, False])
    assert right_guesses(scores, included, 2) == 2
    assert right_guesses(scores, included, 4) == 3
    assert right_guesses(-scores, included, 2) == 0


@given(claim=st.floats(0.1, 20.0), canaries=st.integers(100, 1900), delta=st.sampled_from([1e-6, 1e-4]))
def test_the_number_of_guesses_follows_from_public_values_and_can_pass_the_claim_where_any_can(
    claim: float, canaries: int, delta: float
) -> None:
    guesses = guesses_for(claim, canaries, delta)
    assert guesses % 2 == 0 and 2 <= guesses <= canaries
    if epsilon_lower_bound(canaries // 2 * 2, canaries // 2 * 2, canaries, delta) > 1.25 * claim:
        assert epsilon_lower_bound(guesses, guesses, canaries, delta) > 1.25 * claim


def test_several_runs_refute_together_only_if_chance_would_not() -> None:
    assert [runs_needed(n) for n in (1, 2, 10, 100)] == [1, 2, 3, 10]
    for runs in (1, 5, 20, 60):
        assert binom.sf(runs_needed(runs) - 1, runs, 0.05) <= 0.05 + 1e-9


def test_the_power_that_is_stated_tells_the_faults_from_the_sound_mechanism() -> None:
    _, spend = audited(STUDY)
    powers = {
        p.fault: p
        for p in expected_power(spend, claim=epsilon([spend], DELTA), delta=DELTA, canaries=CANARIES)
    }
    assert set(powers) == set(FAULTS)
    assert powers["none"].detection == 0.0 and 0.5 < powers["none"].bound < 1.5
    for fault in ("noise-off", "noise-tenth", "clip-off", "sampling-off"):
        assert powers[fault].detection > 0.99
    assert powers["noise-half"].detection < 0.05  # which this audit does not find at epsilon 3


@pytest.mark.parametrize("fault", ["none", "noise-off", "noise-tenth", "noise-half", "clip-off"])
def test_scores_of_the_real_mechanism_have_the_distribution_that_the_power_was_simulated_from(
    fault: Fault,
) -> None:
    _, spend = audited(STUDY)
    seen = attack_study(STUDY, CANARIES, fault, path="logistic")
    expected = simulated_scores(spend, fault, seen.included, np.random.default_rng())
    for group in (seen.included, ~seen.included):
        n = int(group.sum())
        deviation = expected[group].std() + 0.01 * abs(expected[group].mean()) + 1e-3
        assert abs(seen.scores[group].mean() - expected[group].mean()) < 7 * deviation / math.sqrt(n)
        assert seen.scores[group].std() == pytest.approx(expected[group].std(), rel=0.3, abs=1e-3)


def test_the_canaries_see_every_step_and_the_coins_are_fair() -> None:
    target = canary_target("logistic", CANARIES, CLIP, records=1)
    steps: list[int] = []
    seen = attack(target, Spend(0.1, 1.0, 7), max_grad_norm=CLIP, progress=lambda: steps.append(1))
    assert len(steps) == 7
    assert abs(seen.included.mean() - 0.5) < 6 * 0.5 / math.sqrt(CANARIES)
    assert not target.weight.detach().any()  # the model did not move: every step was attacked at one place


def test_the_sound_mechanism_stays_under_its_claim_in_ten_of_ten_runs() -> None:
    verdicts = [verdict("none") for _ in range(10)]
    assert verdicts[0].claim <= 3.0 and verdicts[0].canaries >= 1000
    assert not any(v.refuted for v in verdicts), verdicts
    assert np.mean([v.lower_bound for v in verdicts]) > 0.3  # and the attack does attack


@pytest.mark.parametrize("fault", ["noise-off", "noise-tenth", "clip-off"])
def test_a_broken_mechanism_is_refuted_in_nine_of_ten_runs(fault: Fault) -> None:
    verdicts = [verdict(fault) for _ in range(10)]
    assert sum(v.refuted for v in verdicts) >= 9, verdicts


def test_batches_of_everybody_are_refuted() -> None:
    assert verdict("sampling-off").refuted


@pytest.mark.parametrize("clipping", ["per-layer", "adaptive"])
def test_the_other_ways_of_clipping_are_attacked_as_well(clipping: str) -> None:
    study = tiny_study(**(FIELDS | {"privacy": PRIVACY | {"clipping": clipping}}))
    sound = verdict("none", study=study)
    assert 0.3 < sound.lower_bound < sound.claim
    assert verdict("clip-off", study=study).refuted
    assert verdict("noise-tenth", study=study).refuted
