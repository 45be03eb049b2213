"""Updates as fixed-point integers modulo 2^64: masks cancel in whole numbers, not in floating point.

A weighted value v * w becomes the integer nearest to v * w * 2^f, a negative one in two's complement. So many
fraction bits f are chosen that no sum of the roster can reach 2^62: it never wraps round, and the coordinator
reads the exact sum of what the sites encoded, whatever the order. What is lost is at most half of 2^-f for
each site.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from contracts.errors import ConsiliumError

MOST_BITS = 40
LEAST_BITS = 16  # fewer, and rounding would be seen beside float32
_SUM_BELOW = 2.0**62  # one bit is the sign's, one is left over for the rounding of every site
_BLOCK = 1 << 15  # values at a time: what they become on the way stays in a core's cache


def bits_for(bound: float, total_weight: float) -> int:
    """Return how many fraction bits the roster's sum has room for, at most 40.

    Args:
        bound: largest absolute value that any entry of an update may have.
        total_weight: sum of the weights of the whole roster.

    Raises:
        ConsiliumError: E430, fewer than 16 bits are left, or a number is not positive and finite.
    """
    largest = bound * total_weight
    if not (bound > 0 and total_weight > 0 and math.isfinite(largest)):
        raise ConsiliumError(
            "E430", f"bound {bound!r} and total weight {total_weight!r}, expected positive and finite"
        )
    bits = min(MOST_BITS, 62 - math.frexp(largest)[1])  # largest < 2^exponent
    if bits < LEAST_BITS:
        raise ConsiliumError(
            "E430",
            f"bound {bound:g} times total weight {total_weight:g} leaves {bits} fraction bits, "
            f"expected at least {LEAST_BITS}",
        )
    return bits


def encode(
    values: NDArray[np.float32] | NDArray[np.float64], weight: float, bits: int, bound: float
) -> NDArray[np.uint64]:
    """Return round(values * weight * 2^bits), half to even, modulo 2^64: uint64 [d].

    Args:
        values: float32 or float64 [d], one site's update.
        weight: the site's weight in the sum.
        bits: what `bits_for` returned for the roster.
        bound: what `bits_for` was asked for.

    Raises:
        ConsiliumError: E431, a value is not finite or beyond the bound, or the weight is beyond the roster's.
    """
    if not (weight > 0 and bound * weight * 2.0**bits < _SUM_BELOW):
        raise ConsiliumError(
            "E431", f"weight {weight!r} with bound {bound:g}: expected above 0 and room for {bits} bits"
        )
    result = np.empty(len(values), dtype=np.int64)
    scale = weight * 2.0**bits
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK].astype(np.float64)
        inside = np.abs(block) <= bound  # not a number is not inside
        if not inside.all():
            where = int(np.argmin(inside))
            raise ConsiliumError(
                "E431",
                f"value {block[where]!r} at position {start + where}, "
                f"expected a finite number of at most {bound:g}",
            )
        block *= scale
        result[start : start + _BLOCK] = np.rint(block, out=block)
    return result.view(np.uint64)


def decode(total: NDArray[np.uint64], bits: int) -> NDArray[np.float64]:
    """Return the sum of encoded values as float64 [d]: the nearest ones, hence the same on every machine."""
    return np.multiply(total.view(np.int64), 2.0**-bits, dtype=np.float64)
