"""Hospital-level privacy at a trusted coordinator: DP-FedAvg (McMahan et al. 2018, arXiv:1710.06963).

The unit is a hospital. Its update (all tensors as one vector) is clipped to L2 norm C, and a round gives out

    ( sum over k of w_k clip(update_k, C) + noise ) / W

with public weights w_k and W their sum over the roster of the plan. W is never the weight of those who
answered: then a hospital that is added or removed changes the sum by one vector of norm at most w_k C and
nothing else, so that the quotient has sensitivity max_k(w_k) C / W, and each coordinate gets Gaussian noise
of standard deviation noise_multiplier x max_k(w_k) C / W.

Adaptive clipping is algorithm 1 of Andrew et al. 2021 (arXiv:1905.03871): C follows a quantile of the norms,
known by a noised count of those within C. A hospital adds 1/2 or -1/2 to the count, or 0 when it is absent,
so the count's sensitivity is 1/2. Mean and count together are one Gaussian of the planned noise multiplier
(`privacy.quantile`).

What the coordinator's optimiser makes of it is post-processing and spends nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from contracts.privacy import HospitalPrivacy
from privacy.quantile import followed, split_noise
from privacy.stream import NoiseStream

Floats = NDArray[np.float64]

_BLOCK = 1 << 17  # values read at once; the bytes of the noise depend on it, so it never changes


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


def sensitivity(weights: Mapping[str, float], clip: float) -> float:
    """Return the L2 distance by which one hospital can move the weighted mean: max_k(w_k) C / W.

    Args:
        weights: of every hospital on the roster, public.
    """
    return max(weights.values()) * clip / math.fsum(weights.values())


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
    """Return the L2 norm over all tensors of an update, in float64.

    Summed pairwise by numpy and not by a BLAS, whose result depends on the number of threads: a replay must
    find the same norm, since updates are scaled by it.
    """
    square = 0.0
    for name, shape in shapes.items():
        for span in _spans(math.prod(shape)):
            square += float(np.square(tensors.read(name, span), dtype=np.float64).sum())
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


def _spans(size: int) -> Iterator[slice]:
    for start in range(0, size, _BLOCK):
        yield slice(start, min(start + _BLOCK, size))
