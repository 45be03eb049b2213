"""Random-effects meta-analysis of one effect over hospitals, and what to expect at a new hospital.

Ten hospitals or more: tau2 of Paule & Mandel (J Res Natl Bur Stand 87, 1982), which Veroniki et al. (Res
Synth Methods 7, 2016) prefer to DerSimonian-Laird's where hospitals differ in size, and the interval of
Hartung & Knapp (Stat Med 20, 2001) with its scale not below 1 (Roever et al., BMC Med Res Methodol 15,
2015), so that a few hospitals that happen to agree do not feign precision. With Paule-Mandel the scale is 1
whenever tau2 is above 0, so the two belong together. A new hospital: Student's t with hospitals - 2 degrees
of freedom (Higgins et al., JRSS A 172, 2009).

Fewer: tau is hardly estimable. The interval of the mean is useless (t quantile 12.7 for two hospitals), that
for a new hospital useless for three and too short for more (van Leeuwen et al., Stat Med 44, 2025, e70011;
simulated with their heterogeneity, the 95 % interval from seven hospitals holds the next one 91 times of 100,
with the prior 95). A prior for tau is then used, empirical where there is one, else weakly informative
(Friede et al., Res Synth Methods 8, 2017): normal-normal model, flat prior on the mean, half-normal prior on
tau, integrated over tau (Roever, J Stat Softw 93(6), 2020, section 2). Deterministic: no sampling. Without a
prior the wide intervals above stay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtr
from scipy.stats import norm
from scipy.stats import t as student_t

Floats = NDArray[np.float64]
Interval = tuple[float, float]

FEW = 10  # hospitals; below it a prior on tau is used where there is one


@dataclass(frozen=True)
class HalfNormal:
    """A half-normal prior on tau, the standard deviation between hospitals.

    Attributes:
        scale: of the normal distribution that is folded; the mean of tau is 0.80 of it, the median 0.67.
        source: why this scale.
    """

    scale: float
    source: str

    @property
    def text(self) -> str:
        """One line for pages."""
        return f"half-normal of scale {self.scale:g} on tau ({self.source})"


# tau of the AUROC over 469 models of one registry: mean 0.055 on the AUROC's own scale. A half-normal of that
# mean has scale 0.055 / 0.798 = 0.07; on the logit at an AUROC of 0.75, divided by 0.75 x 0.25, it is 0.37.
AUROC_PRIOR = HalfNormal(0.37, "logit AUROC; 469 prediction models, van Leeuwen et al. 2025")
# Two models on the same patients: what hospitals do to both cancels, so a single model's tau is cautious.
DIFFERENCE_PRIOR = HalfNormal(0.07, "AUROC of a single model; 469 prediction models, van Leeuwen et al. 2025")
# Weakly informative, where nobody has counted: Friede et al. recommend 0.5 or 1 for log odds ratios. The
# wider one for rates, which move with the case mix of a hospital; simulated, intervals then cover at least
# as often as they say. A slope whose tau is 0.5 lies anywhere between 0 and 2 at a new hospital, which
# nobody would release.
RATIO_PRIOR = HalfNormal(0.5, "log ratio, weakly informative; Friede et al. 2017")
ODDS_PRIOR = HalfNormal(1.0, "log odds, weakly informative; Friede et al. 2017")
SLOPE_PRIOR = HalfNormal(0.5, "calibration slope, weakly informative")


@dataclass(frozen=True)
class RandomEffects:
    """A random-effects mean on the scale it was computed on: Student's t around it, or a posterior.

    Attributes:
        mean: of the hospitals' true effects; of the posterior where there is a prior.
        standard_error: of the mean; the posterior's standard deviation where there is a prior.
        tau2: variance between hospitals; the square of tau's posterior median where there is a prior.
        i2: share of the variation that is between hospitals, 0..1 (Higgins & Thompson, Stat Med 21, 2002).
        sites: how many hospitals.
        prior: on tau, or None.
    """

    mean: float
    standard_error: float
    tau2: float
    i2: float
    sites: int
    prior: HalfNormal | None = None
    _mixture: tuple[Floats, Floats, Floats, Floats] | None = field(default=None, repr=False, compare=False)

    def quantile(self, probability: float) -> float:
        """Return the point that the mean is below with this confidence (or posterior probability)."""
        if self._mixture is not None:
            weight, _, centre, error = self._mixture
            return _mixture_quantile(probability, weight, centre, error)
        # One hospital: its standard error is taken as known.
        q = norm.ppf(probability) if self.sites == 1 else student_t.ppf(probability, self.sites - 1)
        return self.mean + float(q) * self.standard_error

    def interval(self, level: float = 0.95) -> Interval:
        """Return the two-sided interval of the mean."""
        return self.quantile((1 - level) / 2), self.quantile((1 + level) / 2)

    def new_site(self, level: float = 0.95) -> Interval | None:
        """Return where the true effect of a new hospital lies; None when the data cannot say.

        Without a prior that needs three hospitals at least.
        """
        low, high = (1 - level) / 2, (1 + level) / 2
        if self._mixture is not None:
            weight, tau, centre, error = self._mixture
            spread = np.hypot(tau, error)
            return _mixture_quantile(low, weight, centre, spread), _mixture_quantile(
                high, weight, centre, spread
            )
        if self.sites < 3:
            return None
        half = float(student_t.ppf(high, self.sites - 2)) * math.hypot(
            math.sqrt(self.tau2), self.standard_error
        )
        return self.mean - half, self.mean + half


def random_effects(
    effects: Sequence[float], variances: Sequence[float], prior: HalfNormal | None = None
) -> RandomEffects:
    """Pool effects with known variances.

    Args:
        effects: one per hospital, at least one, on a scale on which they are about normal.
        variances: squared standard errors on the same scale, above 0.
        prior: on tau; used for two hospitals or more, but fewer than `FEW`.
    """
    y, v = np.asarray(effects, dtype=float), np.asarray(variances, dtype=float)
    k = len(y)
    if k == 1:
        return RandomEffects(float(y[0]), math.sqrt(float(v[0])), 0.0, 0.0, 1)
    if prior is not None and k < FEW:
        return _posterior(y, v, prior)
    tau2 = paule_mandel(y, v)
    w = 1 / (v + tau2)
    mean = float(np.sum(w * y) / np.sum(w))
    scale = max(1.0, float(np.sum(w * (y - mean) ** 2)) / (k - 1))
    return RandomEffects(mean, math.sqrt(scale / float(np.sum(w))), tau2, _i2(tau2, v), k)


def paule_mandel(y: Floats, v: Floats) -> float:
    """Return the tau2 at which the generalised Q statistic equals its expectation; 0 where none does.

    Args:
        y: effects [hospitals], at least two.
        v: their variances [hospitals], above 0.
    """
    k = len(y)

    def excess(tau2: float) -> float:
        w = 1 / (v + tau2)
        mean = np.sum(w * y) / np.sum(w)
        return float(np.sum(w * (y - mean) ** 2)) - (k - 1)

    if excess(0.0) <= 0:
        return 0.0
    # Q falls in tau2, and at this one it is at most k - 1: each weight is below 1 / tau2.
    top = float(np.sum((y - y.mean()) ** 2)) / (k - 1)
    return float(brentq(excess, 0.0, top, xtol=1e-14, rtol=1e-12))


def _i2(tau2: float, v: Floats) -> float:
    w = 1 / v
    typical = (len(v) - 1) * float(w.sum()) / (float(w.sum()) ** 2 - float((w**2).sum()))
    return tau2 / (tau2 + typical)


@cache
def _nodes() -> tuple[Floats, Floats]:
    """Gauss-Legendre nodes and weights on (0, 1)."""
    x, w = np.polynomial.legendre.leggauss(400)
    return (x + 1) / 2, w / 2


def _posterior(y: Floats, v: Floats, prior: HalfNormal) -> RandomEffects:
    """Mean and tau under a flat prior on the mean; given tau the mean is normal: one integral."""
    spread = float(np.max(np.abs(y - y.mean())))
    # Far outliers push tau up to about sqrt(scale x spread), where prior and likelihood balance.
    top = 7 * prior.scale + 3 * math.sqrt(prior.scale * spread)
    u, du = _nodes()
    tau = top * u**2  # dense near 0, where precise hospitals make the likelihood narrow
    w = 1 / (v[:, None] + tau**2)
    total = w.sum(axis=0)
    centre = (w * y[:, None]).sum(axis=0) / total
    log = (
        0.5 * np.log(w).sum(axis=0)
        - 0.5 * np.log(total)
        - 0.5 * (w * (y[:, None] - centre) ** 2).sum(axis=0)
        - 0.5 * (tau / prior.scale) ** 2
    )
    weight = np.exp(log - log.max()) * du * u  # d tau = 2 top u du
    weight /= weight.sum()
    error = 1 / np.sqrt(total)
    mean = float(np.sum(weight * centre))
    variance = float(np.sum(weight * (error**2 + (centre - mean) ** 2)))
    median = float(np.interp(0.5, np.cumsum(weight) - weight / 2, tau))
    return RandomEffects(
        mean=mean,
        standard_error=math.sqrt(variance),
        tau2=median**2,
        i2=_i2(median**2, v),
        sites=len(y),
        prior=prior,
        _mixture=(weight, tau, centre, error),
    )


def _mixture_quantile(probability: float, weight: Floats, centre: Floats, error: Floats) -> float:
    def excess(x: float) -> float:
        return float(np.sum(weight * ndtr((x - centre) / error))) - probability

    # A node's own quantile: some node's lies below the mixture's, and some above.
    points = centre + float(norm.ppf(probability)) * error
    low, high = float(points.min()) - 1e-9, float(points.max()) + 1e-9
    return float(brentq(excess, low, high, xtol=1e-12, rtol=1e-12))
