"""Net benefit agrees with dcurves."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from dcurves import dca
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.validation.simulated import cohort
from validation.decision_curve import (
    decision_curve,
    net_benefit,
    net_benefit_advantage,
    net_benefit_treat_all,
)

thresholds = st.floats(0.02, 0.98)
labels = st.lists(st.integers(0, 1), min_size=2, max_size=60).map(np.array)


def test_net_benefit_equals_dcurves():
    p, y = cohort(300, 1)
    grid = [0.05, 0.1, 0.25, 0.4, 0.6]
    curve = dca(data=pd.DataFrame({"y": y, "m": p}), outcome="y", modelnames=["m"], thresholds=grid)
    expected = curve.pivot(index="threshold", columns="model", values="net_benefit")
    for t in grid:
        assert net_benefit(p, y, t).value == pytest.approx(expected.loc[t, "m"], abs=1e-9)
        assert net_benefit_treat_all(y, t).value == pytest.approx(expected.loc[t, "all"], abs=1e-9)
        better = max(expected.loc[t, "all"], expected.loc[t, "none"])
        assert net_benefit_advantage(p, y, t).value == pytest.approx(expected.loc[t, "m"] - better, abs=1e-9)


@settings(deadline=None)
@given(labels, thresholds)
def test_treat_all_equals_its_formula_and_a_model_that_alerts_all(y, t):
    found = net_benefit_treat_all(y, t)
    assert found.value == pytest.approx(y.mean() - (1 - y.mean()) * t / (1 - t), abs=1e-9)
    assert net_benefit(np.ones(len(y)), y, t) == found


@settings(deadline=None)
@given(labels, thresholds)
def test_a_model_that_alerts_nobody_is_worth_nothing_and_its_error_is_unknown(y, t):
    found = net_benefit(np.zeros(len(y)), y, t)
    assert found.value == 0 and found.standard_error is None and found.lower is None


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), min_size=2, max_size=60), thresholds)
def test_net_benefit_is_at_most_the_prevalence(rows, t):
    p, y = np.array([r for r, _ in rows]), np.array([e for _, e in rows])
    assert net_benefit(p, y, t).value <= y.mean() + 1e-12


@pytest.mark.parametrize("measure", [net_benefit, net_benefit_advantage])
@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_errors_match_the_spread_over_repeated_samples(measure, threshold):
    found = [measure(*cohort(300, seed), threshold) for seed in range(400)]
    spread = np.std([e.value for e in found])
    assert np.mean([e.standard_error for e in found]) == pytest.approx(spread, rel=0.1)


def test_the_curve_is_the_net_benefit_on_the_grid():
    p, y = cohort(20_000, 2)
    curve = decision_curve(p, y, 0.05, 0.55)
    assert [point.threshold for point in curve] == pytest.approx(np.linspace(0.05, 0.55, 11))
    for point in curve:
        assert point.model == round(net_benefit(p, y, point.threshold).value, 4)
        assert point.treat_all == round(net_benefit_treat_all(y, point.threshold).value, 4)
