"""What a hospital computes agrees with independent references, and what leaves hides what it must."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score

from contracts.errors import ConsiliumError
from tests.factories import tiny_study
from validation.calibration import calibration_bins, calibration_intercept, calibration_slope, logit
from validation.discrimination import auroc
from validation.performance import evaluate
from validation.proportion import brier, wilson
from validation.subgroups import disclosure, group_members


def cohort(n, seed=0, slope=1.0, intercept=-1.0, spread=1.2):
    """True logits `slope * x + intercept` where the model says x: (probability, label)."""
    draw = np.random.default_rng(seed)
    x = draw.normal(0, spread, n)
    label = (draw.random(n) < 1 / (1 + np.exp(-(intercept + slope * x)))).astype(int)
    return 1 / (1 + np.exp(-x)), label


def features_of(n, seed=0, missing=0.0):
    draw = np.random.default_rng(seed)
    sex = np.where(draw.random(n) < missing, np.nan, draw.integers(0, 2, n))
    return np.column_stack([draw.uniform(0, 100, n), draw.uniform(0, 20, n), sex])


@pytest.mark.parametrize("seed", range(5))
def test_auroc_equals_scikit_learn_also_with_ties(seed):
    p, y = cohort(300, seed)
    coarse = np.round(p, 1)
    assert auroc(p, y).value == pytest.approx(roc_auc_score(y, p), abs=1e-12)
    assert auroc(coarse, y).value == pytest.approx(roc_auc_score(y, coarse), abs=1e-12)


def test_delong_error_matches_the_definition_and_the_bootstrap():
    p, y = cohort(250, 1)
    positive, negative = p[y == 1], p[y == 0]
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    exact = np.sqrt(
        wins.mean(axis=1).var(ddof=1) / len(positive) + wins.mean(axis=0).var(ddof=1) / len(negative)
    )
    error = auroc(p, y).standard_error
    assert error == pytest.approx(exact, rel=1e-10)
    draw = np.random.default_rng(0)
    values = []
    for _ in range(800):
        a = draw.choice(positive, len(positive))
        b = draw.choice(negative, len(negative))
        values.append((a[:, None] > b).mean())
    assert error == pytest.approx(np.std(values), rel=0.1)


def test_auroc_interval_covers_the_truth_and_stays_inside_0_and_1():
    # Binormal scores: the true AUROC is Phi(d / sqrt 2) = Phi(1.2 / sqrt 2).
    draw, covered, runs = np.random.default_rng(5), 0, 600
    y = np.repeat([1, 0], [25, 40])
    for _ in range(runs):
        found = auroc(draw.normal(1.2 * y), y)
        assert 0 <= found.lower <= found.value <= found.upper <= 1
        covered += found.lower <= 0.80193 <= found.upper
    assert 0.92 <= covered / runs <= 0.98


@pytest.mark.parametrize("p", [[0.1, 0.2, 0.8, 0.9], [0.9, 0.8, 0.2, 0.1], [0.5, 0.5, 0.5, 0.5]])
def test_auroc_without_variance_does_not_claim_certainty(p):
    found = auroc(np.array(p), np.array([0, 0, 1, 1]))
    assert found.upper - found.lower > 0.5


@given(n=st.integers(1, 3000), share=st.floats(0, 1))
def test_wilson_equals_scipy(n, share):
    k = round(n * share)
    expected = binomtest(k, n).proportion_ci(method="wilson")
    found = wilson(k, n)
    assert (found.lower, found.upper) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_brier_equals_scikit_learn():
    p, y = cohort(200)
    assert brier(p, y).value == pytest.approx(brier_score_loss(y, p), abs=1e-12)


@pytest.mark.parametrize("slope", [0.5, 1.0, 1.8])
def test_calibration_slope_equals_unpenalised_regression_and_finds_the_truth(slope):
    p, y = cohort(4000, 3, slope=slope)
    found = calibration_slope(p, y)
    reference = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logit(p)[:, None], y)
    assert found.value == pytest.approx(reference.coef_[0, 0], abs=1e-5)
    assert abs(found.value - slope) < 4 * found.standard_error


def test_calibration_errors_match_the_spread_over_repeated_samples():
    slopes, intercepts = [], []
    for seed in range(300):
        p, y = cohort(400, seed)
        slopes.append(calibration_slope(p, y))
        intercepts.append(calibration_intercept(p, y))
    for found in (slopes, intercepts):
        spread = np.std([e.value for e in found])
        assert np.mean([e.standard_error for e in found]) == pytest.approx(spread, rel=0.12)


def test_calibration_intercept_makes_expected_events_equal_observed():
    p, y = cohort(500, 2, intercept=-1.5)
    shift = calibration_intercept(p, y).value
    assert (1 / (1 + np.exp(-(logit(p) + shift)))).sum() == pytest.approx(y.sum(), abs=1e-6)


@pytest.mark.parametrize(
    ("p", "y"),
    [
        ([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]),  # separated
        ([0.1, 0.5, 0.5, 0.9], [0, 0, 1, 1]),  # quasi-separated
        ([0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1]),  # reversed
        ([0.3, 0.3, 0.3, 0.3], [0, 1, 0, 1]),  # constant
        ([0.1, 0.2, 0.8, 0.9], [1, 1, 1, 1]),  # one class
    ],
)
def test_a_slope_that_does_not_exist_is_none(p, y):
    assert calibration_slope(np.array(p), np.array(y)) is None


@pytest.mark.parametrize("extreme", [1e-300, 1.0, 0.0])
def test_extreme_probabilities_give_finite_calibration(extreme):
    p, y = cohort(100)
    p[np.flatnonzero(y)[:3]] = extreme
    p[np.flatnonzero(y == 0)[:3]] = 1 - extreme
    found = calibration_slope(p, y)
    assert found is not None and np.isfinite([found.value, found.standard_error]).all()


@given(n=st.integers(0, 400), cell=st.integers(2, 15), seed=st.integers(0, 50), digits=st.integers(1, 6))
def test_every_calibration_bin_meets_the_cell_in_both_classes_and_bins_partition(n, cell, seed, digits):
    p, y = cohort(n, seed) if n else (np.zeros(0), np.zeros(0, dtype=int))
    bins = calibration_bins(np.round(p, digits), y, cell) if n else []
    for b in bins:
        events = round(b.observed * b.n)
        assert min(events, b.n - events) >= cell
    if bins:
        assert sum(b.n for b in bins) == n
        assert [b.mean_predicted for b in bins] == sorted(b.mean_predicted for b in bins)
    elif n:
        assert min(y.sum(), n - y.sum()) < cell


def test_below_the_cell_nothing_leaves_and_below_twice_accuracy_and_n_only():
    study, p, y = tiny_study(), np.full(100, 0.2), np.zeros(100, dtype=int)
    x = features_of(100)
    few = evaluate(p[:9], y[:9], x[:9], study, 10)
    assert few["suppressed"] and few["n"] is None and few["events"] is None and not few["metrics"]
    y[:19] = 1  # one short of twice the cell
    some = evaluate(p, y, x, study, 10)
    assert some["suppressed"] and some["events"] is None and set(some["metrics"]) == {"accuracy"}
    assert some["n"] == 100 and not some["subgroups"] and not some["calibration"]
    y[19] = 1
    full = evaluate(p, y, x, study, 10)
    assert not full["suppressed"] and full["events"] == 20 and "auroc" in full["metrics"]


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=5),
    unknown=st.tuples(st.integers(0, 12), st.integers(0, 12)),
    cell=st.integers(2, 12),
)
def test_no_small_count_follows_from_the_totals_and_the_counted_groups(sizes, unknown, cell):
    """Whatever union of hidden groups an onlooker can compute meets the cell in both classes."""
    groups = [*sizes, unknown]
    label = np.concatenate([np.repeat([1, 0], [events, others]) for events, others in groups])
    group = np.concatenate([np.full(events + others, i) for i, (events, others) in enumerate(groups)])
    members = {str(i): group == i for i in range(len(sizes))}
    level = disclosure(members, label.astype(int), cell)
    for i, (events, others) in enumerate(sizes):
        assert (level[str(i)] == "withheld") == (min(events, others) < cell)
    if "full" not in level.values():
        return  # all that is known is the hospital's totals
    hidden = [groups[i] for i in range(len(sizes)) if level[str(i)] != "full"] + [unknown]
    events, others = (sum(pair) for pair in zip(*hidden, strict=True))
    assert (events, others) == (0, 0) or min(events, others) >= cell


def test_an_uncounted_group_shows_metrics_from_which_its_size_cannot_be_computed():
    draw = np.random.default_rng(0)
    p, y = cohort(300, 4)
    x = features_of(300)
    x[:, 2] = (draw.random(300) < 0.5).astype(float)
    rare = np.flatnonzero(y)[:2]
    x[rare, 2] = np.nan  # two patients of unknown sex: their outcome must not follow by subtraction
    groups = {g.group: g for g in evaluate(p, y, x, tiny_study(), 10)["subgroups"]}
    uncounted = [g for g in groups.values() if g.n is None]
    assert len(uncounted) == 1 and not uncounted[0].suppressed
    assert "accuracy" not in uncounted[0].metrics and uncounted[0].events is None
    for estimate in uncounted[0].metrics.values():
        assert estimate.value == round(estimate.value, 3)


def test_two_partitions_of_one_feature_cannot_be_differenced():
    study = tiny_study(
        subgroups=[
            {"name": "age", "feature": "age", "edges": [65]},
            {"name": "older", "feature": "age", "edges": [66]},
        ]
    )
    p, y = cohort(600, 1)
    results = evaluate(p, y, features_of(600), study, 10)["subgroups"]
    assert {r.subgroup for r in results if not r.suppressed} == {"age"}


def test_a_value_on_an_edge_belongs_to_the_upper_band_also_in_float32():
    study = tiny_study(subgroups=[{"name": "lactate", "feature": "lactate", "edges": [0.7, 2]}])
    x = np.array([[50, 0.7, 0], [50, 0.69, 0], [50, 2, 0], [50, np.nan, 0]], dtype=np.float32)
    members = group_members(study.subgroups[0], x, study)
    assert list(members) == ["<0.7", "0.7-2", ">=2"]
    assert [int(np.flatnonzero(m)[0]) for m in members.values()] == [1, 0, 2]
    assert not any(a[3] for a in members.values())


@pytest.mark.parametrize("bad", ["nan", "above", "label", "shape"])
def test_scores_that_are_none_are_refused(bad):
    p, y = cohort(100)
    x = features_of(100)
    if bad == "nan":
        p[3] = np.nan
    elif bad == "above":
        p[3] = 1.1
    elif bad == "label":
        y[3] = 2
    else:
        x = x[:, :2]
    with pytest.raises(ConsiliumError, match="E604"):
        evaluate(p, y, x, tiny_study(), 10)


def test_order_of_patients_does_not_matter():
    p, y = cohort(300, 6)
    x = features_of(300)
    order = np.random.default_rng(1).permutation(300)
    a, b = evaluate(p, y, x, tiny_study(), 5), evaluate(p[order], y[order], x[order], tiny_study(), 5)
    for one, other in itertools.zip_longest(a["calibration"], b["calibration"]):
        assert one.model_dump() == pytest.approx(other.model_dump(), abs=1e-12)
    for name in a["metrics"]:
        assert a["metrics"][name].value == pytest.approx(b["metrics"][name].value, abs=1e-9)
