"""Wrong shares are found whoever gave them, as long as there is one secret alone that the others fit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.shamir import interpolate, split
from privacy.share_decoding import decode, evaluate, right_shares


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_right_shares_are_found_for_every_roster_and_all_liars_that_can_be_told(
    data: st.DataObject,
) -> None:
    holders = data.draw(st.integers(1, 64))
    threshold = data.draw(st.integers(1, holders))
    answering = sorted(
        data.draw(st.permutations(range(holders)))[: data.draw(st.integers(threshold, holders))]
    )
    most = (len(answering) - threshold) // 2
    liars = data.draw(st.permutations(range(len(answering))))[: data.draw(st.integers(0, most))]
    secret = np.frombuffer(data.draw(st.binary(min_size=32, max_size=32)), np.uint8)[None]
    shares = split(secret, threshold, holders)[answering, 0]
    for liar in liars:  # in one byte, in some or in all
        wrong = data.draw(st.lists(st.integers(0, 31), min_size=1, unique=True))
        shares[liar, wrong] ^= np.array(
            data.draw(st.lists(st.integers(1, 255), min_size=len(wrong), max_size=len(wrong))), np.uint8
        )
    xs = [holder + 1 for holder in answering]
    found = right_shares(shares, xs, threshold)
    assert found == sorted(set(range(len(answering))) - set(liars))
    used = found[:threshold]
    np.testing.assert_array_equal(interpolate(shares[used][:, None], [xs[u] for u in used], 0), secret)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_liars_that_agree_on_another_polynomial_are_found_too(data: st.DataObject) -> None:
    """The worst they can do: their shares fit each other and as many of the honest ones as possible."""
    holders = data.draw(st.integers(3, 64))
    threshold = data.draw(st.integers(1, holders - 2))
    liars = data.draw(st.permutations(range(holders)))[: (holders - threshold) // 2]
    secrets = np.frombuffer(data.draw(st.binary(min_size=64, max_size=64)), np.uint8).reshape(2, 1, 32)
    honest, other = (split(secret, threshold, holders)[:, 0] for secret in secrets)
    shares = honest.copy()
    shares[liars] = other[liars]
    agreeing = {liar for liar in liars if (honest[liar] == other[liar]).all()}
    found = right_shares(shares, list(range(1, holders + 1)), threshold)
    assert found == sorted(set(range(holders)) - set(liars) | agreeing)


def test_beyond_that_nothing_is_made_up() -> None:
    """Three shares of which any two fit some polynomial of degree 1: nobody can say which one is wrong."""
    shares = split(np.arange(32, dtype=np.uint8)[None], 2, 3)[:, 0]
    shares[1] ^= 1
    assert right_shares(shares, [1, 2, 3], 2) is None


@pytest.mark.parametrize("threshold", [1, 2, 5])
def test_a_polynomial_comes_back_from_its_values(threshold: int) -> None:
    polynomial = [7, 0, 3, 0, 9][:threshold]
    xs = [3, 9, 27, 81, 243, 5, 1]
    values = [evaluate(polynomial, x) for x in xs]
    while polynomial and polynomial[-1] == 0:
        polynomial.pop()
    assert decode(values, xs, threshold) == polynomial
    values[2] ^= 77
    assert decode(values, xs, threshold) == polynomial
