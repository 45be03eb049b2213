"""Dominating pairs: the two distributions that tell neighbouring cohorts apart best, for one step.

A step adds Gaussian noise of `noise_multiplier` to a sum of gradients of norm at most 1, over a Poisson
sample at `sample_rate` q. Given the other patients' sample, s the noise, all that matters is one patient:

- add or remove (Zhu, Dong, Wang 2022, arXiv:2106.08567): P = (1-q) N(0, s^2) + q N(1, s^2), Q = N(0, s^2);
- replace: P = (1-q) N(0, s^2) + q N(1, s^2), Q = (1-q) N(0, s^2) + q N(-1, s^2).

Why the second is exact. Let u and v be the old and the new patient's clipped gradient, of any dimension.
Advanced joint convexity (Balle, Barthe, Gaboardi 2018, arXiv:1807.01647, theorem 2) says, for every order
a' >= 1, that the hockey-stick divergence of the two mixtures is q H_a(N(u) || (1-b) N(0) + b N(v)) with
a = 1 + (a'-1)/q and b = a'/a. It is the mean, under N(u), of the convex function f(x) = max(1 - a x, 0) of
the likelihood ratio x = (1-b) exp(S_0 - var S_0 / 2) + b exp(S_1 - var S_1 / 2): a positive sum of two
log-normals whose exponents S are Gaussian, with variances |u|^2, |u-v|^2 and covariance u.(u-v), over s^2.
Such a mean grows in every entry of that covariance: along a straight line between two covariance matrices
its derivative is half the sum over i, j of (change of entry ij) x E[f''(x) X_i X_j], with X the two terms of
x, both positive. On the unit ball |u|^2 <= 1, |u-v|^2 <= 4 and u.(u-v) <= 2, and |u| = 1, v = -u reaches all
three at once. Orders below 1 follow from H_a(P||Q) = a H_1/a(Q||P) + 1 - a, since mirroring swaps P and Q.
One pair for all orders dominates every composition too, and it is attained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from contracts.privacy import Adjacency

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """The pair (P, Q) of one step; `outcome` t is what the mechanism prints along the patient's gradient."""

    sample_rate: float
    noise_multiplier: float
    replace: bool

    @property
    def symmetric(self) -> bool:
        """Whether (Q, P) is (P, Q) mirrored, so that both directions cost the same."""
        return self.replace or self.sample_rate == 1.0

    @property
    def variance(self) -> float:
        """About the variance of the privacy loss, for choosing a mesh; capped where the noise is small."""
        q, precision = self.sample_rate, min(self.noise_multiplier**-2, 3.0)
        return q**2 * (4.0 * math.sinh(precision) if self.replace else math.expm1(precision))

    def loss(self, t: float) -> float:
        """Return log P(t) / Q(t), which increases in t."""
        q, scale = self.sample_rate, 2.0 * self.noise_multiplier**2
        if q == 1.0:
            return 4.0 * t / scale if self.replace else (2.0 * t - 1.0) / scale
        above = float(np.logaddexp(math.log1p(-q), math.log(q) + (2.0 * t - 1.0) / scale))
        if not self.replace:
            return above
        return above - float(np.logaddexp(math.log1p(-q), math.log(q) - (2.0 * t + 1.0) / scale))

    def outcome(self, loss: Floats) -> Floats:
        """Return the t at which the loss is `loss`; minus infinity below the smallest possible loss."""
        q, sigma = self.sample_rate, self.noise_multiplier
        if q == 1.0:
            return sigma**2 * loss / 2.0 if self.replace else sigma**2 * loss + 0.5
        if not self.replace:
            with np.errstate(divide="ignore", over="ignore"):
                inner = np.log(np.maximum(np.expm1(loss) + q, 0.0) / q)
            return sigma**2 * np.where(loss > 700.0, loss - math.log(q), inner) + 0.5
        # A quadratic equation in exp(t / sigma^2), whose solution is L/2 + asinh((1-q) sinh(L/2) / c).
        log_c = math.log(q) - 0.5 / sigma**2
        half = np.abs(loss) / 2.0
        log_x = math.log1p(-q) - log_c + half  # of 2 (1-q) sinh(L/2) / c, up to the small factor below
        with np.errstate(divide="ignore"):
            log_x = log_x + np.log(-np.expm1(-2.0 * half))
        x = np.exp(np.minimum(log_x, 600.0)) / 2.0
        root = np.where(log_x > 600.0, log_x, np.arcsinh(x))
        return np.asarray(sigma**2 * np.sign(loss) * (half + root))

    def tails(self, t: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Return P(below t), P(above t), Q(below t) and Q(above t), each of full relative accuracy."""
        q, z, shift = self.sample_rate, t / self.noise_multiplier, 1.0 / self.noise_multiplier
        below, above = ndtr(z), ndtr(-z)
        p_below, p_above = q * ndtr(z - shift), q * ndtr(shift - z)
        q_below, q_above = below, above
        if self.replace:
            q_below, q_above = q * ndtr(z + shift), q * ndtr(-z - shift)
        if q < 1.0:
            p_below, p_above = p_below + (1 - q) * below, p_above + (1 - q) * above
            if self.replace:
                q_below, q_above = q_below + (1 - q) * below, q_above + (1 - q) * above
        return p_below, p_above, q_below, q_above

    def range(self, tail: float) -> tuple[float, float]:
        """Return losses that P leaves with probability at most `tail` on each side, and so does Q = N(0)."""
        reach = -float(ndtri(tail)) * self.noise_multiplier
        return self.loss(-reach), self.loss(1.0 + reach)


def pair_of(sample_rate: float, noise_multiplier: float, adjacency: Adjacency) -> Pair:
    """Return the dominating pair of one step."""
    return Pair(sample_rate, noise_multiplier, adjacency == "replace-one")
