"""The only source of randomness for sampling and noise: a ChaCha20 key stream (design section 5).

torch's, numpy's and Opacus's default generators are inherited over a worker's fork and draw the same batch
and bit-identical noise in two tasks; none of them is used here. A stream is keyed by HKDF-SHA256 (RFC 5869)
of the site's noise key and of what it is for, so that the same work repeats the same draws and no other
work does.

Floating point: the set of float64 values that one Gaussian draw can take has gaps, which can betray the
number it was added to (Mironov 2012). As Opacus does in its secure mode, each normal here is the scaled sum
of 2n = 4 independent draws (Holohan & Braghin 2021, arXiv:2107.10138, section 5.1), which makes inverting
it cost 2^159.

Single draws are made by Marsaglia's polar method (Marsaglia & Bray 1964): a logarithm and a square root for
two of them, three times as fast here as inverting the distribution function.
"""

from __future__ import annotations

import math

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from contracts.canonical import canonical_json
from contracts.errors import ConsiliumError

SCHEME = "consilium/noise/2"

_KEY_BYTES = 32
_STREAM_BYTES = 2**38  # 2^32 blocks of 64 bytes: then ChaCha20's block counter would start again
_DRAWS = 4
_CHUNK = 2**13  # normals at a time: what they are made of stays in a core's cache
_ACCEPTED = math.pi / 4  # share of points in a square that lie in its circle


class NoiseStream:
    """A sequence of draws, the same for the same key. State: the position in the key stream."""

    def __init__(self, key: bytes) -> None:
        # The nonce may be fixed, since no key is used for two purposes.
        self._cipher = Cipher(algorithms.ChaCha20(key, b"\0" * 16), mode=None).encryptor()
        self._left = _STREAM_BYTES

    def uniform(self, n: int) -> NDArray[np.uint64]:
        """Return `n` independent integers, uniform over 0 .. 2^64 - 1.

        Raises:
            ConsiliumError: E899, the stream is exhausted (256 GiB).
        """
        self._left -= 8 * n
        if self._left < 0:
            raise ConsiliumError("E899", "the noise stream of this plan is exhausted")
        return np.frombuffer(self._cipher.update(bytes(8 * n)), dtype="<u8")

    def bernoulli(self, n: int, rate: float) -> NDArray[np.bool_]:
        """Return bool [n], each True with probability `rate` (exact to 2^-64, never above it)."""
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"rate {rate}, expected in [0, 1]")
        draws = self.uniform(n)
        threshold = int(math.ldexp(rate, 64))
        if threshold == 2**64:
            return np.ones(n, dtype=bool)
        return np.asarray(draws < np.uint64(threshold))

    def normal(self, shape: int | tuple[int, ...]) -> NDArray[np.float64]:
        """Return float64 `shape` of independent standard normal draws, each the sum of four (see above)."""
        size = int(np.prod(shape))
        result = np.empty(size)
        for start in range(0, size, _CHUNK):
            part = result[start : start + _CHUNK]
            np.sum(self._single(_DRAWS * len(part)).reshape(_DRAWS, -1), axis=0, out=part)
            part *= 1.0 / math.sqrt(_DRAWS)
        return result.reshape(shape)

    def _single(self, n: int) -> NDArray[np.float64]:
        """Return float64 [n], n even: single normal draws by the polar method.

        A point that is uniform in the unit circle, s its squared distance from the middle, gives two: each
        coordinate times sqrt(-2 log(s) / s). What is left over of the points drawn is not used.
        """
        need = n // 2
        points = [np.empty((2, 0))]
        while (missing := need - sum(p.shape[1] for p in points)) > 0:
            trials = math.ceil(missing / _ACCEPTED * 1.02) + 16
            square = self.uniform(2 * trials).view("<i8").astype(np.float64).reshape(2, trials)
            square *= 2.0**-63
            s = square[0] ** 2
            s += square[1] ** 2
            inside = np.flatnonzero((s < 1.0) & (s > 0.0))[:missing]
            s = s.take(inside)
            factor = np.log(s)
            factor *= -2.0
            factor /= s
            np.sqrt(factor, out=factor)
            points.append(square.take(inside, axis=1) * factor)
        return (points[1] if len(points) == 2 else np.hstack(points)).reshape(-1)


def derive_stream(
    noise_key: bytes, *, plan: str, cohort: str, code_version: str, purpose: str
) -> NoiseStream:
    """Derive the stream of one purpose of one plan.

    Args:
        noise_key: 32 bytes from the operating system, made at enrolment, never leaving the site.
        plan: digest of the signed plan that is answered.
        cohort: digest of the frozen cohort.
        code_version: version of the code that draws.
        purpose: what the draws are for (`sampling`, `noise`, `statistics`): each has a stream of its own.

    Raises:
        ConsiliumError: E801, the noise key does not have 32 bytes.
    """
    if len(noise_key) != _KEY_BYTES:
        raise ConsiliumError("E801", f"noise key of {len(noise_key)} bytes, expected {_KEY_BYTES}")
    info = canonical_json(
        {"scheme": SCHEME, "plan": plan, "cohort": cohort, "code_version": code_version, "purpose": purpose}
    )
    return NoiseStream(HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(noise_key))
