"""The noise stream: the right distributions, the same for the same work, different for any other."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from scipy.stats import chisquare, kstest

from contracts.errors import ConsiliumError
from privacy.stream import NoiseStream, derive_stream

INPUTS = {"plan": "a" * 64, "cohort": "c" * 64, "code_version": "0.1.0", "purpose": "noise"}


def stream(key: bytes = bytes(range(32)), **changes: str) -> NoiseStream:
    return derive_stream(key, **(INPUTS | changes))


def test_a_retry_draws_the_same_bytes() -> None:
    first, second = stream(), stream()
    assert first.normal((3, 5)).tobytes() == second.normal((3, 5)).tobytes()
    assert first.bernoulli(100, 0.3).tobytes() == second.bernoulli(100, 0.3).tobytes()
    assert first.normal(7).tobytes() == second.normal(7).tobytes()


def test_any_change_of_an_input_changes_every_draw() -> None:
    streams = [stream(), stream(bytes(range(1, 33)))]
    streams += [stream(**{name: value[:-1] + "b"}) for name, value in INPUTS.items()]
    # Fields cannot be shifted into one another.
    streams += [stream(code_version="0.1.0n", purpose="oise"), stream(code_version="0.1.", purpose="0noise")]
    draws = [s.uniform(1000) for s in streams]
    for i, one in enumerate(draws):
        for other in draws[:i]:
            assert not (one == other).any()


def test_the_draws_are_pinned() -> None:
    """A change of scheme makes retries differ from the first attempt: it must be deliberate."""
    digest = hashlib.sha256(stream().uniform(1000).tobytes()).hexdigest()
    assert digest == "0771df64e4ce51084756bfe4463da0c6bfa3914c3a09ea66e5242c096c74b7d4"


@pytest.mark.parametrize("key", [bytes(32), bytes(range(32)), b"\xff" * 32])
def test_normals_are_standard_normal_and_independent(key: bytes) -> None:
    z = stream(key).normal(400_000)
    assert kstest(z, "norm").pvalue > 1e-3
    assert abs(z.mean()) < 4 / np.sqrt(len(z)) and z.var() == pytest.approx(1, abs=0.01)
    assert abs(np.corrcoef(z[:-1], z[1:])[0, 1]) < 0.01
    quarters = z.reshape(4, -1)
    assert (np.abs(np.corrcoef(quarters) - np.eye(4)) < 0.02).all()
    assert 4.2 < np.abs(z).max() < 7


def test_uniform_integers_fill_their_range() -> None:
    draws = stream().uniform(256_000)
    for shift in (0, 28, 56):
        counts = np.bincount(((draws >> np.uint64(shift)) & np.uint64(255)).astype(int), minlength=256)
        assert chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.97])
def test_bernoulli_has_its_rate(rate: float) -> None:
    hits = stream().bernoulli(500_000, rate)
    assert hits.mean() == pytest.approx(rate, abs=5 * np.sqrt(rate / 500_000))


def test_bernoulli_at_its_ends() -> None:
    assert not stream().bernoulli(1000, 0.0).any()
    assert stream().bernoulli(1000, 1.0).all()


def test_a_normal_is_a_sum_of_four_draws() -> None:
    """The defence of Holohan & Braghin: two points in a circle, 32 bytes of the stream or more."""
    summed, single = stream(), stream()
    draws = single._single(4 * 10).reshape(4, 10)
    np.testing.assert_array_equal(summed.normal(10), draws.sum(axis=0) * 0.5)
    assert summed.uniform(1) == single.uniform(1)
    assert abs(kstest(stream()._single(100_000), "norm").statistic) < 0.01


def test_the_number_of_normals_asked_for_at_once_is_the_number_returned() -> None:
    for size in (0, 1, 2, 7, 8191, 8192, 8193, 20_000):
        z = stream().normal(size)
        assert z.shape == (size,) and np.isfinite(z).all()


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ConsiliumError, match="E801"):
        stream(bytes(length))
