"""The rates at a threshold agree with scikit-learn's table and statsmodels' Wilson interval."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix
from statsmodels.stats.proportion import proportion_confint

from tests.validation.simulated import cohort
from validation.operating_point import operating_point


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.7])
def test_rates_equal_scikit_learn_and_intervals_statsmodels(threshold):
    p, y = cohort(300, 1)
    tn, fp, fn, tp = confusion_matrix(y, p >= threshold).ravel()
    expected = {
        "sensitivity": (tp, tp + fn),
        "specificity": (tn, tn + fp),
        "ppv": (tp, tp + fp),
        "npv": (tn, tn + fn),
        "alert_rate": (tp + fp, len(y)),
    }
    found = operating_point(p, y, threshold)
    assert found.keys() == expected.keys()
    for name, (hits, of) in expected.items():
        limits = proportion_confint(hits, of, method="wilson")
        assert found[name].value == pytest.approx(hits / of, abs=1e-12)
        assert (found[name].lower, found[name].upper) == pytest.approx(limits, abs=1e-9)


def test_a_risk_equal_to_the_threshold_is_an_alert():
    found = operating_point(np.array([0.2, 0.1]), np.array([1, 0]), 0.2)
    assert found["sensitivity"].value == 1 and found["specificity"].value == 1


@pytest.mark.parametrize(
    ("p", "y", "absent"),
    [
        ([0.1, 0.2], [0, 1], {"ppv"}),  # nobody alerted
        ([0.8, 0.9], [0, 1], {"npv"}),  # everybody alerted
        ([0.1, 0.9], [0, 0], {"sensitivity"}),  # no event
        ([0.1, 0.9], [1, 1], {"specificity"}),  # no non-event
    ],
)
def test_a_rate_without_a_denominator_is_absent(p, y, absent):
    found = operating_point(np.array(p), np.array(y), 0.5)
    assert {"sensitivity", "specificity", "ppv", "npv", "alert_rate"} - found.keys() == absent


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), min_size=1, max_size=60),
    st.floats(0.01, 0.99),
)
def test_intervals_stay_inside_0_and_1_and_rates_obey_the_law_of_total_probability(rows, threshold):
    p, y = np.array([r for r, _ in rows]), np.array([e for _, e in rows])
    found = operating_point(p, y, threshold)
    for estimate in found.values():
        assert 0 <= estimate.lower <= estimate.value <= estimate.upper <= 1
    if {"sensitivity", "specificity"} <= found.keys():
        prevalence = y.mean()
        alerts = found["sensitivity"].value * prevalence + (1 - found["specificity"].value) * (1 - prevalence)
        assert found["alert_rate"].value == pytest.approx(alerts, abs=1e-12)
