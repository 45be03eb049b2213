"""What one hospital can do to the average: nothing when honest, a bounded amount whatever it sends."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.errors import ConsiliumError
from contracts.strategy import Krum, Mean, Median, NormBound, TrimmedMean
from strategies.interface import BLOCK, Admitted, weighted_mean
from strategies.robust import closest, combine, fewest_updates, scales, squared_distances
from tests.factories import STUDY, tiny_study
from tests.updates import SHAPES, SIZE, admitted, flat

SITES = 5
METHODS: dict[str, dict[str, Any]] = {
    "mean": {"method": "mean"},
    "norm_bound": {"method": "norm_bound"},
    "median": {"method": "median"},
    "trimmed_mean": {"method": "trimmed_mean", "trim": 1},
    "krum": {"method": "krum", "malicious": 1, "keep": 2},
}
ROBUST = [name for name in METHODS if name != "mean"]


def combined(method: str, updates: list[Admitted], **changes: Any) -> np.ndarray:
    protocol = tiny_study(strategy={"aggregation": METHODS[method] | changes})
    return flat(combine(protocol, updates, SHAPES))


def honest(seed: int, sites: int = SITES) -> np.ndarray:
    """Updates that agree on a direction, as those of hospitals with one disease do: [sites, SIZE]."""
    draw = np.random.default_rng(seed)
    return draw.normal(size=SIZE) + 0.3 * draw.normal(size=(sites, SIZE))


seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("method", METHODS)
class TestEveryMethod:
    """What a study relies on, whichever method it chose."""

    def test_hospitals_that_agree_get_what_they_sent(self, method: str) -> None:
        one = np.random.default_rng(1).normal(size=SIZE)
        updates = admitted(np.tile(one, (SITES, 1)), weights=[1, 5, 2, 9, 3])
        np.testing.assert_allclose(combined(method, updates), one, rtol=1e-6)

    @given(seed=seeds)
    @settings(max_examples=20, deadline=None)
    def test_the_average_lies_between_the_lowest_and_highest_value(self, method: str, seed: int) -> None:
        values = honest(seed)
        found = combined(method, admitted(values))
        assert np.all(found >= values.min(axis=0) - 1e-5) and np.all(found <= values.max(axis=0) + 1e-5)

    def test_the_same_updates_give_the_same_bytes(self, method: str) -> None:
        values = honest(3)
        assert combined(method, admitted(values)).tobytes() == combined(method, admitted(values)).tobytes()

    def test_it_reads_a_large_tensor_in_pieces_that_fit_together(self, method: str) -> None:
        shapes = {"w": (2 * BLOCK + 3,)}
        values = np.random.default_rng(0).normal(size=(SITES, 2 * BLOCK + 3))
        protocol = tiny_study(strategy={"aggregation": METHODS[method]})
        whole = combine(protocol, admitted(values, shapes=shapes), shapes)["w"]
        for span in (slice(0, 5), slice(BLOCK - 2, BLOCK + 2), slice(2 * BLOCK - 2, 2 * BLOCK + 3)):
            assert np.all(whole[span] >= values[:, span].min(axis=0) - 1e-5)
            assert np.all(whole[span] <= values[:, span].max(axis=0) + 1e-5)


@pytest.mark.parametrize("method", ROBUST)
@given(seed=seeds, size=st.floats(1e2, 1e6), sign=st.sampled_from([-1.0, 1.0]))
@settings(max_examples=30, deadline=None)
def test_one_hospital_of_five_cannot_move_the_average_far_however_large_it_is(method, seed, size, sign):
    values = honest(seed)
    values[2] *= sign * size
    others = np.delete(values, 2, axis=0)
    centre = others.mean(axis=0)
    longest = np.linalg.norm(others, axis=1).max()
    assert np.linalg.norm(combined(method, admitted(values)) - centre) <= 2 * longest


@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_the_plain_mean_is_moved_as_far_as_one_hospital_likes(seed):
    values = honest(seed)
    values[2] *= 1e4
    centre = np.delete(values, 2, axis=0).mean(axis=0)
    assert np.linalg.norm(combined("mean", admitted(values)) - centre) > 100 * np.linalg.norm(centre)


@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_when_nobody_stands_out_the_norm_bound_is_the_weighted_mean_to_the_last_bit(seed):
    updates = admitted(honest(seed), weights=[10, 20, 30, 40, 50])
    assert combined("norm_bound", updates).tobytes() == flat(weighted_mean(updates, SHAPES)).tobytes()


def test_the_norm_bound_holds_every_ratio_to_the_factor_times_the_median_ratio():
    assert scales([1.0, 2.0, 3.0, 100.0], [1.0] * 4, 3.0) == [1.0, 1.0, 1.0, pytest.approx(3 * 2.5 / 100)]
    # A small hospital's noise makes its honest updates ten times longer: that is no reason to scale it.
    assert scales([1.0, 1.1, 10.0], [1.0, 1.0, 10.0], 3.0) == [1.0, 1.0, 1.0]


def test_two_hospitals_have_no_median_to_stand_out_of():
    assert scales([1.0, 1e9], [1.0, 1.0], 3.0) == [1.0, 1.0]
    updates = admitted(np.array([np.ones(SIZE), 1e6 * np.ones(SIZE)]))
    np.testing.assert_allclose(combined("norm_bound", updates), (1 + 1e6) / 2)


def test_when_most_hospitals_send_nothing_one_that_sends_something_stands_out():
    values = np.zeros((3, SIZE))
    values[1] = 1.0
    assert not combined("norm_bound", admitted(values)).any()


@pytest.mark.parametrize("sites", [3, 4, 7])
def test_the_median_is_that_of_every_coordinate_and_weights_play_no_part(sites):
    values = honest(5, sites).astype(np.float32)
    updates = admitted(values, weights=[1000, *[1] * (sites - 1)])
    np.testing.assert_allclose(combined("median", updates), np.median(values, axis=0), rtol=1e-6)


@pytest.mark.parametrize(("sites", "trim"), [(3, 1), (6, 2), (7, 1)])
def test_the_trimmed_mean_leaves_out_the_lowest_and_highest_of_every_coordinate(sites, trim):
    values = honest(6, sites).astype(np.float32)
    expected = np.sort(values, axis=0)[trim : sites - trim].mean(axis=0)
    np.testing.assert_allclose(combined("trimmed_mean", admitted(values), trim=trim), expected, rtol=1e-5)


def test_distances_are_those_of_every_pair():
    values = honest(7).astype(np.float32)
    found = squared_distances(admitted(values), SHAPES)
    for i, j in itertools.product(range(SITES), repeat=2):
        assert found[i, j] == pytest.approx(np.sum((values[i] - values[j]).astype(float) ** 2), rel=1e-5)


def test_krum_keeps_those_that_lie_closest_to_the_others():
    # On a line: the first three lie together, the fourth apart, the fifth far away.
    places = np.array([0.0, 1.0, 2.0, 10.0, 1000.0])
    distances = (places[:, None] - places[None]) ** 2
    # With f = 1 of n = 5 a score is the sum over the two nearest: 5, 2, 5, 145, huge.
    assert closest(distances, Krum(method="krum", malicious=1, keep=1)) == [1]
    assert closest(distances, Krum(method="krum", malicious=1, keep=3)) == [0, 1, 2]
    assert closest(distances, Krum(method="krum", malicious=1, keep=4)) == [0, 1, 2, 3]


def test_of_equally_close_updates_krum_keeps_the_first():
    assert closest(np.zeros((5, 5)), Krum(method="krum", malicious=1, keep=2)) == [0, 1]


def test_krum_averages_what_it_kept_and_weights_play_no_part():
    values = np.stack([np.full(SIZE, v) for v in (0.0, 1.0, 2.0, 10.0, 1000.0)])
    updates = admitted(values, weights=[1, 1, 100, 1, 1])
    np.testing.assert_allclose(combined("krum", updates, keep=3), 1.0)


@pytest.mark.parametrize(
    ("method", "fewest"),
    [
        (Mean(method="mean"), 1),
        (NormBound(), 1),
        (Median(method="median"), 1),
        (TrimmedMean(method="trimmed_mean", trim=2), 5),
        (Krum(method="krum", malicious=1), 5),
        (Krum(method="krum", malicious=1, keep=6), 7),
    ],
)
def test_every_method_says_how_many_hospitals_it_needs(method, fewest):
    assert fewest_updates(method) == fewest


@pytest.mark.parametrize("method", ["median", "trimmed_mean", "krum"])
def test_hospital_level_privacy_refuses_a_method_that_must_see_updates(method):
    privacy = {"mode": "site", "epsilon": 5.0, "delta": 1e-3, "max_update_norm": 1.0}
    training = STUDY["training"] | {"normalisation": "declared"}
    with pytest.raises(ConsiliumError, match=f"E101.*strategy.aggregation '{method}', expected 'mean'"):
        tiny_study(privacy=privacy, training=training, strategy={"aggregation": METHODS[method]})
    for fits in ("mean", "norm_bound"):
        tiny_study(privacy=privacy, training=training, strategy={"aggregation": METHODS[fits]})
