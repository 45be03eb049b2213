"""Hospital-level privacy at a trusted coordinator: DP-FedAvg (McMahan et al. 2018, arXiv:1710.06963).

The unit is a hospital. Its update (all tensors as one vector) is clipped to L2 norm C, and a round gives out

    ( sum over k of w_k clip(update_k, C) + noise ) / W

with public weights w_k and W their sum over the roster of the plan. W is never the weight of those who
answered: then a hospital that is added or removed changes the sum by one vector of norm at most w_k C and
nothing else, so that the quotient has sensitivity max_k(w_k) C / W, and each coordinate gets Gaussian noise
of standard deviation noise_multiplier x max_k(w_k) C / W.

Adaptive clipping is algorithm 1 of Andrew et al. 2021 (arXiv:1905.03871): C follows a quantile of the norms,
known by a noised count of those within C. A hospital adds 1/2 or -1/2 to the count, or 0 when it is absent,
so the count's sensitivity is 1/2. Mean and count together are one Gaussian of the planned noise multiplier s.
Proof: divide each coordinate by the standard deviation of its noise. With z the noise multiplier of the mean
and b the standard deviation of the count, a hospital moves the scaled vector by at most 1/z in the mean's
coordinates and 1/(2 b) in the count's, by (z^-2 + (2 b)^-2)^(1/2) in all. `split_noise` takes
z = s / sqrt(1 - share) and b = s / (2 sqrt(share)); then z^-2 + (2 b)^-2 = (1 - share + share) s^-2 = s^-2.

What the coordinator's optimiser makes of it is post-processing and spends nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from contracts.errors import ConsiliumError
from contracts.study import HospitalPrivacy, Quantile, StudyProtocol
from privacy.accountant import Spend, epsilon, epsilon_prv
from privacy.calibration import StudyNoise, _smallest
from privacy.stream import NoiseStream

Floats = NDArray[np.float64]

_BLOCK = 1 << 17  # values read at once; the bytes of the noise depend on it, so it never changes
_LEAST_CLIP = 1e-6  # of max_update_norm: so low that a wandering C gets no lower


class Reader(Protocol):
    """Reads an update piece by piece (`strategies.interface.UpdateReader`)."""

    def read(self, name: str, span: slice) -> NDArray[np.float32]:
        """Read a range of the flattened tensor as float32."""


class Update(Protocol):
    """One hospital's update (`strategies.interface.Admitted`)."""

    @property
    def site(self) -> str:
        """Whose it is."""

    @property
    def tensors(self) -> Reader:
        """Its content."""


@dataclass(frozen=True)
class Combination:
    """What a round gives out: the noised mean (float32 by name), and the clip norm of the next round."""

    mean: dict[str, NDArray[np.float32]]
    clip: float


def hospital_noise(protocol: StudyProtocol) -> StudyNoise:
    """Return the noise of a study with hospital-level privacy: one release at rate 1 in every round.

    Raises:
        ConsiliumError: E409, no noise level within reach meets the target, or the study is of another mode.
    """
    privacy, rounds = protocol.privacy, protocol.rounds
    if not isinstance(privacy, HospitalPrivacy):
        raise ConsiliumError("E409", f"privacy mode {privacy.mode!r} of {protocol.study!r}, expected site")
    sigma = _smallest(
        lambda sigma: epsilon_prv([Spend(1.0, sigma, rounds)], privacy.delta),
        privacy.epsilon,
        f"{rounds} rounds of all hospitals",
    )
    return StudyNoise(None, sigma, epsilon([Spend(1.0, sigma, rounds)], privacy.delta))


def round_spend(noise_multiplier: float) -> Spend:
    """Return what one round costs every hospital: all take part, so nothing is won by sampling."""
    return Spend(1.0, noise_multiplier, 1)


def sensitivity(weights: Mapping[str, float], clip: float) -> float:
    """Return the L2 distance by which one hospital can move the weighted mean: max_k(w_k) C / W.

    Args:
        weights: of every hospital on the roster, public.
    """
    return max(weights.values()) * clip / math.fsum(weights.values())


def split_noise(noise_multiplier: float, share: float) -> tuple[float, float]:
    """Return noise multiplier of the mean and standard deviation of the count of adaptive clipping.

    Together they cost what one Gaussian of `noise_multiplier` costs (see above).
    """
    return noise_multiplier / math.sqrt(1.0 - share), noise_multiplier / (2.0 * math.sqrt(share))


def combine(
    updates: Sequence[Update],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    weights: Mapping[str, float],
    clip: float,
    noise_multiplier: float,
    privacy: HospitalPrivacy,
    stream: Callable[[str], NoiseStream],
) -> Combination:
    """Clip, add up and noise one round's updates; memory is one model plus one block.

    Args:
        updates: at most one of a hospital, all finite.
        shapes: of an update's tensors.
        weights: of every hospital on the roster, whether or not it answered.
        clip: norm C of this round.
        noise_multiplier: of the plan.
        stream: from a purpose (`aggregate`, `count`) to its stream; each is asked for once.
    """
    norms = [update_norm(update.tensors, shapes) for update in updates]
    of_mean, next_clip = noise_multiplier, clip
    if privacy.clipping == "adaptive":
        of_mean, of_count = split_noise(noise_multiplier, privacy.quantile.share)
        within = noisy_share_within(norms, clip, len(weights), of_count, stream("count"))
        next_clip = followed(clip, within, privacy.quantile, privacy.max_update_norm)
    factors = [weights[u.site] * clip_factor(n, clip) for u, n in zip(updates, norms, strict=True)]
    total, std = math.fsum(weights.values()), of_mean * sensitivity(weights, clip)
    noise = stream("aggregate")
    mean = {}
    for name in sorted(shapes):
        flat = np.empty(math.prod(shapes[name]), dtype=np.float32)
        for span in _spans(flat.size):
            block = np.zeros(span.stop - span.start, dtype=np.float64)
            for update, factor in zip(updates, factors, strict=True):
                block += np.multiply(update.tensors.read(name, span), factor, dtype=np.float64)
            flat[span] = block / total + std * noise.normal(len(block))
        mean[name] = flat.reshape(shapes[name])
    return Combination(mean, next_clip)


def update_norm(tensors: Reader, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """Return the L2 norm over all tensors of an update, in float64."""
    square = 0.0
    for name, shape in shapes.items():
        for span in _spans(math.prod(shape)):
            block = tensors.read(name, span).astype(np.float64)
            square += float(np.dot(block, block))
    return math.sqrt(square)


def clip_factor(norm: float, clip: float) -> float:
    """Return what an update of this norm is multiplied by: at most 1, so that it is no longer than `clip`."""
    return clip / max(norm, clip)


def noisy_share_within(
    norms: Sequence[float], clip: float, hospitals: int, std: float, stream: NoiseStream
) -> float:
    """Return the noised share of hospitals whose norm is at most `clip`; outside [0, 1] by noise alone.

    Args:
        hospitals: number on the roster, public; one that is absent counts as half within.
        std: standard deviation of the noise on the count.
    """
    count = sum(0.5 if norm <= clip else -0.5 for norm in norms)
    return (count + std * float(stream.normal(1)[0])) / hospitals + 0.5


def followed(clip: float, within: float, quantile: Quantile, ceiling: float) -> float:
    """Return the next clip norm: C exp(-learning_rate (within - target)), at most `ceiling`."""
    step = -quantile.learning_rate * (within - quantile.target)
    return min(max(clip * math.exp(min(max(step, -50.0), 50.0)), _LEAST_CLIP * ceiling), ceiling)


def _spans(size: int) -> Iterator[slice]:
    for start in range(0, size, _BLOCK):
        yield slice(start, min(start + _BLOCK, size))
