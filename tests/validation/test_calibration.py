"""Slope, intercept, O:E and ECE agree with statsmodels, scikit-learn and the definition."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from statsmodels.tools.sm_exceptions import DomainWarning

from tests.validation.simulated import cohort
from validation.calibration import calibration_intercept, calibration_slope, ece, logit, observed_expected


@pytest.mark.parametrize("slope", [0.6, 1.0, 1.5])
def test_slope_and_intercept_equal_statsmodels_with_their_intervals(slope):
    p, y = cohort(500, 1, slope=slope)
    fit = sm.Logit(y, sm.add_constant(logit(p))).fit(disp=0, tol=1e-12)
    found = calibration_slope(p, y)
    assert (found.value, found.standard_error) == pytest.approx((fit.params[1], fit.bse[1]), abs=1e-6)
    assert (found.lower, found.upper) == pytest.approx(tuple(fit.conf_int()[1]), abs=1e-6)
    large = sm.GLM(y, np.ones(len(y)), family=sm.families.Binomial(), offset=logit(p)).fit(tol=1e-12)
    found = calibration_intercept(p, y)
    assert (found.value, found.standard_error) == pytest.approx((large.params[0], large.bse[0]), abs=1e-6)


def test_observed_expected_is_the_ratio_and_has_the_interval_of_the_observed_proportion_on_the_log_scale():
    p, y = cohort(400, 3)
    found = observed_expected(p, y)
    assert found.value == pytest.approx(y.mean() / p.mean(), rel=1e-12)
    # A regression of the rate on a constant with a log link has the same error of the log.
    family = sm.families.Binomial(link=sm.families.links.Log())
    with pytest.warns(DomainWarning):  # a log link may leave [0, 1]; with a constant alone it does not
        model = sm.GLM(y, np.ones(len(y)), family=family)
    fit = model.fit(start_params=[np.log(y.mean())])
    half = 1.959963984540054 * fit.bse[0]
    assert (found.lower, found.upper) == pytest.approx(
        (found.value * np.exp(-half), found.value * np.exp(half)), rel=1e-6
    )
    assert found.standard_error == pytest.approx(found.value * fit.bse[0], rel=1e-6)


def test_observed_expected_interval_is_on_the_wide_side_also_for_a_perfect_model():
    covered = 0
    for seed in range(300):
        found = observed_expected(*cohort(200, seed))
        covered += found.lower <= 1 <= found.upper
    assert covered / 300 >= 0.95


@pytest.mark.parametrize(("p", "y"), [([0.1, 0.2], [0, 0]), ([0.1, 0.2], [1, 1]), ([0.0, 0.0], [0, 1])])
def test_an_observed_expected_ratio_without_an_error_is_none(p, y):
    assert observed_expected(np.array(p), np.array(y)) is None


@pytest.mark.parametrize("bins", [5, 10, 20])
def test_ece_equals_the_mean_gap_of_scikit_learns_quantile_bins(bins):
    p, y = cohort(400, 2, slope=0.5)
    observed, predicted = calibration_curve(y, p, n_bins=bins, strategy="quantile")
    assert len(observed) == bins
    assert ece(p, y, bins).value == pytest.approx(np.abs(observed - predicted).mean(), abs=1e-12)


def too_low(n, seed):
    """Predicted odds of a quarter of the true ones: in every bin observed is above predicted."""
    p, y = cohort(n, seed)
    return p / (p + 4 * (1 - p)), y


def test_ece_error_matches_the_spread_where_no_bin_changes_sign():
    found = [ece(*too_low(400, seed)) for seed in range(400)]
    spread = np.std([e.value for e in found])
    assert np.mean([e.standard_error for e in found]) == pytest.approx(spread, rel=0.1)


def test_ece_error_is_too_wide_for_a_perfect_model_as_documented():
    found = [ece(*cohort(400, seed)) for seed in range(200)]
    assert np.mean([e.standard_error for e in found]) == pytest.approx(0.021, abs=0.002)
    assert np.std([e.value for e in found]) == pytest.approx(0.012, abs=0.002)


def test_ece_of_a_perfect_model_is_biased_upwards_as_documented():
    few = np.mean([ece(*cohort(400, seed)).value for seed in range(200)])
    many = np.mean([ece(*cohort(4000, seed)).value for seed in range(50)])
    assert few == pytest.approx(0.051, abs=0.003)
    assert many == pytest.approx(0.016, abs=0.002)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 1)), min_size=2, max_size=60),
    st.integers(1, 12),
    st.randoms(use_true_random=False),
)
def test_ece_is_a_function_of_the_set_of_patients_and_stays_inside_0_and_1(rows, bins, random):
    p, y = np.array([r for r, _ in rows]) / 8, np.array([e for _, e in rows])
    found = ece(p, y, bins)
    order = list(range(len(y)))
    random.shuffle(order)
    assert ece(p[order], y[order], bins).value == pytest.approx(found.value, abs=1e-12)
    assert abs(y.mean() - p.mean()) - 1e-12 <= found.value <= 1
    if found.lower is not None:
        assert 0 <= found.lower <= found.value <= found.upper <= 1
