"""Renyi differential privacy: the independent upper bound that confirms the accountant's epsilon.

Mironov, Talwar, Zhang, "Renyi Differential Privacy of the Sampled Gaussian Mechanism", arXiv:1908.10530.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

Floats = NDArray[np.float64]

_ORDERS = np.concatenate(
    [
        np.arange(1.1, 3.0, 0.1),
        np.arange(3.0, 12.0, 0.25),
        np.arange(12.0, 64.0, 2.0),
        2.0 ** np.arange(6, 11.01, 0.25),
    ]
)


def epsilon_from_renyi(triples: Iterable[tuple[float, float, int]], delta: float) -> float:
    """Return the best upper bound of epsilon over a set of fractional orders; 0.0 for nothing spent.

    Args:
        triples: sample rate, noise multiplier and steps of each pair.
    """
    total, spent = np.zeros(len(_ORDERS)), False
    for q, sigma, steps in triples:
        total, spent = total + steps * _renyi(q, sigma), True
    if not spent:
        return 0.0
    # Canonne, Kamath, Steinke 2020 (arXiv:2004.00010), proposition 12.
    bound = total + np.log1p(-1.0 / _ORDERS) - (math.log(delta) + np.log(_ORDERS)) / (_ORDERS - 1.0)
    return max(0.0, float(np.min(bound)))


@lru_cache(maxsize=4096)
def _renyi(q: float, sigma: float) -> Floats:
    """Renyi divergence of one step at `_ORDERS`: log E_Q[(P/Q)^a] / (a-1), Mironov et al. 2019, section 3.

    The expectation is taken by the trapezoidal rule, which is spectrally accurate for this integrand; it
    shares no code with the PRV, so that the two check each other. Orders too large for a small sigma are
    left out (infinite).
    """
    if q == 1.0:
        return np.asarray(_ORDERS / (2.0 * sigma**2))
    divergence = np.full(len(_ORDERS), math.inf)
    step = min(sigma / 12.0, sigma**2 / 4.0)
    for i, order in enumerate(_ORDERS):
        span = order + 24.0 * sigma
        if span / step > 4e5:
            break
        z = np.arange(-12.0 * sigma, order + 12.0 * sigma, step)
        log_ratio = np.logaddexp(math.log1p(-q), math.log(q) + (2.0 * z - 1.0) / (2.0 * sigma**2))
        log_density = -(z**2) / (2.0 * sigma**2) - math.log(sigma * math.sqrt(2.0 * math.pi))
        moment = float(logsumexp(order * log_ratio + log_density)) + math.log(step)
        divergence[i] = max(moment, 0.0) / (order - 1.0)
    return divergence
