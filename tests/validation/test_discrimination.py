"""AUROC, AUPRC and their errors agree with scikit-learn, confidenceinterval and the definition."""

from __future__ import annotations

import numpy as np
import pytest
from confidenceinterval.delong import delong_roc_variance
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from tests.validation.simulated import cohort
from validation.discrimination import (
    auprc,
    auroc,
    auroc_influence,
    average_precision_influence,
    delong_covariance,
)

# Scores on a coarse grid, so that ties are common.
patients = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 1)), min_size=4, max_size=60).filter(
    lambda rows: 2 <= sum(y for _, y in rows) <= len(rows) - 2
)


def arrays(rows):
    return np.array([s for s, _ in rows]) / 12, np.array([y for _, y in rows])


def weighted_average_precision(score, label, weight):
    """From the definition: mean over the events of the precision among those ranked at or above."""
    called = score[None, :] >= score[:, None]
    precision = (called * weight * label).sum(axis=1) / (called * weight).sum(axis=1)
    return (weight * label * precision).sum() / (weight * label).sum()


@pytest.mark.parametrize("digits", [1, 2, 16])
@pytest.mark.parametrize("seed", range(3))
def test_auprc_equals_scikit_learn_also_with_ties(seed, digits):
    p, y = cohort(200, seed)
    p = np.round(p, digits)
    assert auprc(p, y).value == pytest.approx(average_precision_score(y, p), abs=1e-12)


def test_auprc_error_is_the_derivative_by_each_patients_weight():
    p, y = cohort(40, 2)
    p = np.round(p, 1)
    derivative = [
        (weighted_average_precision(p, y, 1 + e) - weighted_average_precision(p, y, 1 - e)) / 2e-6
        for e in 1e-6 * np.eye(40)
    ]
    value, influence = average_precision_influence(p, y)
    assert value == pytest.approx(weighted_average_precision(p, y, np.ones(40)), abs=1e-12)
    assert influence == pytest.approx(derivative, abs=1e-7)
    assert auprc(p, y).standard_error == pytest.approx(np.linalg.norm(derivative), rel=1e-5)


@pytest.mark.parametrize("digits", [1, 16])
def test_auroc_error_equals_confidenceinterval(digits):
    """Theirs ranks in float32 and has a symmetric interval; the standard error is the same."""
    p, y = cohort(300, 4)
    p = np.round(p, digits)
    value, variance = delong_roc_variance(y, p, None)
    found = auroc(p, y)
    assert found.value == pytest.approx(float(value), abs=1e-6)
    assert found.standard_error == pytest.approx(float(np.sqrt(variance)), rel=1e-4)


def test_delong_covariance_equals_the_definition_by_pairs():
    p, y = cohort(120, 5)
    draw = np.random.default_rng(0)
    scores = np.stack([p, np.round(p, 1), p + draw.normal(0, 0.2, 120)])
    aurocs, covariance = delong_covariance(scores, y)
    positive, negative = scores[:, y == 1, None], scores[:, None, y == 0]
    wins = (positive > negative) + 0.5 * (positive == negative)  # models x events x non-events
    m, n = wins.shape[1:]
    expected = np.cov(wins.mean(axis=2)) / m + np.cov(wins.mean(axis=1)) / n
    assert aurocs == pytest.approx([roc_auc_score(y, s) for s in scores], abs=1e-12)
    assert covariance == pytest.approx(expected, abs=1e-14)
    assert np.sqrt(covariance[0, 0]) == pytest.approx(auroc(p, y).standard_error, rel=1e-12)
    one, variance = delong_covariance(scores[:1], y)
    assert one.shape == (1,) and variance.shape == (1, 1)


@settings(deadline=None)
@given(patients)
def test_auroc_keeps_under_a_monotone_transform_and_swapping_labels_gives_its_complement(rows):
    p, y = arrays(rows)
    value = auroc(p, y).value
    assert auroc(np.exp(3 * p) - 7, y).value == pytest.approx(value, abs=1e-12)
    assert auroc(p, 1 - y).value == pytest.approx(1 - value, abs=1e-12)


@settings(deadline=None)
@given(patients)
def test_intervals_hold_the_value_and_stay_inside_0_and_1(rows):
    p, y = arrays(rows)
    for found in (auroc(p, y), auprc(p, y)):
        assert 0 <= found.lower <= found.value <= found.upper <= 1
        assert found.upper > found.lower


@settings(deadline=None)
@given(patients)
def test_influences_sum_to_zero_and_their_squares_to_the_variance(rows):
    p, y = arrays(rows)
    value, influence = auroc_influence(p, y)
    (expected,), ((variance,),) = delong_covariance(p[None], y)
    assert value == pytest.approx(expected, abs=1e-12)
    assert influence.sum() == pytest.approx(0, abs=1e-12)
    assert influence @ influence == pytest.approx(variance, abs=1e-12)
    assert average_precision_influence(p, y)[1].sum() == pytest.approx(0, abs=1e-12)


def test_auprc_of_separated_classes_does_not_claim_certainty():
    found = auprc(np.array([0.1, 0.2, 0.8, 0.9]), np.array([0, 0, 1, 1]))
    assert found.value == 1 and found.upper == 1 and found.lower < 0.5 and found.standard_error > 0


def test_auprc_of_a_constant_score_is_the_prevalence():
    found = auprc(np.full(50, 0.3), np.repeat([1, 0], [10, 40]))
    assert found.value == pytest.approx(0.2)
    assert found.standard_error == pytest.approx(np.sqrt(0.2 * 0.8 / 50))
