"""Finding the wrong ones among Shamir shares, which are a Reed-Solomon code word over GF(2^8).

The shares of one byte are values of a polynomial of degree threshold - 1 at the holders' points. Of n shares
up to (n - threshold) // 2 may be wrong, whichever they are, and there is still one polynomial alone that
agrees with all others: the decoder of Gao ("A new algorithm for decoding Reed-Solomon codes", 2003,
doi:10.1007/978-1-4757-3789-9_5) finds it by one interpolation and half of Euclid's algorithm, in O(n^2).

Libraries decode codes whose points are the powers of one element; ours are 1 to n, less the silent. Measured:
5 ms for one seed of 64 holders of whom 45 are needed, 1 ms for 20 and 14, on one core of a small machine.
"""

from __future__ import annotations

from collections.abc import Sequence

from privacy.shamir import INVERSE, PRODUCT, Bytes, interpolate

Polynomial = list[int]  # coefficients, the constant term first; the last one is not 0

_TIMES = PRODUCT.tolist()  # single numbers are read faster from lists
_ONE_OVER = INVERSE.tolist()


def right_shares(shares: Bytes, xs: Sequence[int], threshold: int) -> list[int] | None:
    """Return the positions whose shares lie together on polynomials of a degree below the threshold.

    With at most (k - threshold) // 2 wrong shares, these are all the right ones. None where there are more
    and it shows; with more, the answer may be wrong, and whoever asks must be able to tell.

    Args:
        shares: uint8 [k, 32], of one secret, byte by byte; k at least `threshold`.
        xs: k different values of 1 to 255: holder + 1.
    """
    positions = list(range(len(xs)))
    # Every byte that does not fit shows a wrong share; without those found, fewer are left to find.
    while (byte := _byte_that_does_not_fit(shares[positions], [xs[p] for p in positions], threshold)) >= 0:
        values = [int(shares[p, byte]) for p in positions]
        found = decode(values, [xs[p] for p in positions], threshold)
        if found is None:
            return None
        positions = [p for p in positions if evaluate(found, xs[p]) == shares[p, byte]]
    return positions


def decode(values: Sequence[int], xs: Sequence[int], threshold: int) -> Polynomial | None:
    """Return the polynomial of a degree below `threshold` through all but at most (k - threshold) // 2 of k
    values, or None if there is none."""
    before, now = _with_roots(xs), _through(values, xs)
    factor_before, factor = [], [1]
    while 2 * (len(now) - 1) >= len(xs) + threshold:  # Euclid's algorithm, until half of the degree is gone
        quotient, rest = _divided(before, now)
        before, now = now, rest
        factor_before, factor = factor, _sum(factor_before, _product(quotient, factor))
    found, rest = _divided(now, factor)
    return None if rest or len(found) > threshold else found


def evaluate(polynomial: Polynomial, x: int) -> int:
    """Return its value at x, by Horner's rule."""
    times_x, value = _TIMES[x], 0
    for coefficient in reversed(polynomial):
        value = times_x[value] ^ coefficient
    return value


def _byte_that_does_not_fit(shares: Bytes, xs: Sequence[int], threshold: int) -> int:
    """The first byte of which not all shares lie on the polynomial through the first ones; -1 if all do."""
    for position in range(threshold, len(xs)):
        wrong = interpolate(shares[:threshold], xs[:threshold], xs[position]) != shares[position]
        if wrong.any():
            return int(wrong.argmax())
    return -1


def _with_roots(xs: Sequence[int]) -> Polynomial:
    found = [1]
    for x in xs:
        found = _product(found, [x, 1])
    return found


def _through(values: Sequence[int], xs: Sequence[int]) -> Polynomial:
    """The polynomial through all the values, built up point by point (Newton)."""
    found: Polynomial = []
    roots = [1]
    for value, x in zip(values, xs, strict=True):
        missing = _TIMES[value ^ evaluate(found, x)][_ONE_OVER[evaluate(roots, x)]]
        found = _sum(found, _scaled(roots, missing))
        roots = _product(roots, [x, 1])
    return found


def _divided(dividend: Polynomial, divisor: Polynomial) -> tuple[Polynomial, Polynomial]:
    """Return quotient and rest."""
    rest, leading = list(dividend), _TIMES[_ONE_OVER[divisor[-1]]]
    quotient = [0] * max(len(rest) - len(divisor) + 1, 0)
    for power in range(len(quotient) - 1, -1, -1):
        quotient[power] = leading[rest[power + len(divisor) - 1]]
        times = _TIMES[quotient[power]]
        for place, coefficient in enumerate(divisor, power):
            rest[place] ^= times[coefficient]
    return _trimmed(quotient), _trimmed(rest)


def _product(one: Polynomial, other: Polynomial) -> Polynomial:
    found = [0] * (len(one) + len(other) - 1) if one and other else []
    for power, coefficient in enumerate(one):
        times = _TIMES[coefficient]
        for place, factor in enumerate(other, power):
            found[place] ^= times[factor]
    return found


def _scaled(polynomial: Polynomial, factor: int) -> Polynomial:
    return [_TIMES[factor][coefficient] for coefficient in polynomial] if factor else []


def _sum(one: Polynomial, other: Polynomial) -> Polynomial:
    short, long = sorted((one, other), key=len)
    return _trimmed([a ^ b for a, b in zip(short, long, strict=False)] + long[len(short) :])


def _trimmed(polynomial: Polynomial) -> Polynomial:
    while polynomial and polynomial[-1] == 0:
        polynomial.pop()
    return polynomial
