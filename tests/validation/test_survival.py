"""C-index, Uno's C and the time-dependent AUC agree with lifelines and the definition, errors included."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lifelines import CoxPHFitter
from lifelines.utils import concordance_index

from tests.validation.simulated import DATA
from validation.discrimination import auroc
from validation.survival import c_index, time_dependent_auc, uno_c

TCGA = DATA / "tcga_brca" / "brca.csv"


def followed(n, seed=0, ties=None, censoring=1.2):
    """Proportional hazards with censoring at random: (risk, time, event); `ties` rounds risk and time."""
    draw = np.random.default_rng(seed)
    risk = draw.normal(size=n)
    time, end = draw.exponential(np.exp(-risk)), draw.exponential(censoring, n)
    event = (time <= end).astype(np.int64)
    time = np.minimum(time, end)
    return (np.round(risk, 1), np.ceil(time * ties), event) if ties else (risk, time, event)


def still_followed(time, event, weight, t):
    """Kaplan-Meier estimate of G(t-), one censoring time after the other."""
    g = 1.0
    for s in np.unique(time[event == 0]):
        if s < t:
            left = (weight * ((time > s) | ((time == s) & (event == 0)))).sum()
            g *= 1 - (weight * ((time == s) & (event == 0))).sum() / left
    return g


def by_pairs(risk, time, event, weight, earlier, later, power):
    """Weighted share of the pairs (i, j) with earlier(i) and later(i, j) in which i has the higher risk."""
    right = pairs = 0.0
    for i in np.flatnonzero(event):
        if not earlier(i):
            continue
        of_i = weight[i] / still_followed(time, event, weight, time[i]) ** power
        for j in range(len(time)):
            if later(i, j):
                pairs += of_i * weight[j]
                right += of_i * weight[j] * ((risk[i] > risk[j]) + 0.5 * (risk[i] == risk[j]))
    return right / pairs


def reference(measure, risk, time, event, at, weight):
    def outlives(i, j):
        return time[j] > time[i] or (time[j] == time[i] and event[j] == 0)

    if measure == "harrell":
        return by_pairs(risk, time, event, weight, lambda i: True, outlives, 0)
    if measure == "uno":
        return by_pairs(risk, time, event, weight, lambda i: time[i] < at, outlives, 2)
    return by_pairs(risk, time, event, weight, lambda i: time[i] <= at, lambda i, j: time[j] > at, 1)


def ours(measure, risk, time, event, at):
    if measure == "harrell":
        return c_index(risk, time, event)
    return (uno_c if measure == "uno" else time_dependent_auc)(risk, time, event, at)


@pytest.mark.parametrize("measure", ["harrell", "uno", "auc"])
@pytest.mark.parametrize(("seed", "ties"), [(0, None), (1, 6), (2, 3)])
def test_value_is_the_definition_and_the_error_its_derivative_by_each_patients_weight(measure, seed, ties):
    """The reference counts pairs and estimates G anew for every weight: nothing of it is shared with ours."""
    n = 24
    risk, time, event = followed(n, seed, ties)
    at = float(np.sort(time)[n // 2])
    found = ours(measure, risk, time, event, at)
    assert found.value == pytest.approx(reference(measure, risk, time, event, at, np.ones(n)), abs=1e-12)
    derivative = [
        (reference(measure, risk, time, event, at, 1 + e) - reference(measure, risk, time, event, at, 1 - e))
        / 2e-5
        for e in 1e-5 * np.eye(n)
    ]
    assert found.standard_error == pytest.approx(np.linalg.norm(derivative), rel=1e-5)


@pytest.mark.parametrize("ties", [None, 10, 3])
@pytest.mark.parametrize("seed", range(3))
def test_c_index_equals_lifelines_also_with_ties(seed, ties):
    risk, time, event = followed(200, seed, ties)
    assert c_index(risk, time, event).value == pytest.approx(concordance_index(time, -risk, event), abs=1e-12)


@pytest.mark.skipif(not TCGA.exists(), reason=f"no TCGA data at {TCGA}: set CONSILIUM_DATA")
def test_c_index_equals_lifelines_on_tcga_breast_cancer():
    table = pd.read_csv(TCGA).drop(columns="pid")
    table = table[table["T"] > 0]
    covariates = ["age_at_index", "T", "E"]
    fit = CoxPHFitter().fit(table[covariates], "T", "E")
    time, event = table["T"].to_numpy(float), table["E"].to_numpy(np.int64)
    for risk in (fit.predict_partial_hazard(table).to_numpy(), table["age_at_index"].round(-1).to_numpy()):
        found = c_index(risk, time, event)
        assert found.value == pytest.approx(concordance_index(time, -risk, event), abs=1e-12)
        assert 0.5 < found.value < 0.8 and 0.005 < found.standard_error < 0.05


def test_without_censoring_uno_is_harrell_and_the_auc_that_of_the_status():
    risk, time, _ = followed(150, 3)
    everyone = np.ones(150, dtype=np.int64)
    assert uno_c(risk, time, everyone, np.inf) == c_index(risk, time, everyone)
    at = float(np.median(time))
    found = time_dependent_auc(risk, time, everyone, at)
    expected = auroc(risk, (time <= at).astype(np.int64))
    assert found.value == pytest.approx(expected.value, abs=1e-12)
    assert found.standard_error == pytest.approx(expected.standard_error, rel=0.02)  # n against n - 1


def test_weighting_removes_what_censoring_does_to_harrells_c():
    """Heavy censoring keeps the early events, among which the risk orders better or worse than in all."""
    risk, time, event = followed(4000, 5, censoring=0.5)
    uncensored = followed(4000, 5, censoring=1e9)
    at = 1.0
    truth = time_dependent_auc(*uncensored, at)
    found = time_dependent_auc(risk, time, event, at)
    assert abs(found.value - truth.value) < 3 * found.standard_error
    naive = auroc(risk, ((time <= at) & (event == 1)).astype(np.int64))
    assert abs(naive.value - truth.value) > 5 * naive.standard_error


@pytest.mark.parametrize("measure", ["harrell", "uno", "auc"])
def test_errors_match_the_spread_over_repeated_samples(measure):
    found = [ours(measure, *followed(150, seed), 0.8) for seed in range(400)]
    spread = np.std([e.value for e in found])
    assert np.mean([e.standard_error for e in found]) == pytest.approx(spread, rel=0.12)


def test_time_dependent_auc_interval_covers_the_truth():
    truth = time_dependent_auc(*followed(400_000, 1, censoring=1e9), 0.8).value
    covered = 0
    for seed in range(400):
        found = time_dependent_auc(*followed(150, seed), 0.8)
        covered += found.lower <= truth <= found.upper
    assert 0.92 <= covered / 400 <= 0.98


def test_measures_that_cannot_be_estimated_are_none():
    risk, time = np.array([0.3, 0.2, 0.1]), np.array([1.0, 2.0, 3.0])
    assert c_index(risk, time, np.zeros(3, dtype=np.int64)) is None
    assert c_index(risk, time, np.array([0, 0, 1])) is None  # the only event is the last time
    assert uno_c(risk, time, np.ones(3, dtype=np.int64), 0.5) is None  # no event before
    assert time_dependent_auc(risk, time, np.ones(3, dtype=np.int64), 1.0) is None  # one case
    assert time_dependent_auc(risk, time, np.ones(3, dtype=np.int64), 5.0) is None  # no control


def test_perfect_and_constant_risks_do_not_claim_certainty():
    time, event = np.arange(1.0, 13), np.ones(12, dtype=np.int64)
    for risk, value in ((-time, 1), (time, 0), (np.zeros(12), 0.5)):
        for found in (c_index(risk, time, event), time_dependent_auc(risk, time, event, 6.0)):
            assert found.value == value and found.upper - found.lower > 0.2


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(1, 8), st.integers(0, 1)), min_size=3, max_size=40),
    st.integers(1, 8),
)
def test_turning_the_risk_gives_the_complement_and_intervals_stay_inside_0_and_1(rows, at):
    risk, time, event = (np.array(column) for column in zip(*rows, strict=True))
    found = [ours(m, risk, time, event, at) for m in ("harrell", "uno", "auc")]
    assume(any(found))
    turned = [ours(m, -risk, time, event, at) for m in ("harrell", "uno", "auc")]
    for one, other in zip(found, turned, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.value == pytest.approx(1 - other.value, abs=1e-9)
            assert 0 <= one.lower <= one.value <= one.upper <= 1
