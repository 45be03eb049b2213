"""Fixed-point encoding: exact sums that never wrap round, and nothing encoded that has no place in them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import ConsiliumError
from privacy.fixed_point import bits_for, decode, encode

BOUNDS = st.floats(1e-6, 1e6)


@given(bound=BOUNDS, weights=st.lists(st.floats(0.01, 1e3), min_size=1, max_size=64))
def test_a_sum_of_the_largest_values_of_everyone_never_wraps_round(
    bound: float, weights: list[float]
) -> None:
    bits = bits_for(bound, sum(weights))
    for sign in (1, -1):
        parts = [encode(np.array([sign * bound]), weight, bits, bound) for weight in weights]
        exact = sum(int(part.view(np.int64)[0]) for part in parts)
        total = np.sum(parts, axis=0, dtype=np.uint64)
        assert int(total.view(np.int64)[0]) == exact and abs(exact) < 2**63
        assert decode(total, bits)[0] == pytest.approx(sign * bound * sum(weights), rel=1e-3)


@given(bound=BOUNDS, total=st.floats(1e-3, 1e7))
def test_bits_are_the_most_that_fit(bound: float, total: float) -> None:
    bits = bits_for(bound, total)
    assert 16 <= bits <= 40 and bound * total * 2.0**bits < 2.0**62
    assert bits == 40 or bound * total * 2.0 ** (bits + 1) >= 2.0**62


@given(
    values=st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=50),
    weight=st.floats(1e-3, 100),
)
def test_one_value_loses_at_most_half_of_the_last_bit(values: list[float], weight: float) -> None:
    bits = bits_for(4.0, 1000.0)
    array = np.array(values, dtype=np.float32)
    back = decode(encode(array, weight, bits, 4.0), bits)
    exact = array.astype(np.float64) * weight
    assert (np.abs(back - exact) <= 2.0 ** -(bits + 1) + np.spacing(np.abs(exact))).all()


def test_halves_are_rounded_to_even_and_negative_numbers_are_twos_complement() -> None:
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -1.0]) / 2**20
    encoded = encode(values, 1.0, 20, 1.0)
    assert encoded.view(np.int64).tolist() == [0, 2, 2, 0, -2, -1]
    assert encoded[-1] == 2**64 - 1


def test_a_long_vector_is_encoded_like_its_parts() -> None:
    values = np.random.default_rng(5).uniform(-1, 1, 70_000).astype(np.float32)
    whole = encode(values, 3.0, 30, 1.0)
    np.testing.assert_array_equal(whole, np.concatenate([encode(v, 3.0, 30, 1.0) for v in values[:, None]]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.001, -1.001])
def test_a_value_beyond_the_bound_is_refused_with_its_position(value: float) -> None:
    values = np.zeros(40_000)
    values[35_000] = value
    with pytest.raises(ConsiliumError, match=r"E431.*position 35000"):
        encode(values, 1.0, 30, 1.0)


@pytest.mark.parametrize("weight", [0.0, -1.0, np.nan, np.inf, 2.0**32])
def test_a_weight_that_the_sum_has_no_room_for_is_refused(weight: float) -> None:
    with pytest.raises(ConsiliumError, match="E431"):
        encode(np.zeros(1), weight, 30, 1.0)


@pytest.mark.parametrize(
    ("bound", "total"), [(2.0**30, 2.0**20), (0.0, 1.0), (1.0, -1.0), (np.nan, 1.0), (1e300, 1e300)]
)
def test_a_roster_whose_sum_has_no_room_is_refused(bound: float, total: float) -> None:
    with pytest.raises(ConsiliumError, match="E430"):
        bits_for(bound, total)
