"""Renyi differential privacy: the independent upper bound that confirms the accountant's epsilon.

Mironov, Talwar, Zhang, "Renyi Differential Privacy of the Sampled Gaussian Mechanism", arXiv:1908.10530.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_ORDERS = np.concatenate(
    [
        np.arange(1.1, 3.0, 0.1),
        np.arange(3.0, 12.0, 0.25),
        np.arange(12.0, 64.0, 2.0),
        2.0 ** np.arange(6, 11.01, 0.25),
    ]
)


def epsilon_from_renyi(
    triples: Iterable[tuple[float, float, int]], delta: float, *, replace: bool = False
) -> float:
    """Return the best upper bound of epsilon over a set of fractional orders; 0.0 for nothing spent.

    Args:
        triples: sample rate, noise multiplier and steps of each pair.
        replace: neighbours differ by one patient replaced, not added or removed.
    """
    total, spent = np.zeros(len(_ORDERS)), False
    for q, sigma, steps in triples:
        total, spent = total + steps * _renyi(q, sigma, replace), True
    if not spent:
        return 0.0
    # Canonne, Kamath, Steinke 2020 (arXiv:2004.00010), proposition 12.
    bound = total + np.log1p(-1.0 / _ORDERS) - (math.log(delta) + np.log(_ORDERS)) / (_ORDERS - 1.0)
    return max(0.0, float(np.min(bound)))


@lru_cache(maxsize=4096)
def _renyi(q: float, sigma: float, replace: bool) -> Floats:
    """Renyi divergence of one step at `_ORDERS`: log E_Q[(P/Q)^a] / (a-1).

    P = (1-q) N(0) + q N(1) against Q = N(0) when a patient is removed (Mironov et al. 2019, section 3: the
    dearer direction), against Q = (1-q) N(0) + q N(-1) when one is replaced (proof in `privacy/pairs.py`).
    The expectation is taken by the trapezoidal rule, which is spectrally accurate for these integrands; it
    shares no code with the PRV, so that the two check each other. Orders too large for a small sigma are
    left out (infinite).
    """
    if q == 1.0:
        return np.asarray(_ORDERS * (4.0 if replace else 1.0) / (2.0 * sigma**2))
    divergence = np.full(len(_ORDERS), math.inf)
    step = min(sigma / 12.0, sigma**2 / 4.0)
    margin = 12.0 * sigma
    start = -margin - (1.0 if replace else 0.0)
    # The integrand of order a peaks at 2 a - 1 at most when a patient is replaced, at a otherwise.
    ends = np.ceil(((2.0 if replace else 1.0) * _ORDERS + margin - start) / step)
    usable = ends <= 4e5
    if not usable.any():
        return divergence
    z = start + step * np.arange(int(ends[usable].max()))
    log_p = np.logaddexp(math.log1p(-q), math.log(q) + (2.0 * z - 1.0) / (2.0 * sigma**2))
    log_q = -(z**2) / (2.0 * sigma**2) - math.log(sigma * math.sqrt(2.0 * math.pi))
    log_ratio = log_p
    if replace:
        log_mirrored = np.logaddexp(math.log1p(-q), math.log(q) - (2.0 * z + 1.0) / (2.0 * sigma**2))
        log_ratio, log_q = log_p - log_mirrored, log_q + log_mirrored
    for i in np.flatnonzero(usable):
        order, end = float(_ORDERS[i]), int(ends[i])
        exponent = order * log_ratio[:end] + log_q[:end]
        top = float(exponent.max())
        moment = top + math.log(float(np.exp(exponent - top).sum()) * step)
        divergence[i] = max(moment, 0.0) / (order - 1.0)
    return divergence
