"""Random effects agree with independent references, and their intervals cover what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from statsmodels.stats.meta_analysis import combine_effects

from validation.meta_analysis import (
    AUROC_PRIOR,
    DIFFERENCE_PRIOR,
    FEW,
    ODDS_PRIOR,
    RATIO_PRIOR,
    SLOPE_PRIOR,
    random_effects,
)

# Borenstein et al., Introduction to Meta-Analysis (2009), data set 1: Hedges' g of six studies.
EFFECTS = [0.095, 0.277, 0.367, 0.664, 0.462, 0.185]
VARIANCES = [0.033, 0.031, 0.050, 0.011, 0.043, 0.023]


def test_paule_mandel_and_hartung_knapp_agree_with_statsmodels():
    found = random_effects(EFFECTS, VARIANCES)
    reference = combine_effects(
        np.array(EFFECTS), np.array(VARIANCES), method_re="pm", use_t=True, atol=1e-12
    )
    assert found.tau2 == pytest.approx(reference.tau2, abs=1e-9)
    assert found.mean == pytest.approx(reference.mean_effect_re, abs=1e-9)
    assert found.standard_error**2 == pytest.approx(reference.var_hksj_re, rel=1e-6)
    assert found.interval() == pytest.approx(tuple(reference.conf_int(use_t=True)[3]), abs=1e-6)


def test_i2_of_hospitals_of_one_size_is_the_excess_of_q():
    """Higgins & Thompson: I2 = (Q - df) / Q, which the definition by tau2 equals for equal variances."""
    effects = np.array(EFFECTS)
    reference = combine_effects(effects, np.full(6, 0.01), method_re="dl")
    assert random_effects(EFFECTS, [0.01] * 6).i2 == pytest.approx(reference.i2, abs=1e-9)


def test_hospitals_that_agree_feign_no_precision():
    """Hartung-Knapp alone would give an interval of width zero here."""
    found = random_effects([0.8] * 5, [0.04] * 5)
    assert found.standard_error == pytest.approx(np.sqrt(0.04 / 5))
    assert found.interval()[0] == pytest.approx(0.8 - 2.776 * np.sqrt(0.04 / 5), abs=1e-3)


def by_brute_force(y, v, scale, level=(0.005, 0.025, 0.975)):
    """Mean, standard deviation and quantiles of the mean and a new hospital, on a grid of mean and tau."""
    spread = max(y) - min(y) + scale
    mu = np.linspace(np.mean(y) - 10 * spread, np.mean(y) + 10 * spread, 1601)
    tau = np.linspace(1e-6, 6 * scale + 3 * np.sqrt(scale * spread), 1001)
    log = norm.logpdf(tau, 0, scale)[None, :].repeat(len(mu), axis=0)
    for each, variance in zip(y, v, strict=True):
        log += norm.logpdf(each, mu[:, None], np.sqrt(variance + tau[None, :] ** 2))
    weight = np.exp(log - log.max())
    weight /= weight.sum()
    of_mu, of_tau = weight.sum(axis=1), weight.sum(axis=0)
    mean = float(of_mu @ mu)
    draws = np.random.default_rng(0)
    pick = draws.choice(weight.size, 400_000, p=weight.ravel())
    new = draws.normal(mu[pick // len(tau)], tau[pick % len(tau)])
    return {
        "mean": mean,
        "sd": float(np.sqrt(of_mu @ (mu - mean) ** 2)),
        "quantiles": [float(np.interp(p, np.cumsum(of_mu) - of_mu / 2, mu)) for p in level],
        "tau": float(np.interp(0.5, np.cumsum(of_tau) - of_tau / 2, tau)),
        "new": np.quantile(new, [0.025, 0.975]),
    }


@pytest.mark.parametrize(
    ("y", "v", "prior"),
    [
        ([1.0, 1.3, 0.8], [0.04, 0.02, 0.05], AUROC_PRIOR),
        ([0.2, 1.9], [0.01, 0.3], AUROC_PRIOR),
        ([0.1, -0.4, 0.0, 0.3], [0.02, 0.09, 0.01, 0.04], RATIO_PRIOR),
    ],
)
def test_the_posterior_of_few_hospitals_agrees_with_integration_over_both_parameters(y, v, prior):
    found, reference = random_effects(y, v, prior), by_brute_force(y, v, prior.scale)
    assert found.prior == prior
    assert found.mean == pytest.approx(reference["mean"], abs=2e-3)
    assert found.standard_error == pytest.approx(reference["sd"], abs=2e-3)
    assert [found.quantile(p) for p in (0.005, 0.025, 0.975)] == pytest.approx(
        reference["quantiles"], abs=5e-3
    )
    assert np.sqrt(found.tau2) == pytest.approx(reference["tau"], abs=2e-3)
    assert found.new_site() == pytest.approx(reference["new"], abs=0.02)


@pytest.mark.parametrize("sites", [2, 3, 4, 7, 20])
def test_the_prediction_interval_holds_the_next_hospital_as_often_as_it_says(sites):
    """tau as in the registry the prior comes from: AUROC .055 +- .015 between hospitals, at .75."""
    draw, held, runs = np.random.default_rng(sites), 0, 600
    for _ in range(runs):
        tau = np.exp(draw.normal(np.log(0.053), 0.27)) / (0.75 * 0.25)
        variances = draw.uniform(0.005, 0.06, sites)
        truth = draw.normal(1.1, tau, sites + 1)
        low, high = random_effects(
            draw.normal(truth[:sites], np.sqrt(variances)), variances, AUROC_PRIOR
        ).new_site()
        held += low <= truth[sites] <= high
    assert 0.925 <= held / runs <= 0.985  # the standard error of a share in 600 runs is .009


def test_without_a_prior_few_hospitals_predict_almost_nothing_or_nothing():
    assert random_effects([1.0, 1.2], [0.02, 0.02]).new_site() is None
    wide, informed = (random_effects([1.0, 1.3, 0.8], [0.04, 0.02, 0.05], p) for p in (None, AUROC_PRIOR))
    assert wide.new_site()[1] - wide.new_site()[0] > 3 * (informed.new_site()[1] - informed.new_site()[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sites", "prior", "tau"),
    [
        (5, None, 0.3),
        (3, AUROC_PRIOR, 0.3),
        (2, ODDS_PRIOR, 0.8),
        (4, ODDS_PRIOR, 0.3),
        (3, SLOPE_PRIOR, 0.0),
        (3, SLOPE_PRIOR, 0.4),
    ],
)
def test_pooled_interval_covers_the_mean_of_differing_hospitals(sites, prior, tau):
    draw, covered, runs = np.random.default_rng(0), 0, 1500
    for _ in range(runs):
        variances = draw.uniform(0.01, 0.06, sites)
        y = draw.normal(1.0, tau, sites) + draw.normal(0, np.sqrt(variances))
        low, high = random_effects(y, variances, prior).interval()
        covered += low <= 1.0 <= high
    assert covered / runs >= 0.94


def test_the_prior_is_for_few_hospitals_only():
    y, v = list(np.linspace(0.9, 1.2, FEW)), [0.02] * FEW
    assert random_effects(y[: FEW - 1], v[: FEW - 1], AUROC_PRIOR).prior is AUROC_PRIOR
    assert random_effects(y, v, AUROC_PRIOR).prior is None


def test_precise_hospitals_that_differ_greatly_are_not_forced_together():
    """Hospitals of thousands of patients, and two that contradict each other far beyond the prior."""
    found = random_effects([0.010, 0.060, -0.020], [1e-6, 1e-6, 1e-6], DIFFERENCE_PRIOR)
    reference = by_brute_force([1.0, 6.0, -2.0], [1e-2] * 3, 7.0)  # the same, a hundred times as large
    assert found.mean * 100 == pytest.approx(reference["mean"], abs=0.1)
    far = random_effects([-8.0, 8.0], [0.01, 0.01], AUROC_PRIOR)
    assert far.interval()[0] < -1 and far.new_site()[1] > 3
