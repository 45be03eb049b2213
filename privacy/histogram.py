"""The training patients' risks as one histogram: what a decision threshold is read off (design section 5).

A patient becomes one vector, a one-hot of (label, risk bin) of the latest record: length 2 x BINS, norm 1.
The sum over patients plus Gaussian noise is one release at rate 1; one patient more or less moves it by 1.

The bins are equal in width. 50 of them place a threshold to .02. With n bins the noise of a count above a
threshold grows as the root of n: simulated for 4 sites of 1,320 patients with .15 of epsilon, the sensitivity
reached is .07 off the wanted .85 with 50 bins, .11 with 100; with 20 bins, .05 wide, noise matters less (.06)
but the risks of a rare outcome all fall into one or two bins and no threshold can be placed there.

All that follows the sum is post-processing and spends nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts.errors import ConsiliumError
from contracts.study import ThresholdRule
from privacy.stream import NoiseStream

Floats = NDArray[np.float64]

BINS = 50
EDGES = np.arange(BINS + 1) / BINS  # a risk p is in bin k or a higher one exactly if p >= EDGES[k]


@dataclass(frozen=True)
class Threshold:
    """A decision threshold with what it achieves on the training patients, as the histogram tells.

    `standard_error` is that of the achieved value of the rule, from the noise alone; 0 without noise. How far
    new patients differ from those of training is no part of it.
    """

    value: float
    sensitivity: float
    alert_rate: float
    standard_error: float


def risk_counts(risk: NDArray[np.floating], label: NDArray[np.floating]) -> Floats:
    """Return float64 [2 x BINS]: patients by risk bin, first those without the outcome, then those with it.

    Args:
        risk: [P], the model's probability at the patient's latest record; one that is not a number in [0, 1]
            counts nowhere, so that a patient cannot be recognised by breaking the sum.
        label: [P], 0 or 1, of the same record.
    """
    p = np.asarray(risk, dtype=np.float64)
    usable = (p >= 0.0) & (p <= 1.0)
    bins = np.minimum(np.searchsorted(EDGES, p[usable], side="right") - 1, BINS - 1)
    cells = bins + BINS * (np.asarray(label)[usable] == 1)
    return np.asarray(np.bincount(cells, minlength=2 * BINS), dtype=np.float64)


def noisy_counts(counts: Floats, *, noise_multiplier: float, stream: NoiseStream) -> Floats:
    """Return the counts plus Gaussian noise of standard deviation sigma x 1, the norm of a patient's vector.

    Args:
        noise_multiplier: sigma, of the plan.
        stream: of the plan at hand, purpose `histogram`.
    """
    return np.asarray(counts + noise_multiplier * stream.normal(len(counts)), dtype=np.float64)


def choose_threshold(total: Floats, rule: ThresholdRule, *, noise: float = 0.0) -> Threshold:
    """Return the threshold that a rule asks for, an inner edge of the bins.

    Negative counts stay as they are: set to zero, they would add patients where there are none, most of all
    to the many empty bins at high risk. Instead the share of patients at or above each edge is made monotone
    by isotonic regression: it cannot rise with the threshold, and where noise makes it cross the rule several
    times, the last crossing would be chosen because the noise there was lucky.

    Args:
        total: float64 [2 x BINS], the sum over all sites.
        rule: the largest edge with at least its sensitivity, or the smallest with at most its alert rate.
        noise: standard deviation of the noise on each entry; 0 for exact counts.

    Raises:
        ConsiliumError: E427, no more patients than noise, or no edge meets the rule.
    """
    negative, positive = _above(total[:BINS]), _above(total[BINS:])
    everyone = negative + positive
    spread = noise * math.sqrt(BINS)
    if positive[0] <= 2.0 * spread or everyone[0] <= 2.0 * math.sqrt(2.0) * spread:
        raise ConsiliumError(
            "E427",
            f"{positive[0]:.0f} positives of {everyone[0]:.0f} patients, noise of a total {spread:.0f}",
        )
    sensitivity, alert_rate = _monotone(positive), _monotone(everyone)
    inner = np.arange(1, BINS)
    if rule.sensitivity is not None:
        wanted, shares, total_of, cells = rule.sensitivity, sensitivity, positive[0], 1
        edges = inner[shares[inner] >= wanted][-1:]
    else:
        assert rule.alert_rate is not None
        wanted, shares, total_of, cells = rule.alert_rate, alert_rate, everyone[0], 2
        edges = inner[shares[inner] <= wanted][:1]
    if not len(edges):
        what = "sensitivity" if rule.sensitivity is not None else "alert_rate"
        reached = f"{shares[1]:.3f} at {EDGES[1]:g}, {shares[-2]:.3f} at {EDGES[-2]:g}"
        raise ConsiliumError("E427", f"{what} {wanted:g} at no threshold: {reached}")
    k = int(edges[0])
    # Of a / (a + b), a being the noisy sum over the bins from k on and b over those below (delta method).
    share = float(shares[k])
    variance = cells * ((1.0 - share) ** 2 * (BINS - k) + share**2 * k)
    return Threshold(
        value=float(EDGES[k]),
        sensitivity=float(sensitivity[k]),
        alert_rate=float(alert_rate[k]),
        standard_error=noise * math.sqrt(variance) / float(total_of),
    )


def _above(counts: Floats) -> Floats:
    """Return float64 [BINS + 1]: the patients at or above each edge."""
    return np.concatenate([np.cumsum(counts[::-1])[::-1], [0.0]])


def _monotone(above: Floats) -> Floats:
    """Share of the total at or above each edge, falling: the closest such sequence (pool adjacent violators).

    Ayer et al. 1955, Ann. Math. Statist. 26(4). Float64 [BINS + 1], in [0, 1].
    """
    blocks: list[tuple[float, int]] = []
    for value in above / above[0]:
        mean, size = float(value), 1
        while blocks and blocks[-1][0] < mean:
            before, width = blocks.pop()
            mean, size = (before * width + mean * size) / (width + size), width + size
        blocks.append((mean, size))
    return np.asarray(np.clip(np.concatenate([np.full(size, mean) for mean, size in blocks]), 0.0, 1.0))
