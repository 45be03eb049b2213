"""Measures from a histogram agree with those from the scores, and noise leaves them right on average."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, roc_auc_score

from tests.validation.simulated import cohort
from validation.calibration import calibration_slope, logit
from validation.discrimination import auroc
from validation.histograms import (
    auroc_from_histogram,
    brier_from_histogram,
    calibration_slope_from_histogram,
    roc_points,
)

BINS, RANGE = 128, 6.0
CENTRES = (np.arange(BINS) + 0.5) * 2 * RANGE / BINS - RANGE


def histogram(p, y):
    """Counts of the logit by class in 128 bins from -6 to 6; what lies outside is in the end bins."""
    bins = np.clip(np.floor((logit(p) + RANGE) * BINS / (2 * RANGE)), 0, BINS - 1).astype(int)
    counts = [np.bincount(bins[y == c], minlength=BINS).astype(float) for c in (1, 0)]
    return counts[0], counts[1]


def noised(counts, seed, deviation, draws):
    return counts + deviation * np.random.default_rng(seed).normal(size=(draws, len(counts)))


# Mean and standard deviation of the logit: usual, rare outcome, spread out.
@pytest.mark.parametrize(("mean", "spread"), [(-1.0, 1.2), (-3.0, 1.0), (-2.0, 2.5)])
@pytest.mark.parametrize(("n", "seeds"), [(400, 100), (20_000, 5)])
def test_auroc_is_within_5_thousandths_of_that_from_the_scores(n, seeds, mean, spread):
    for seed in range(seeds):
        p, y = cohort(n, seed, mean=mean, spread=spread)
        if min(y.sum(), n - y.sum()) >= 5:
            assert auroc_from_histogram(*histogram(p, y)) == pytest.approx(roc_auc_score(y, p), abs=0.005)


@pytest.mark.parametrize("n", [400, 20_000])
def test_brier_and_slope_are_those_of_the_scores(n):
    p, y = cohort(n, 1, slope=0.8)
    events, others = histogram(p, y)
    assert brier_from_histogram(events, others, CENTRES) == pytest.approx(brier_score_loss(y, p), abs=0.001)
    found = calibration_slope_from_histogram(events, others, CENTRES)
    assert found == pytest.approx(calibration_slope(p, y).value, abs=0.02)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=12).filter(
        lambda rows: sum(e for e, _ in rows) >= 2 and sum(n for _, n in rows) >= 2
    )
)
def test_patients_at_the_centres_give_exactly_the_measures_of_the_scores(rows):
    events, others = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    centres = np.linspace(-2, 2, len(rows))
    x = np.concatenate([np.repeat(centres, events.astype(int)), np.repeat(centres, others.astype(int))])
    y = np.repeat([1, 0], [int(events.sum()), int(others.sum())])
    p = 1 / (1 + np.exp(-x))
    assert auroc_from_histogram(events, others) == pytest.approx(auroc(p, y).value, abs=1e-12)
    assert brier_from_histogram(events, others, centres) == pytest.approx(brier_score_loss(y, p), abs=1e-12)
    slope, expected = calibration_slope_from_histogram(events, others, centres), calibration_slope(p, y)
    assert (slope is None) == (expected is None)
    if expected is not None:
        assert slope == pytest.approx(expected.value, abs=1e-6)


@pytest.mark.parametrize(("n", "deviation", "zeroing"), [(400, 0.5, -0.046), (20_000, 10.0, -0.017)])
def test_noised_counts_are_right_on_average_and_zeroing_negative_ones_is_not(n, deviation, zeroing):
    events, others = histogram(*cohort(n, 7))
    truth = auroc_from_histogram(events, others)
    draws = list(zip(noised(events, 1, deviation, 2000), noised(others, 2, deviation, 2000), strict=True))
    error = np.array([auroc_from_histogram(e, o) for e, o in draws]) - truth
    zeroed = np.array([auroc_from_histogram(e.clip(0), o.clip(0)) for e, o in draws]) - truth
    assert abs(error.mean()) < 3 * error.std() / np.sqrt(2000)
    assert abs(zeroed.mean()) > 50 * zeroed.std() / np.sqrt(2000)
    assert zeroed.mean() == pytest.approx(zeroing, abs=0.005)


def test_noised_brier_and_slope_are_right_on_average():
    events, others = histogram(*cohort(20_000, 7))
    draws = list(zip(noised(events, 1, 10, 400), noised(others, 2, 10, 400), strict=True))
    for measure in (brier_from_histogram, calibration_slope_from_histogram):
        found = np.array([measure(e, o, CENTRES) for e, o in draws], dtype=float)
        assert abs(found.mean() - measure(events, others, CENTRES)) < 3 * found.std() / np.sqrt(400)


@pytest.mark.parametrize("deviation", [0.0, 2.0])
def test_roc_points_enclose_the_auroc_also_with_noise(deviation):
    events, others = (noised(c, i, deviation, 1)[0] for i, c in enumerate(histogram(*cohort(400, 3))))
    points = roc_points(events, others)
    assert points[0] == (0, 0) and points[-1] == (1, 1) and len(points) == BINS + 1
    area = np.trapezoid([t for _, t in points], [f for f, _ in points])
    assert area == pytest.approx(auroc_from_histogram(events, others), abs=1e-9)


def test_without_a_positive_total_there_is_no_measure():
    some, none = np.array([3.0, 2.0]), np.array([1.0, -2.0])
    assert auroc_from_histogram(some, none) is None and auroc_from_histogram(none, some) is None
    assert roc_points(some, none) == []
    assert brier_from_histogram(none, none, np.array([-1.0, 1.0])) is None


def test_a_slope_that_noise_leaves_undefined_is_none():
    """The total is negative where all the information is."""
    events, others = np.array([1.0, -30.0, 1.0]), np.array([1.0, -30.0, 1.0])
    assert calibration_slope_from_histogram(events, others, np.array([-3.0, 0.0, 3.0])) is None
