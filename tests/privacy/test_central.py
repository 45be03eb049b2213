"""Hospital-level privacy: one hospital moves the mean by its share of the clip norm; noise covers it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.errors import ConsiliumError
from contracts.privacy import HospitalPrivacy, Quantile
from privacy.accountant import Spend, epsilon, epsilon_gaussian
from privacy.calibration import calibrate, planned_spends
from privacy.central import (
    clip_factor,
    combine,
    followed,
    noisy_share_within,
    sensitivity,
    split_noise,
    update_norm,
)
from privacy.stream import NoiseStream
from strategies.interface import Admitted
from tests.factories import tiny_study

SHAPES = {"a": (3, 4), "b": (5,)}
FLAT = HospitalPrivacy(mode="site", epsilon=5.0, delta=1e-3, max_update_norm=1.0)


class Held:
    """An update in memory."""

    def __init__(self, values: np.ndarray, shapes: dict[str, tuple[int, ...]] = SHAPES) -> None:
        ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
        parts = np.split(values.astype(np.float32), ends[:-1])
        self.tensors = dict(zip(shapes, parts, strict=True))

    def read(self, name: str, span: slice) -> np.ndarray:
        return self.tensors[name][span]

    def whole(self, name: str) -> np.ndarray:
        return self.tensors[name]


def flat(mean: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([mean[name].reshape(-1) for name in sorted(mean)]).astype(np.float64)


def same_stream(purpose: str) -> NoiseStream:
    return NoiseStream(purpose.encode().ljust(32, b"."))


def fresh_stream(number: int) -> Callable[[str], NoiseStream]:
    return lambda purpose: NoiseStream(f"{number} {purpose}".encode().ljust(32, b"."))


def combined(updates: list[Admitted], weights: dict[str, float], **changes: Any) -> Any:
    settings_ = {"clip": 1.0, "noise_multiplier": 0.5, "privacy": FLAT, "stream": same_stream} | changes
    return combine(updates, SHAPES, weights=weights, **settings_)


federations = st.integers(1, 8).flatmap(
    lambda n: st.tuples(
        st.lists(st.floats(1.0, 1e4), min_size=n, max_size=n),
        st.lists(st.floats(-6.0, 6.0), min_size=n, max_size=n),
        st.integers(0, n - 1),
        st.integers(0, 2**32 - 1),
        st.floats(0.01, 100.0),
    )
)


@settings(max_examples=80, deadline=None)
@given(federations)
def test_removing_a_hospital_moves_the_mean_by_at_most_its_share_of_the_clip_norm(drawn) -> None:
    sizes, magnitudes, gone, seed, clip = drawn
    draw = np.random.default_rng(seed)
    weights = {f"site{i}": size for i, size in enumerate(sizes)}
    updates = [
        Admitted(site, weights[site], Held(10.0**magnitude * draw.normal(size=17)))
        for site, magnitude in zip(weights, magnitudes, strict=True)
    ]
    # The same noise on both: what differs is the combination alone.
    whole = flat(combined(updates, weights, clip=clip).mean)
    without = flat(combined([u for i, u in enumerate(updates) if i != gone], weights, clip=clip).mean)
    moved, scale = float(np.linalg.norm(whole - without)), float(np.abs(whole).max() + np.abs(without).max())
    rounding = 1e-6 * scale  # float32, twice
    assert moved <= weights[f"site{gone}"] * clip / sum(sizes) + rounding
    assert moved <= sensitivity(weights, clip) + rounding


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-3.0, 3.0), st.floats(0.01, 10.0))
def test_clipping_keeps_the_direction_and_never_enlarges(seed: int, magnitude: float, clip: float) -> None:
    update = 10.0**magnitude * np.random.default_rng(seed).normal(size=17).astype(np.float32)
    given_norm = update_norm(Held(update), SHAPES)
    assert given_norm == pytest.approx(float(np.linalg.norm(update.astype(np.float64))), rel=1e-12)
    quiet = {"clip": clip, "noise_multiplier": 1e-9}
    found = flat(combined([Admitted("ash", 3.0, Held(update))], {"ash": 3.0}, **quiet).mean)
    assert np.linalg.norm(found) <= min(given_norm, clip) * (1 + 1e-5)
    np.testing.assert_allclose(found, update * min(1.0, clip / given_norm), rtol=1e-4, atol=1e-6 * clip)
    assert 0.0 < clip_factor(given_norm, clip) <= 1.0


def test_the_denominator_is_the_rosters_whoever_answers() -> None:
    weights = {"ash": 100.0, "birch": 300.0}
    update = Held(np.full(17, 0.01))
    quiet = {"noise_multiplier": 1e-9}
    alone = flat(combined([Admitted("ash", 100.0, update)], weights, **quiet).mean)
    np.testing.assert_allclose(alone, 0.01 * 100 / 400, rtol=1e-5)
    nobody = flat(combined([], weights).mean)
    assert np.isfinite(nobody).all() and nobody.std() > 0.0


@pytest.mark.parametrize("weights", [[1.0] * 12, [10.0, 20.0, 300.0], [5.0]])
@pytest.mark.parametrize("clipping", ["flat", "adaptive"])
def test_the_noise_has_the_size_of_the_true_weighted_sensitivity(weights: list[float], clipping: str) -> None:
    clip, sigma, size = 0.7, 2.5, 200_000
    privacy = HospitalPrivacy(mode="site", epsilon=5.0, delta=1e-3, max_update_norm=1.0, clipping=clipping)
    shapes = {"large": (size,)}
    named = {f"site{i}": w for i, w in enumerate(weights)}
    update = Held(np.zeros(size), shapes)
    found = combine(
        [Admitted(site, w, update) for site, w in named.items()],
        shapes,
        weights=named,
        clip=clip,
        noise_multiplier=sigma,
        privacy=privacy,
        stream=same_stream,
    ).mean["large"]
    of_mean = sigma if clipping == "flat" else sigma / math.sqrt(1.0 - privacy.quantile.share)
    expected = of_mean * max(weights) * clip / sum(weights)
    # A standard deviation from n normals errs by 1 / sqrt(2 n): 0.16 %; five of those.
    assert found.std() == pytest.approx(expected, rel=0.008)
    assert abs(found.mean()) < 5 * expected / math.sqrt(size)


@given(st.floats(0.3, 1e3), st.floats(1e-3, 0.999))
def test_mean_and_count_together_cost_one_gaussian(sigma: float, share: float) -> None:
    of_mean, of_count = split_noise(sigma, share)
    assert of_mean > sigma  # the count is not free
    both = epsilon([Spend(1.0, of_mean, 1), Spend(1.0, 2.0 * of_count, 1)], 1e-3)
    assert both == pytest.approx(epsilon_gaussian(sigma, 1e-3), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("start", [0.01, 50.0])
@pytest.mark.parametrize("target", [0.3, 0.5, 0.8])
def test_an_adaptive_clip_norm_reaches_its_quantile_from_above_and_below(start: float, target: float) -> None:
    quantile = Quantile(target=target, learning_rate=0.2, share=0.05)
    hospitals, draw, clip, late = 60, np.random.default_rng(7), start, []
    _, of_count = split_noise(4.0, quantile.share)
    for number in range(600):
        norms = np.exp(draw.normal(0.5, 0.6, hospitals))
        stream = fresh_stream(number)("count")
        clip = followed(
            clip, noisy_share_within(list(norms), clip, hospitals, of_count, stream), quantile, 1e3
        )
        if number >= 200:
            late.append(math.log(clip))
    reference = np.log(np.quantile(np.exp(draw.normal(0.5, 0.6, 100_000)), target))
    # 600 of noise, averaged: the standard error of the mean is about .04 of these.
    assert np.mean(late) == pytest.approx(reference, abs=0.15)


def test_the_clip_norm_follows_the_count_of_those_within_it_and_no_further_than_the_ceiling() -> None:
    adaptive = HospitalPrivacy(mode="site", epsilon=5.0, delta=1e-3, max_update_norm=2.0, clipping="adaptive")
    weights = {f"site{i}": 1.0 for i in range(50)}

    def next_clip(norm: float, clip: float) -> float:
        update = Held(np.full(17, norm / math.sqrt(17)))
        updates = [Admitted(site, 1.0, update) for site in weights]
        clip = combined(updates, weights, clip=clip, noise_multiplier=1e-3, privacy=adaptive).clip
        return float(clip)

    assert next_clip(0.1, 1.0) < 1.0 < next_clip(1.5, 1.0)
    assert next_clip(9.0, 2.0) == 2.0  # never above the protocol's
    assert combined([], weights, clip=1.5).clip == 1.5  # flat: it stays


@settings(max_examples=30, deadline=None)
@given(st.floats(0.2, 40.0), st.sampled_from([1e-2, 1e-3, 1e-5]), st.integers(1, 300))
def test_the_whole_study_meets_its_epsilon_with_four_digits_of_noise(
    target: float, delta: float, rounds: int
) -> None:
    study = tiny_study(
        privacy={"mode": "site", "epsilon": target, "delta": delta, "max_update_norm": 1.0},
        training={"steps": 1, "sample_rate": 0.2, "learning_rate": 0.5, "normalisation": "declared"},
        rounds=rounds,
    )
    try:
        noise = calibrate(study)
    except ConsiliumError as error:
        assert error.number in ("E408", "E409")
        return
    spends = planned_spends(study, noise)
    assert noise.epsilon == epsilon(spends, delta) <= target
    assert float(f"{noise.training:.4g}") == noise.training
    assert epsilon_gaussian(0.998 * noise.training / math.sqrt(rounds), delta) > target


def test_a_study_without_privacy_has_no_such_noise() -> None:
    with pytest.raises(ConsiliumError, match=r"E409.*'none'"):
        calibrate(tiny_study())
