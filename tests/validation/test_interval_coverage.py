"""A 95 % interval holds the truth in about 95 of 100 repeated studies of a population that is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from tests.validation.simulated import (
    binormal,
    true_auprc,
    true_auroc,
    true_net_benefit,
    true_sensitivity,
)
from validation.comparison import auroc_difference, net_benefit_difference
from validation.decision_curve import net_benefit
from validation.discrimination import auprc, auroc
from validation.operating_point import operating_point

RUNS, N, PREVALENCE, DISTANCE, THRESHOLD = 500, 150, 0.4, 1.2, 0.6


@pytest.fixture(scope="module")
def studies():
    draw = np.random.default_rng(11)
    return [binormal(draw, N, PREVALENCE, DISTANCE) for _ in range(RUNS)]


MEASURES = {
    "auroc": (auroc, true_auroc(DISTANCE)),
    "auprc": (auprc, true_auprc(PREVALENCE, DISTANCE)),
    "sensitivity": (
        lambda p, y: operating_point(p, y, THRESHOLD)["sensitivity"],
        true_sensitivity(THRESHOLD, DISTANCE),
    ),
    "net benefit": (
        lambda p, y: net_benefit(p, y, THRESHOLD),
        true_net_benefit(THRESHOLD, PREVALENCE, DISTANCE),
    ),
}


def coverage(found, truth):
    return np.mean([e.lower <= truth <= e.upper for e in found])


@pytest.mark.parametrize("name", MEASURES)
def test_interval_of_one_model_covers_the_truth(studies, name):
    measure, truth = MEASURES[name]
    assert 0.92 <= coverage([measure(p, y) for p, y in studies], truth) <= 0.98


def two_models(draw):
    """Two readings of one patient, correlated by .5: the second tells the classes apart less well."""
    label = (draw.random(N) < PREVALENCE).astype(np.int64)
    shared, own, other = draw.normal(size=(3, N))
    model = DISTANCE * label + np.sqrt(0.5) * (shared + own)
    return model, 0.8 * label + np.sqrt(0.5) * (shared + other), label


def test_interval_of_a_paired_auroc_difference_covers_the_truth():
    draw = np.random.default_rng(12)
    found = [auroc_difference(*two_models(draw)) for _ in range(RUNS)]
    assert 0.92 <= coverage(found, true_auroc(DISTANCE) - true_auroc(0.8)) <= 0.98


def test_interval_of_a_paired_net_benefit_difference_covers_the_truth():
    draw, found = np.random.default_rng(13), []
    for _ in range(RUNS):
        model, other, label = two_models(draw)
        found.append(net_benefit_difference(norm.cdf(model), norm.cdf(other), label, THRESHOLD))
    truth = true_net_benefit(THRESHOLD, PREVALENCE, DISTANCE) - true_net_benefit(THRESHOLD, PREVALENCE, 0.8)
    assert 0.92 <= coverage(found, truth) <= 0.98
