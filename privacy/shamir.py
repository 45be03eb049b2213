"""Shamir's secret sharing (1979, doi:10.1145/359168.359176), byte by byte over GF(2^8).

Every byte of a secret is the constant term of a polynomial of degree threshold - 1, the other coefficients
from the operating system; holder number h (from 0) gets the value at x = h + 1. Any `threshold` shares give
the polynomial, fewer say nothing about the secret, whatever one computes: for every secret there are equally
many polynomials through them. The field is that of AES (FIPS 197, section 4.2), addition is XOR.

The tables are read at secret places; who can measure the caches of a hospital's machine is not kept out here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from contracts.errors import ConsiliumError
from contracts.strategy import MAX_SECURE_SITES

Bytes = NDArray[np.uint8]

SECRET_BYTES = 32
_POLYNOMIAL = 0x11B  # x^8 + x^4 + x^3 + x + 1


def _tables() -> tuple[Bytes, Bytes]:
    """Return all products [256, 256], and the inverses [256] (of 0 it is 0)."""
    exponential, x = np.zeros(255, dtype=np.uint8), 1
    for power in range(255):
        exponential[power] = x
        x ^= x << 1  # times 3, which generates the field without 0
        x ^= _POLYNOMIAL if x & 0x100 else 0
    logarithm = np.zeros(256, dtype=np.int64)
    logarithm[exponential] = np.arange(255)
    product = exponential[(logarithm[:, None] + logarithm[None, :]) % 255]
    product[0, :] = product[:, 0] = 0
    inverse = exponential[-logarithm % 255]
    inverse[0] = 0
    return product, inverse


PRODUCT, INVERSE = _tables()  # of any two elements, and of one


def split(secrets: Bytes, threshold: int, holders: int) -> Bytes:
    """Split each secret so that any `threshold` of the holders have it, and fewer know nothing.

    Args:
        secrets: uint8 [m, 32].
        threshold: shares that open a secret, 1 to `holders`.
        holders: at most 64.

    Returns:
        uint8 [holders, m, 32]: row h is what holder h gets, its x is h + 1.

    Raises:
        ConsiliumError: E432, no such threshold or number of holders.
    """
    if not 1 <= threshold <= holders <= MAX_SECURE_SITES:
        raise ConsiliumError(
            "E432",
            f"threshold {threshold} of {holders} holders, expected 1 to the number of holders, "
            f"and at most {MAX_SECURE_SITES} of them",
        )
    drawn = os.urandom((threshold - 1) * secrets.size)
    coefficients = np.frombuffer(drawn, dtype=np.uint8).reshape(threshold - 1, *secrets.shape)
    shares = np.empty((holders, *secrets.shape), dtype=np.uint8)
    for holder in range(holders):
        times_x = PRODUCT[holder + 1]
        value = np.zeros_like(secrets)
        for coefficient in coefficients:  # Horner, the highest power first
            value = times_x[value ^ coefficient]
        shares[holder] = value ^ secrets
    return shares


def combine(shares: Bytes, xs: Sequence[int], threshold: int) -> Bytes:
    """Return the secrets, uint8 [m, 32], from the first `threshold` of the shares.

    A wrong share gives a wrong secret; whoever combines must be able to tell.

    Args:
        shares: uint8 [k, m, 32].
        xs: k different values of 1 to 255: holder + 1.

    Raises:
        ConsiliumError: E434, fewer shares than the threshold, or the same holder twice.
    """
    if len(shares) != len(xs) or len(xs) < threshold:
        raise ConsiliumError("E434", f"{len(xs)} shares, expected at least {threshold}")
    return interpolate(shares[:threshold], xs[:threshold], 0)


def interpolate(shares: Bytes, xs: Sequence[int], at: int) -> Bytes:
    """Return uint8 [m, 32], the value at `at` of the polynomials through all the shares [k, m, 32].

    Raises:
        ConsiliumError: E434, the same x twice, or one outside 1 to 255.
    """
    if len(set(xs)) != len(xs) or not all(1 <= x <= 255 for x in xs):
        raise ConsiliumError("E434", f"shares of holders {list(xs)}, expected different ones, 1 to 255")
    result = np.zeros(shares.shape[1:], dtype=np.uint8)
    for share, weight in zip(shares, _weights(tuple(xs), at), strict=True):
        result ^= PRODUCT[weight][share]
    return result


@lru_cache(maxsize=4096)
def _weights(xs: tuple[int, ...], at: int) -> tuple[int, ...]:
    """Values at `at` of Lagrange's basis polynomials: the same for every secret of the same holders."""
    found = []
    for x in xs:
        factor = 1
        for other in xs:
            if other != x:
                factor = int(PRODUCT[factor, PRODUCT[other ^ at, INVERSE[other ^ x]]])
        found.append(factor)
    return tuple(found)
