"""Adaptive clipping by a noised quantile: Andrew et al. 2021, arXiv:1905.03871, algorithm 1.

A release of the sum of clipped vectors and one of the number of those within the clip norm C are one Gaussian
release. Their noise is sigma_g C on the sum and sigma_b on sum_i (b_i - 1/2), whose sensitivity is 1/2;
measured in noise, one contributor moves both together by at most

    sqrt(1 / sigma_g^2 + 1 / (2 sigma_b)^2) = 1 / sigma

for sigma_g = sigma / sqrt(1 - share) and sigma_b = sigma / (2 sqrt(share)) (theorem 1 of the paper).
"""

from __future__ import annotations

import math

from contracts.privacy import Quantile

_LEAST_CLIP = 1e-6  # of the ceiling: so low that a wandering C gets no lower


def split_noise(noise_multiplier: float, share: float) -> tuple[float, float]:
    """Return the noise multiplier of the sum and the standard deviation of the noise on the count.

    Args:
        noise_multiplier: sigma, what both together cost.
        share: of the precision 1 / sigma^2, what pays for the count.
    """
    return noise_multiplier / math.sqrt(1.0 - share), noise_multiplier / (2.0 * math.sqrt(share))


def followed(clip: float, within: float, quantile: Quantile, ceiling: float) -> float:
    """Return the next clip norm: C exp(-learning_rate (within - target)), at most `ceiling`.

    Args:
        within: noised share of those within C; noise may put it outside [0, 1], and cutting it off would
            draw C away from the quantile.
        ceiling: the protocol's clip norm.
    """
    step = -quantile.learning_rate * (within - quantile.target)
    return min(max(clip * math.exp(min(max(step, -50.0), 50.0)), _LEAST_CLIP * ceiling), ceiling)
