"""Secret sharing: enough shares give the secret, fewer say nothing."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from contracts.errors import ConsiliumError
from privacy.shamir import PRODUCT, combine, interpolate, split


def test_products_are_those_of_aes() -> None:
    """FIPS 197, sections 4.2 and 4.2.1."""
    assert PRODUCT[0x57, 0x83] == 0xC1 and PRODUCT[0x57, 0x13] == 0xFE


def test_the_field_has_inverses_and_distributes() -> None:
    a, b, c = np.random.default_rng(1).integers(0, 256, (3, 5000))
    np.testing.assert_array_equal(PRODUCT[a, b ^ c], PRODUCT[a, b] ^ PRODUCT[a, c])
    np.testing.assert_array_equal(PRODUCT[PRODUCT[a, b], c], PRODUCT[a, PRODUCT[b, c]])
    assert (np.sort(PRODUCT[1:, 1:], axis=1) == np.arange(1, 256)).all()


@given(st.data())
def test_any_threshold_of_shares_gives_the_secrets(data: st.DataObject) -> None:
    holders = data.draw(st.integers(1, 64))
    threshold = data.draw(st.integers(1, holders))
    secrets = np.frombuffer(data.draw(st.binary(min_size=64, max_size=64)), np.uint8).reshape(2, 32)
    shares = split(secrets, threshold, holders)
    chosen = data.draw(st.permutations(range(holders)))[:threshold]
    found = combine(shares[chosen], [h + 1 for h in chosen], threshold)
    np.testing.assert_array_equal(found, secrets)


def test_all_groups_of_a_small_roster_agree_and_interpolate_each_other() -> None:
    secrets = np.arange(96, dtype=np.uint8).reshape(3, 32)
    shares = split(secrets, 3, 5)
    for group in combinations(range(5), 3):
        xs = [h + 1 for h in group]
        for other in range(5):
            np.testing.assert_array_equal(interpolate(shares[list(group)], xs, other + 1), shares[other])
        np.testing.assert_array_equal(interpolate(shares[list(group)], xs, 0), secrets)


@pytest.mark.parametrize("secret", [0, 0xFF])
def test_fewer_shares_than_the_threshold_are_uniform_whatever_the_secret(secret: int) -> None:
    """Two shares of three needed: all pairs of bytes come equally often, for either of two secrets."""
    shares = split(np.full((40_000, 32), secret, np.uint8), 3, 4).astype(np.int64)
    for one, other in ((0, 1), (1, 3)):
        counts = np.bincount((shares[one] * 256 + shares[other]).ravel(), minlength=65_536)
        assert chisquare(counts).pvalue > 1e-4


def test_every_secret_fits_fewer_shares_than_the_threshold() -> None:
    """For each of the 256 values of a byte there is exactly one polynomial through two shares of three."""
    shares = split(np.zeros((1, 32), np.uint8), 3, 3)
    thirds = set()
    for guess in range(256):
        # The line of argument turned round: the shares at 1 and 2, and at x = 3 the secret (a shifted curve).
        known = np.stack([shares[0], shares[1], np.full((1, 32), guess, np.uint8)])
        thirds.add(int(interpolate(known, [1, 2, 3], 0)[0, 0]))
    assert len(thirds) == 256


def test_two_splits_of_one_secret_share_nothing() -> None:
    secret = np.zeros((1, 32), np.uint8)
    assert (split(secret, 2, 3) != split(secret, 2, 3)).any(axis=(1, 2)).all()


@pytest.mark.parametrize(("threshold", "holders"), [(0, 3), (4, 3), (2, 65)])
def test_impossible_thresholds_are_refused(threshold: int, holders: int) -> None:
    with pytest.raises(ConsiliumError, match="E432"):
        split(np.zeros((1, 32), np.uint8), threshold, holders)


@pytest.mark.parametrize("xs", [[1], [1, 1], [0, 1], [1, 256]])
def test_too_few_shares_or_the_same_one_twice_open_nothing(xs: list[int]) -> None:
    with pytest.raises(ConsiliumError, match="E434"):
        combine(np.zeros((len(xs), 1, 32), np.uint8), xs, 2)
