"""The accountant of record: epsilon of everything ever spent on a lineage (design section 5).

The privacy loss of one step of the Poisson-subsampled Gaussian mechanism is a random variable (PRV).
Losses of independent steps add up, so their distributions are convolved by FFT and epsilon is read off
the result: Gopi, Lee, Wutschitz, "Numerical Composition of Differential Privacy", arXiv:2106.02848.

Every approximation errs towards a larger epsilon:

- discretisation: each cell's mass is split between its two ends so that the probability under P and that
  under Q are both kept. This dominates the true pair (Doroshenko et al., "Connect the Dots",
  arXiv:2207.04380), domination survives composition, and the bias is of second order in the mesh;
- truncation: loss above a step's grid counts as certain failure, loss below it is moved up onto it;
- wrap-around of the circular convolution: what may pass the window's upper end is bounded by Chernoff's
  inequality on the discrete losses themselves and added to delta; what passes the lower end reappears at
  the top;
- floating point: a bound on the error of the transforms is added to delta.

Adjacency is add-or-remove-one patient: both directions are composed and the larger epsilon counts.
Measured against dp_accounting's PLD the result is within 0.001. `epsilon` refuses to state a number that an
independent bound, RDP (Mironov, Talwar, Zhang, arXiv:1908.10530), contradicts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len, rfft
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr, ndtri

from contracts.errors import ConsiliumError
from privacy.renyi import epsilon_from_renyi

Floats = NDArray[np.float64]
Direction = Literal["remove", "add"]
Pairs = tuple["Spend", ...]

_SMALLEST_NOISE = 0.05  # below it the loss of one step leaves the range of float64: epsilon is infinite here
_LARGEST_GRID = 2**23
_TAIL = 1e-5  # share of delta that each kind of truncation may cost


@dataclass(frozen=True, order=True)
class Spend:
    """`steps` releases, each a Gaussian of `noise_multiplier` x sensitivity on a Poisson sample of patients.

    Args:
        sample_rate: probability that a patient is in a step's batch, in (0, 1].
        noise_multiplier: standard deviation of the noise over the L2 sensitivity, above 0.
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


def grouped(spends: Iterable[Spend]) -> Pairs:
    """Add up equal pairs and sort them, so that epsilon does not depend on the order of spending.

    Releases without sampling compose exactly into one Gaussian: their 1 / noise_multiplier^2 add up.
    """
    steps: dict[tuple[float, float], int] = {}
    for spend in spends:
        pair = (float(spend.sample_rate), float(spend.noise_multiplier))
        steps[pair] = steps.get(pair, 0) + spend.steps
    precision = math.fsum(n / sigma**2 for (q, sigma), n in sorted(steps.items()) if q == 1.0)
    pairs = [Spend(q, sigma, n) for (q, sigma), n in sorted(steps.items()) if q < 1.0]
    if precision > 0.0:
        pairs.append(Spend(1.0, 1.0 / math.sqrt(precision), 1))
    return tuple(pairs)


def epsilon(spends: Iterable[Spend], delta: float) -> float:
    """Return the composed epsilon at `delta`: the PRV upper estimate, after RDP has confirmed it.

    Raises:
        ConsiliumError: E408, the PRV estimate exceeds the RDP bound or lies absurdly far below it.
    """
    pairs = grouped(spends)
    prv, rdp = _prv(pairs, delta), _rdp(pairs, delta)
    if not prv <= 1.001 * rdp + 1e-3:
        raise ConsiliumError("E408", f"PRV {prv:.4f} exceeds the RDP bound {rdp:.4f} at delta {delta:g}")
    if rdp > 4.0 * prv + 1.0:
        raise ConsiliumError("E408", f"PRV {prv:.4f} is far below the RDP bound {rdp:.4f} at delta {delta:g}")
    return prv


def epsilon_prv(spends: Iterable[Spend], delta: float) -> float:
    """Return the PRV upper estimate of the composed epsilon.

    0.0 when nothing was spent; infinite when none can be stated (noise or delta too small for float64).
    """
    return _prv(grouped(spends), delta)


def epsilon_rdp(spends: Iterable[Spend], delta: float) -> float:
    """Return the RDP upper bound of the composed epsilon (looser than PRV by 10-25 %)."""
    return _rdp(grouped(spends), delta)


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
def _prv(pairs: Pairs, delta: float) -> float:
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta {delta}, expected in (0, 1)")
    if not pairs:
        return 0.0
    if len(pairs) == 1 and pairs[0].sample_rate == 1.0:
        return epsilon_gaussian(pairs[0].noise_multiplier, delta)
    if any(pair.noise_multiplier < _SMALLEST_NOISE for pair in pairs):
        return math.inf
    return max(_compose(pairs, delta, "remove"), _compose(pairs, delta, "add"))


@dataclass(frozen=True)
class _Loss:
    """Discrete privacy loss of one step: mass at (first + i) x mesh, and the mass counted as failure."""

    first: int
    mass: Floats
    failure: float
    steps: int


def _mesh(pairs: Pairs) -> float:
    """Choose the mesh: n steps move the mean by at most n mesh^2 / 8 and the variance by n mesh^2 / 4.

    A mesh costs at most its own width where the loss is bounded and few steps are taken, hence the 0.001.
    """
    steps = sum(pair.steps for pair in pairs)
    variance = sum(
        pair.steps * pair.sample_rate**2 * math.expm1(min(pair.noise_multiplier**-2, 3.0)) for pair in pairs
    )
    return min(1e-3, math.sqrt(8e-5 / steps), 0.01 * math.sqrt(variance / steps))


def _loss_at(t: float, q: float, sigma: float) -> float:
    """log((1-q) + q N(t; 1, sigma^2) / N(t; 0, sigma^2)): the loss of outcome t when a patient is removed."""
    ratio = (2.0 * t - 1.0) / (2.0 * sigma**2)
    return ratio if q == 1.0 else float(np.logaddexp(math.log1p(-q), math.log(q) + ratio))


def _outcome_at(loss: Floats, q: float, sigma: float) -> Floats:
    """The outcome t with `_loss_at(t) == loss`; minus infinity below the smallest possible loss."""
    if q == 1.0:
        return sigma**2 * loss + 0.5
    with np.errstate(divide="ignore", invalid="ignore"):
        inner = np.log(np.maximum(np.expm1(loss) + q, 0.0) / q)
    return sigma**2 * inner + 0.5


def _discretise(pair: Spend, mesh: float, tail: float, direction: Direction) -> _Loss:
    q, sigma = pair.sample_rate, pair.noise_multiplier
    reach = -float(ndtri(tail)) * sigma
    if direction == "remove":
        low, high = _loss_at(-reach, q, sigma), _loss_at(1.0 + reach, q, sigma)
    else:
        low, high = -_loss_at(reach, q, sigma), -_loss_at(-reach, q, sigma)
    first, last = math.floor(low / mesh), math.ceil(high / mesh)
    grid: Floats = mesh * np.arange(first, last + 1, dtype=np.float64)
    # Both tails of both distributions, so that no mass is a difference of two numbers close to one.
    if direction == "remove":
        z = _outcome_at(grid, q, sigma) / sigma
        q_above, q_below = ndtr(-z), ndtr(z)
        p_above = (1 - q) * ndtr(-z) + q * ndtr(1 / sigma - z)
        p_below = (1 - q) * ndtr(z) + q * ndtr(z - 1 / sigma)
    else:
        z = _outcome_at(-grid, q, sigma) / sigma
        p_above, p_below = ndtr(z), ndtr(-z)
        q_above = (1 - q) * ndtr(z) + q * ndtr(z - 1 / sigma)
        q_below = (1 - q) * ndtr(-z) + q * ndtr(1 / sigma - z)
    p = np.where(p_below[1:] < 0.5, np.diff(p_below), -np.diff(p_above))
    other = np.where(q_below[1:] < 0.5, np.diff(q_below), -np.diff(q_above))
    with np.errstate(over="ignore", invalid="ignore"):
        upper = (p - other * np.exp(grid[:-1])) / -math.expm1(-mesh)
    # Rounding can push the split out of [0, p]; where it cannot be computed all mass goes up.
    upper = np.where(np.isfinite(upper), np.clip(upper, 0.0, p), p)
    mass = np.zeros(len(grid))
    mass[1:] += upper
    mass[:-1] += p - upper
    mass[0] += p_below[0]
    return _Loss(first, mass, float(p_above[-1]), pair.steps)


def _window(losses: list[_Loss], mesh: float, tail: float) -> tuple[int, int]:
    """Return grid indices (low, high) that the composed loss leaves with probability at most `tail` each."""
    mean = variance = 0.0
    for loss in losses:
        x = mesh * (loss.first + np.arange(len(loss.mass)))
        centre = float(loss.mass @ x)
        mean += loss.steps * centre
        variance += loss.steps * float(loss.mass @ (x - centre) ** 2)
    start = 0.1 / math.sqrt(variance)
    doublings = 10
    log_moment = np.zeros((2, doublings))
    for loss in losses:
        x = mesh * (loss.first + np.arange(len(loss.mass)))
        for row, sign in enumerate((1.0, -1.0)):
            with np.errstate(over="ignore", invalid="ignore"):
                power = np.exp(sign * start * x)
                for column in range(doublings):
                    moment = float(loss.mass @ power)
                    usable = 0.0 < moment < math.inf
                    log_moment[row, column] += loss.steps * (math.log(moment) if usable else math.inf)
                    power = power * power
    t = start * 2.0 ** np.arange(doublings)
    reach = (log_moment - math.log(tail)) / (t * mesh)
    # Never beyond what the sum of the grids can reach at all.
    least = sum(loss.steps * loss.first for loss in losses)
    most = sum(loss.steps * (loss.first + len(loss.mass) - 1) for loss in losses)
    low = math.floor(max(-float(reach[1].min()), -1e15)) - 1
    high = math.ceil(min(float(reach[0].min()), 1e15)) + 1
    return max(least, low), min(most, high)


def _compose(pairs: Pairs, delta: float, direction: Direction) -> float:
    steps = sum(pair.steps for pair in pairs)
    mesh, tail = _mesh(pairs), _TAIL * delta
    furthest = -float(ndtri(tail / steps))
    reach = max(
        _loss_at(1.0 + furthest * sigma, q, sigma)
        for q, sigma in ((pair.sample_rate, pair.noise_multiplier) for pair in pairs)
    )
    mesh = max(mesh, reach / _LARGEST_GRID)
    losses = [_discretise(pair, mesh, tail / steps, direction) for pair in pairs]
    low, high = _window(losses, mesh, tail)
    size = next_fast_len(high - low + 1, real=True)
    if size > 4 * _LARGEST_GRID:
        return math.inf
    spectrum = np.ones(size // 2 + 1, dtype=np.complex128)
    for loss in losses:
        circle = np.bincount(
            (loss.first + np.arange(len(loss.mass))) % size, weights=loss.mass, minlength=size
        )
        spectrum *= rfft(circle) ** loss.steps
    mass = np.roll(irfft(spectrum, size), -low % size)
    # Error of the forward transforms (amplified by the powers) and of the inverse, in total variation.
    rounding = 4 * np.finfo(np.float64).eps * math.log2(size)
    spectral = math.sqrt(2.0) * float(np.linalg.norm(spectrum))
    numerical = rounding * (steps * spectral + math.sqrt(size) * float(np.linalg.norm(mass)))
    failure = -math.expm1(math.fsum(loss.steps * math.log1p(-loss.failure) for loss in losses))
    y = mesh * (low + np.arange(size))
    return _read_epsilon(y, np.maximum(mass, 0.0), delta - failure - tail - numerical)


def _read_epsilon(loss: Floats, mass: Floats, delta: float) -> float:
    """Solve sum over y > epsilon of mass(y) (1 - e^(epsilon - y)) = delta for epsilon >= 0."""
    if delta <= 0.0:
        return math.inf
    positive = loss > 0.0
    y, p = loss[positive], mass[positive]
    above = np.cumsum(p[::-1])[::-1]  # P(Y >= y_i)
    tilted = np.cumsum((p * np.exp(-y))[::-1])[::-1]
    if len(y) == 0 or above[0] - tilted[0] <= delta:
        return 0.0
    at_grid = above - np.exp(y) * tilted
    i = int(np.argmax(at_grid <= delta))  # the last is 0, so there is one
    return math.log((above[i] - delta) / tilted[i])


def _rdp(pairs: Pairs, delta: float) -> float:
    return epsilon_from_renyi([(p.sample_rate, p.noise_multiplier, p.steps) for p in pairs], delta)
