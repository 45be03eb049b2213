"""Composing privacy losses: the distribution of a sum of independent losses by FFT, and epsilon read off it.

Gopi, Lee, Wutschitz, "Numerical Composition of Differential Privacy", arXiv:2106.02848, with the exponential
tilt that Koskela and Honkela (arXiv:2102.12412) discuss: the transform's error is relative to the tail that
decides epsilon, not to 1, so that a delta of 1e-12 or a million steps lose no digits.

Every approximation errs towards a larger epsilon:

- discretisation: each cell's mass is split between its two ends so that the probability under P and that
  under Q are both kept. This dominates the true pair (Doroshenko et al., "Connect the Dots",
  arXiv:2207.04380), domination survives composition, and the bias is of second order in the mesh;
- truncation: loss above a step's grid counts as certain failure, loss below it is moved up onto it;
- wrap-around of the circular convolution: what may pass the window's upper end is bounded by Chernoff's
  inequality on the discrete losses themselves and added to delta; what passes the lower end reappears at
  the top;
- floating point: a bound on the error of the transforms is added to delta.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len, rfft
from scipy.special import ndtri

from privacy.pairs import Floats, Pair

Complex = NDArray[np.complex128]

_LARGEST_GRID = 2**21
_LARGEST_WINDOW = 2**22
_TAIL = 1e-5  # share of delta that each kind of truncation may cost
_SHARE = 1e-8  # of the tilted mass, that the circle may fold over at each end


@dataclass(frozen=True)
class Loss:
    """Discrete privacy loss of one step: mass at (first + i) x mesh, and the mass counted as failure."""

    first: int
    mass: Floats
    failure: float
    steps: int


def composed_epsilon(steps: Sequence[tuple[Pair, int]], delta: float) -> float:
    """Return the upper estimate of epsilon at `delta` of all steps together; infinite when there is none.

    Args:
        steps: each pair with how many steps it was used for; at least one.
    """
    count = sum(n for _, n in steps)
    mesh, tail = mesh_of(steps), _TAIL * delta
    furthest = -float(ndtri(tail / count))
    reach = max(pair.loss(1.0 + furthest * pair.noise_multiplier) for pair, _ in steps)
    mesh = max(mesh, reach / _LARGEST_GRID)
    for _ in range(4):
        remove, add = zip(*(discretised(pair, n, mesh, tail / count) for pair, n in steps), strict=True)
        directions = [remove] if all(pair.symmetric for pair, _ in steps) else [remove, add]
        windows = [_window(losses, mesh, delta, tail) for losses in directions]
        widest = max(window.high - window.low for window in windows)
        if widest < _LARGEST_WINDOW:
            return max(map(_epsilon, directions, windows, [mesh] * 2, [delta] * 2))
        mesh *= 1.1 * widest / _LARGEST_WINDOW  # a coarser mesh is still an upper estimate
    return math.inf


def mesh_of(steps: Sequence[tuple[Pair, int]]) -> float:
    """Choose the mesh: n steps move the mean by at most n mesh^2 / 8 and the variance by n mesh^2 / 4.

    A mesh costs at most its own width where the loss is bounded and few steps are taken, hence the 0.001.
    Where the whole loss is below a thousandth the mesh need not follow it down.
    """
    count = sum(n for _, n in steps)
    variance = sum(n * pair.variance for pair, n in steps)
    own = max(1e-2 * math.sqrt(variance / count), 1e-4 / math.sqrt(count))
    return min(1e-3, math.sqrt(8e-5 * max(1.0, variance) / count), own)


def discretised(pair: Pair, steps: int, mesh: float, tail: float) -> tuple[Loss, Loss]:
    """Return the discrete loss of one step in both directions: of P against Q, and of Q against P.

    Args:
        tail: probability under P, and under Q, that may lie beyond each end of the grid.
    """
    low, high = pair.range(tail)
    first, last = math.floor(low / mesh), math.ceil(high / mesh)
    grid: Floats = mesh * np.arange(first, last + 1, dtype=np.float64)
    # Both tails of both distributions, so that no mass is a difference of two numbers close to one.
    p_below, p_above, q_below, q_above = pair.tails(pair.outcome(grid))
    p = np.maximum(np.where(p_below[1:] < 0.5, np.diff(p_below), -np.diff(p_above)), 0.0)
    q = np.maximum(np.where(q_below[1:] < 0.5, np.diff(q_below), -np.diff(q_above)), 0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        p_up = (p - q * np.exp(grid[:-1])) / -math.expm1(-mesh)
        q_up = (q - p * np.exp(-grid[1:])) / -math.expm1(-mesh)
    remove = _split(p, p_up)
    remove[0] += p_below[0]
    add = _split(q[::-1], q_up[::-1])
    add[0] += q_above[-1]
    return Loss(first, remove, float(p_above[-1]), steps), Loss(-last, add, float(q_below[0]), steps)


def _split(mass: Floats, up: Floats) -> Floats:
    """Give each cell's share `up` to its upper end and the rest to its lower end."""
    # Rounding can push the split out of [0, mass]; where it cannot be computed all mass goes up.
    up = np.where(np.isfinite(up), np.clip(up, 0.0, mass), mass)
    ends = np.zeros(len(mass) + 1)
    ends[1:] += up
    ends[:-1] += mass - up
    return ends


@dataclass(frozen=True)
class _Window:
    """Grid indices that the composed loss is computed on, and the tilt it is computed under."""

    low: int
    high: int
    tilt: float


def _window(losses: Sequence[Loss], mesh: float, delta: float, tail: float) -> _Window:
    """Choose the window: the loss passes `high` with probability at most `tail`, by Chernoff's inequality.

    The tilt is the order at which Chernoff's bound of delta gives the least epsilon. Of the tilted mass a
    share of 1e-8 at most lies beyond each end.
    """
    variance = 0.0
    for loss in losses:
        x = mesh * (loss.first + np.arange(len(loss.mass)))
        variance += loss.steps * float(loss.mass @ (x - float(loss.mass @ x)) ** 2)
    deviation = max(math.sqrt(variance), 1e-6 * mesh)
    start, end = min(0.1 / deviation, 0.05), min(200.0 / deviation, 1.0 / mesh)
    t, upper, lower = _doubled_orders(losses, mesh, start, end)
    near = t[int(np.argmin((upper - math.log(delta)) / t))]
    fine, fine_upper = _orders_around(losses, mesh, float(near))
    at = int(np.argmin(((fine_upper - math.log(delta)) / fine)[:-1]))
    tilt, scale = float(fine[at]), float(fine_upper[at])
    t, upper = np.concatenate([fine, t]), np.concatenate([fine_upper, upper])
    reach = float(((upper - math.log(tail)) / t).min())
    # P_tilted(Y >= high) <= E exp((tilt + s) Y) exp(-s high) / E exp(tilt Y), for s > 0; and so for low.
    more = t > 1.001 * tilt
    beyond = (upper[more] - scale - math.log(_SHARE)) / (t[more] - tilt)
    reach = max(reach, float(beyond.min()))
    orders = np.concatenate([-t[-len(lower) :], [0.0], t[t < 0.999 * tilt]])
    moments = np.concatenate([lower, [0.0], upper[t < 0.999 * tilt]])
    below = float(((math.log(_SHARE) + scale - moments) / (tilt - orders)).max())
    # Never beyond what the sum of the grids can reach at all.
    least = sum(loss.steps * loss.first for loss in losses)
    most = sum(loss.steps * (loss.first + len(loss.mass) - 1) for loss in losses)
    low = math.floor(max(below / mesh, -1e15)) - 1
    high = math.ceil(min(reach / mesh, 1e15)) + 1
    low = min(max(least, low), most)
    return _Window(low, max(min(most, high), low), tilt)


def _doubled_orders(
    losses: Sequence[Loss], mesh: float, start: float, end: float
) -> tuple[Floats, Floats, Floats]:
    """Return orders t from `start`, each twice the last, with log E exp(t Y) and log E exp(-t Y).

    Y is the sum of all losses.
    """
    t = np.float64(start) * 2.0 ** np.arange(max(math.ceil(math.log2(end / start)), 1) + 1, dtype=np.float64)
    upper, lower = np.zeros(len(t)), np.zeros(len(t))
    for loss in losses:
        last = loss.first + len(loss.mass) - 1
        power = np.exp(-t[0] * mesh * np.arange(len(loss.mass)))
        for i in range(len(t)):
            upper[i] += loss.steps * (t[i] * mesh * last + _log(loss.mass[::-1] @ power))
            lower[i] += loss.steps * (-t[i] * mesh * loss.first + _log(loss.mass @ power))
            np.multiply(power, power, out=power)
    return t, upper, lower


def _orders_around(losses: Sequence[Loss], mesh: float, near: float) -> tuple[Floats, Floats]:
    """Return evenly spaced orders t from half of `near` to twice it, with log E exp(t Y)."""
    t = near / 16.0 * np.arange(8.0, 33.0, dtype=np.float64)
    upper = np.zeros(len(t))
    for loss in losses:
        last = loss.first + len(loss.mass) - 1
        x = mesh * np.arange(len(loss.mass))
        power, factor = np.exp(-t[0] * x), np.exp(-near / 16.0 * x)
        for i in range(len(t)):
            upper[i] += loss.steps * (t[i] * mesh * last + _log(loss.mass[::-1] @ power))
            np.multiply(power, factor, out=power)
    return t, upper


def _log(moment: float) -> float:
    return math.log(moment) if moment > 0.0 else math.inf


def _epsilon(losses: Sequence[Loss], window: _Window, mesh: float, delta: float) -> float:
    """Return epsilon of one direction; a window that begins above it is widened until it holds it."""
    tail = _TAIL * delta
    failure = -math.expm1(math.fsum(loss.steps * math.log1p(-loss.failure) for loss in losses))
    low, tilt = window.low, window.tilt
    while True:
        found = _compose(losses, _Window(low, window.high, tilt), mesh).epsilon(delta - failure - tail)
        if low <= 0 or found > mesh * low or window.high - low >= _LARGEST_WINDOW:
            return found
        low, tilt = max(0, 2 * low - window.high - 1), tilt / 2.0


def _compose(losses: Sequence[Loss], window: _Window, mesh: float) -> _Composed:
    size = next_fast_len(window.high - window.low + 1, real=True)
    spectrum, log_scale = _spectrum(losses, mesh, window.tilt, size)
    tilted = np.roll(irfft(spectrum, size), -window.low % size)
    # Error of the forward transforms (amplified by the powers) and of the inverse, in total variation.
    rounding = 4 * np.finfo(np.float64).eps * math.log2(size)
    count = sum(loss.steps for loss in losses)
    spectral = math.sqrt(2.0) * float(np.linalg.norm(spectrum))
    numerical = rounding * (count * spectral + math.sqrt(size) * float(np.linalg.norm(tilted)))
    return _Composed(window.low, mesh, np.maximum(tilted, 0.0), window.tilt, log_scale, numerical)


def _spectrum(losses: Sequence[Loss], mesh: float, tilt: float, size: int) -> tuple[Complex, float]:
    """Return the transform of the composed tilted mass, which sums to 1, and the log of its scale."""
    log_scale = 0.0
    spectrum = np.ones(size // 2 + 1, dtype=np.complex128)
    for loss in losses:
        top = loss.first + len(loss.mass) - 1
        mass = loss.mass * np.exp(tilt * mesh * np.arange(1 - len(loss.mass), 1))
        total = float(mass.sum())
        log_scale += loss.steps * (math.log(total) + tilt * mesh * top)
        factor: Complex = rfft(_wrapped(mass / total, loss.first, size))
        left = loss.steps
        while True:  # numpy's own power of complex numbers takes logarithms
            if left & 1:
                np.multiply(spectrum, factor, out=spectrum)
            left >>= 1
            if not left:
                break
            np.multiply(factor, factor, out=factor)
    return spectrum, log_scale


def _wrapped(mass: Floats, first: int, size: int) -> Floats:
    """Lay mass at first, first + 1, ... on a circle of `size` places."""
    lead = first % size
    padded = np.zeros(-(-(lead + len(mass)) // size) * size)
    padded[lead : lead + len(mass)] = mass
    return np.asarray(padded.reshape(-1, size).sum(axis=0))


@dataclass(frozen=True)
class _Composed:
    """The composed loss: mass tilted[i] exp(log_scale - tilt y) at y = (low + i) x mesh.

    `numerical` bounds the total error of `tilted`, so that it costs delta at y at most
    numerical x exp(log_scale - tilt y).
    """

    low: int
    mesh: float
    tilted: Floats
    tilt: float
    log_scale: float
    numerical: float

    def epsilon(self, budget: float) -> float:
        """Solve sum over y > epsilon of mass(y) (1 - e^(epsilon - y)) = budget for the least epsilon >= 0."""
        if budget <= 0.0:
            return math.inf
        distance = self.mesh * np.arange(len(self.tilted))
        decay = np.exp(-self.tilt * distance)
        kernel = decay * -np.expm1(-distance)

        def allowed(i: int) -> float:
            """The budget in units of exp(log_scale - tilt y_i)."""
            log_unit = self.log_scale - self.tilt * self.mesh * (self.low + i)
            return math.exp(min(math.log(budget) - log_unit, 700.0))

        def enough(i: int) -> bool:
            lost = float(self.tilted[i:] @ kernel[: len(kernel) - i])
            return lost + self.numerical <= allowed(i)

        few, many = max(-self.low, 0), len(self.tilted) - 1
        if few > many or enough(few):
            return self.mesh * max(self.low, 0)
        if not enough(many):
            return math.inf
        while many - few > 1:
            middle = (few + many) // 2
            few, many = (few, middle) if enough(middle) else (middle, many)
        y = self.mesh * (self.low + many)
        rest, weights = self.tilted[many:], decay[: len(decay) - many]
        left = allowed(many) - self.numerical * math.exp(self.tilt * self.mesh)
        inner = float(rest @ weights) - left
        if left <= 0.0 or inner <= 0.0:
            return y
        found = y + math.log(inner / float(rest @ (weights * np.exp(-distance[: len(weights)]))))
        return min(max(found, y - self.mesh), y)
