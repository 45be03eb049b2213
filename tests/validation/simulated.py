"""Patients whose true performance is known: binormal scores, and logits that say the true risk."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from scipy.integrate import quad
from scipy.stats import norm

DATA = Path(os.environ.get("CONSILIUM_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))


def cohort(n, seed=0, mean=-1.0, spread=1.2, slope=1.0):
    """Logits with the true risk `expit(slope x logit)`: (probability, label)."""
    draw = np.random.default_rng(seed)
    x = draw.normal(mean, spread, n)
    label = (draw.random(n) < 1 / (1 + np.exp(-slope * x))).astype(np.int64)
    return 1 / (1 + np.exp(-x)), label


def binormal(draw, n, prevalence, distance):
    """Scores N(0, 1) without and N(distance, 1) with the event, as the probabilities Phi(score)."""
    label = (draw.random(n) < prevalence).astype(np.int64)
    return norm.cdf(draw.normal(distance * label)), label


def true_auroc(distance):
    return norm.cdf(distance / np.sqrt(2))


def true_auprc(prevalence, distance):
    def precision(score):
        hits, alarms = prevalence * norm.sf(score - distance), (1 - prevalence) * norm.sf(score)
        return hits / (hits + alarms)

    return quad(lambda s: precision(s) * norm.pdf(s - distance), -8, 8)[0]


def true_sensitivity(threshold, distance):
    return norm.sf(norm.ppf(threshold) - distance)


def true_net_benefit(threshold, prevalence, distance):
    alarms = (1 - prevalence) * norm.sf(norm.ppf(threshold))
    return prevalence * true_sensitivity(threshold, distance) - alarms * threshold / (1 - threshold)
