"""After the last round: the decision threshold, read off one histogram of the training patients' risks.

The site's half counts its training patients by label and risk under the final global model, noised once when
the study is private; the coordinator's half reads the threshold off the sum over sites.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from contracts.study import ThresholdRule
from privacy.histogram import BINS, Threshold, choose_threshold, noisy_counts, risk_counts
from privacy.stream import NoiseStream
from strategies.interface import Admitted, Shapes, SiteUpdate

HISTOGRAM = "histogram"
_TAIL = 7.0  # standard deviations beyond which honest noise does not reach: below 1e-11


def histogram_shapes() -> Shapes:
    """The one tensor of a histogram update: patients by risk bin, without and with the outcome."""
    return {HISTOGRAM: (2 * BINS,)}


def site_histogram(
    risk: np.ndarray, label: np.ndarray, noise_multiplier: float | None, stream: NoiseStream
) -> SiteUpdate:
    """The site's half: risk float [patients] in [0, 1] and label [patients], 0 or 1, of the latest record."""
    counts = risk_counts(risk, label)
    if noise_multiplier is not None:
        counts = noisy_counts(counts, noise_multiplier=noise_multiplier, stream=stream)
    return SiteUpdate(sent={HISTOGRAM: counts.astype(np.float32)})


def summed_histogram(updates: Sequence[Admitted]) -> np.ndarray:
    """Sum of the sites' histograms, float64 [2 x BINS]."""
    total = np.zeros(2 * BINS, dtype=np.float64)
    for update in updates:
        total += update.tensors.whole(HISTOGRAM)
    return total


def threshold_from(
    total: np.ndarray, rule: ThresholdRule, noise_multiplier: float | None, sites: int
) -> Threshold:
    """The coordinator's half: the threshold that `rule` asks for on the sum over `sites` sites.

    Raises:
        ConsiliumError: E427, the histogram cannot decide it.
    """
    noise = 0.0 if noise_multiplier is None else noise_multiplier * math.sqrt(sites)
    return choose_threshold(total, rule, noise=noise)


def histogram_norm_bound(declared_size: int, noise_multiplier: float | None) -> float:
    """Largest plausible L2 norm of a site's histogram: twice the declared size in one bin, plus noise."""
    noise = 0.0 if noise_multiplier is None else noise_multiplier * (math.sqrt(2 * BINS) + _TAIL)
    return 2.0 * declared_size + noise
