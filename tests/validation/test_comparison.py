"""Paired differences of two models agree with the definition, and a model does not differ from itself."""

from __future__ import annotations

import numpy as np
import pytest
from confidenceinterval.delong import fastDeLong
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, roc_auc_score

from tests.validation.simulated import cohort
from validation.comparison import auroc_difference, brier_difference, net_benefit_difference
from validation.decision_curve import net_benefit

DIFFERENCES = {
    "auroc": auroc_difference,
    "brier": brier_difference,
    "net benefit": lambda a, b, y: net_benefit_difference(a, b, y, 0.3),
}


def two_models(n, seed):
    p, y = cohort(n, seed)
    noise = np.random.default_rng(1000 + seed).normal(0, 0.8, n)
    return p, 1 / (1 + np.exp(-(np.log(p / (1 - p)) + noise))), y


def test_values_are_the_differences_of_what_references_give():
    a, b, y = two_models(300, 1)
    auroc = roc_auc_score(y, a) - roc_auc_score(y, b)
    assert auroc_difference(a, b, y).value == pytest.approx(auroc, abs=1e-12)
    brier = brier_score_loss(y, a) - brier_score_loss(y, b)
    assert brier_difference(a, b, y).value == pytest.approx(brier, abs=1e-12)
    benefit = net_benefit(a, y, 0.3).value - net_benefit(b, y, 0.3).value
    assert net_benefit_difference(a, b, y, 0.3).value == pytest.approx(benefit, abs=1e-12)


def test_auroc_difference_has_the_error_of_confidenceinterval():
    a, b, y = two_models(300, 2)
    order = np.argsort(-y, kind="stable")
    _, covariance = fastDeLong(np.stack([a, b])[:, order], int(y.sum()), None)
    expected = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert auroc_difference(a, b, y).standard_error == pytest.approx(expected, rel=1e-3)  # float32 there


@pytest.mark.parametrize("name", DIFFERENCES)
def test_errors_match_the_spread_over_repeated_samples(name):
    found = [DIFFERENCES[name](*two_models(200, seed)) for seed in range(400)]
    spread = np.std([e.value for e in found])
    assert np.mean([e.standard_error for e in found]) == pytest.approx(spread, rel=0.1)


@pytest.mark.parametrize("name", DIFFERENCES)
@settings(deadline=None)
@given(rows=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), min_size=4, max_size=40))
def test_a_model_compared_with_itself_differs_by_exactly_zero(name, rows):
    p, y = np.array([r for r, _ in rows]), np.array([e for _, e in rows])
    y[:4] = [0, 0, 1, 1]
    found = DIFFERENCES[name](p, p.copy(), y)
    assert (found.value, found.standard_error, found.lower, found.upper) == (0, 0, 0, 0)


@pytest.mark.parametrize("name", DIFFERENCES)
def test_swapping_the_models_turns_the_sign(name):
    a, b, y = two_models(150, 3)
    one, other = DIFFERENCES[name](a, b, y), DIFFERENCES[name](b, a, y)
    assert (one.value, one.lower, one.upper) == pytest.approx((-other.value, -other.upper, -other.lower))


def test_scores_of_one_ranking_have_an_auroc_difference_of_exactly_zero():
    p, y = cohort(100, 4)
    found = auroc_difference(p, p**3, y)
    assert (found.value, found.standard_error, found.lower, found.upper) == (0, 0, 0, 0)


def test_two_models_that_do_equally_here_are_not_claimed_to_be_equal():
    y = np.array([0, 0, 0, 1, 1, 1])
    a, b = np.array([0.1, 0.2, 0.3, 0.7, 0.8, 0.9]), np.array([0.3, 0.2, 0.1, 0.8, 0.7, 0.9])
    for found in (auroc_difference(a, b, y), net_benefit_difference(a, b, y, 0.5)):
        assert found.value == 0 and found.standard_error is None and found.lower is None


def test_a_separating_model_against_a_reversed_one_has_a_value_but_no_error():
    y = np.array([0, 0, 1, 1])
    found = auroc_difference(np.array([0.1, 0.2, 0.8, 0.9]), np.array([0.9, 0.8, 0.2, 0.1]), y)
    assert found.value == 1 and found.standard_error is None and found.upper is None
