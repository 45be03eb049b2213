"""The accountant of record: epsilon of everything ever spent on a lineage (design section 5).

The privacy loss of one step of the Poisson-subsampled Gaussian mechanism is a random variable (PRV); losses
of independent steps add up. `privacy/pairs.py` says which distribution it has, for either adjacency, and
`privacy/composition.py` adds them up so that every approximation errs towards a larger epsilon.

Adjacency is add-or-remove-one patient, where both directions are composed and the larger epsilon counts, or
replace-one, where a study declares its cohort sizes public. Measured against dp_accounting's PLD the result
is within 0.001. `epsilon` refuses to state a number that an independent bound, RDP (Mironov, Talwar, Zhang,
arXiv:1908.10530), contradicts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from contracts.errors import ConsiliumError
from contracts.privacy import Adjacency
from privacy.composition import composed_epsilon
from privacy.pairs import pair_of
from privacy.renyi import epsilon_from_renyi

Pairs = tuple["Spend", ...]

_DEFAULT: Adjacency = "add-or-remove-one"
_SMALLEST_NOISE = 0.05  # below it the loss of one step leaves the range of float64: epsilon is infinite here
_SMALLEST_DELTA = 1e-100


@dataclass(frozen=True, order=True)
class Spend:
    """`steps` releases, each a Gaussian of `noise_multiplier` x clip norm on a Poisson sample of patients.

    Args:
        sample_rate: probability that a patient is in a step's batch, in (0, 1].
        noise_multiplier: standard deviation of the noise over the clip norm of one patient, above 0.
        steps: number of releases, at least 1.
    """

    sample_rate: float
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        if not 0.0 < self.sample_rate <= 1.0:
            raise ValueError(f"sample_rate {self.sample_rate}, expected in (0, 1]")
        if not 0.0 < self.noise_multiplier < math.inf:
            raise ValueError(f"noise_multiplier {self.noise_multiplier}, expected above 0 and finite")
        if self.steps < 1:
            raise ValueError(f"steps {self.steps}, expected at least 1")


@dataclass(frozen=True)
class StudyCap:
    """What was approved that one study may spend: epsilon at delta, for neighbours of this kind."""

    epsilon: float
    delta: float
    adjacency: Adjacency


def grouped(spends: Iterable[Spend]) -> Pairs:
    """Add up equal pairs and sort them, so that epsilon does not depend on the order of spending.

    Releases without sampling compose exactly into one Gaussian: their 1 / noise_multiplier^2 add up, under
    either adjacency.
    """
    steps: dict[tuple[float, float], int] = {}
    for spend in spends:
        # Beyond these ends its square leaves the range of float64.
        pair = (float(spend.sample_rate), min(max(float(spend.noise_multiplier), 1e-100), 1e100))
        steps[pair] = steps.get(pair, 0) + spend.steps
    precision = math.fsum(n / sigma**2 for (q, sigma), n in sorted(steps.items()) if q == 1.0)
    pairs = [Spend(q, sigma, n) for (q, sigma), n in sorted(steps.items()) if q < 1.0]
    if precision > 0.0:
        pairs.append(Spend(1.0, 1.0 / math.sqrt(precision), 1))
    return tuple(pairs)


def epsilon(spends: Iterable[Spend], delta: float, adjacency: Adjacency = _DEFAULT) -> float:
    """Return the composed epsilon at `delta`: the PRV upper estimate, after RDP has confirmed it.

    Raises:
        ConsiliumError: E408, the PRV estimate exceeds the RDP bound or lies absurdly far below it.
    """
    pairs = grouped(spends)
    prv, rdp = _prv(pairs, delta, adjacency), _rdp(pairs, delta, adjacency)
    if not prv <= 1.001 * rdp + 1e-3:
        raise ConsiliumError("E408", f"PRV {prv:.4f} exceeds the RDP bound {rdp:.4f} at delta {delta:g}")
    if rdp > 4.0 * prv + 2.0:
        raise ConsiliumError("E408", f"PRV {prv:.4f} is far below the RDP bound {rdp:.4f} at delta {delta:g}")
    return prv


def epsilon_prv(spends: Iterable[Spend], delta: float, adjacency: Adjacency = _DEFAULT) -> float:
    """Return the PRV upper estimate of the composed epsilon.

    0.0 when nothing was spent; infinite when none can be stated (noise or delta too small for float64).
    """
    return _prv(grouped(spends), delta, adjacency)


def epsilon_rdp(spends: Iterable[Spend], delta: float, adjacency: Adjacency = _DEFAULT) -> float:
    """Return the RDP upper bound of the composed epsilon (looser than PRV by 10-25 %)."""
    return _rdp(grouped(spends), delta, adjacency)


def epsilon_without_amplification(
    spends: Iterable[Spend], delta: float, adjacency: Adjacency = _DEFAULT
) -> float:
    """Return the exact epsilon against someone who knows who was in every batch: the same noise at rate 1."""
    return epsilon((Spend(1.0, spend.noise_multiplier, spend.steps) for spend in spends), delta, adjacency)


def epsilon_gaussian(noise_multiplier: float, delta: float) -> float:
    """Return the exact epsilon of one Gaussian release (Balle & Wang 2018, arXiv:1805.06530, theorem 8)."""

    def excess(value: float) -> float:
        first = ndtr(0.5 / noise_multiplier - value * noise_multiplier)
        second = math.exp(min(value + log_ndtr(-0.5 / noise_multiplier - value * noise_multiplier), 0.0))
        return float(first - second) - delta

    if excess(0.0) <= 0.0:
        return 0.0
    high = 1.0
    while excess(high) > 0.0:
        high *= 2.0
    return float(brentq(excess, 0.0, high, xtol=1e-13, rtol=1e-14)) + 1e-12


@lru_cache(maxsize=4096)
def _prv(pairs: Pairs, delta: float, adjacency: Adjacency) -> float:
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta {delta}, expected in (0, 1)")
    if not pairs:
        return 0.0
    if len(pairs) == 1 and pairs[0].sample_rate == 1.0:
        # One patient replaced moves the sum by up to two clip norms.
        distance = 2.0 if adjacency == "replace-one" else 1.0
        return epsilon_gaussian(pairs[0].noise_multiplier / distance, delta)
    if delta < _SMALLEST_DELTA or any(pair.noise_multiplier < _SMALLEST_NOISE for pair in pairs):
        return math.inf
    steps = [(pair_of(p.sample_rate, p.noise_multiplier, adjacency), p.steps) for p in pairs]
    return composed_epsilon(steps, delta)


def _rdp(pairs: Pairs, delta: float, adjacency: Adjacency) -> float:
    triples = [(p.sample_rate, p.noise_multiplier, p.steps) for p in pairs]
    return epsilon_from_renyi(triples, delta, replace=adjacency == "replace-one")
