"""Epsilon is right: against published numbers, Opacus, the exact Gaussian, and its own definition."""

from __future__ import annotations

import json
import math
import os
import warnings
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy.special import ndtr
from scipy.stats import norm

import privacy.accountant as accountant
import privacy.composition as composition
from contracts.errors import ConsiliumError
from privacy.accountant import (
    Spend,
    epsilon,
    epsilon_gaussian,
    epsilon_prv,
    epsilon_rdp,
    epsilon_without_amplification,
    grouped,
)
from privacy.composition import composed_epsilon
from privacy.pairs import Pair

DATA = Path(os.environ.get("CONSILIUM_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
GOLDEN = DATA / "published" / "dp_accounting_golden.json"

CASES = [
    ([Spend(0.1, 1.1, 100)], 1e-5),
    ([Spend(0.02, 1.1, 1000)], 1e-4),
    ([Spend(0.5, 4.0, 50)], 1e-5),
    ([Spend(0.1, 1.5, 10), Spend(0.1, 2.0, 40), Spend(0.05, 1.1, 100)], 1e-5),
    ([Spend(1.0, 9.284, 1), Spend(0.1, 2.617, 400)], 1e-4),
]


@pytest.mark.skipif(not GOLDEN.exists(), reason=f"no published golden file at {GOLDEN}: set CONSILIUM_DATA")
def test_every_case_of_the_golden_file_of_dp_accounting() -> None:
    cases = json.loads(GOLDEN.read_text())["cases"]
    assert len(cases) >= 10
    for case in cases:
        spends = [Spend(**step) for step in case["steps"]]
        found = epsilon(spends, case["delta"])
        # The file is rounded to four digits; ours is an upper estimate and not 0.01 above.
        assert case["epsilon_pld"] - 1e-4 <= found <= case["epsilon_pld"] + 0.01
        assert epsilon_rdp(spends, case["delta"]) == pytest.approx(case["epsilon_rdp"], abs=0.02)


@pytest.mark.parametrize(("spends", "delta"), CASES)
def test_opacus_agrees(spends: list[Spend], delta: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.accountants import PRVAccountant, RDPAccountant
    history = [(s.noise_multiplier, s.sample_rate, s.steps) for s in spends]
    prv, rdp = PRVAccountant(), RDPAccountant()
    prv.history = [(sigma, min(q, 1 - 1e-9), n) for sigma, q, n in history]
    rdp.history = history
    # Opacus adds its error bound of 0.01 on both sides of its own estimate.
    assert epsilon(spends, delta) == pytest.approx(prv.get_epsilon(delta), abs=0.025)
    assert epsilon_rdp(spends, delta) == pytest.approx(rdp.get_epsilon(delta), rel=0.01)


def test_ten_rounds_are_not_one_round() -> None:
    """n = 500, batches of 50, sigma 1.5, ten steps a round: 2.99 was spent where 1.02 is printed."""
    rounds = [Spend(50 / 500, 1.5, 10)] * 10
    assert epsilon(rounds[:1], 1e-4) == pytest.approx(1.01, abs=0.015)
    assert epsilon(rounds, 1e-4) == pytest.approx(2.99, abs=0.015)


def test_nothing_spent_is_zero() -> None:
    assert epsilon([], 1e-5) == epsilon_prv([], 1e-5) == epsilon_rdp([], 1e-5) == 0.0


@pytest.mark.parametrize("sigma", [0.5, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-8])
def test_a_release_without_sampling_is_the_exact_gaussian(sigma: float, delta: float) -> None:
    exact = epsilon_gaussian(sigma, delta)
    value = ndtr(0.5 / sigma - exact * sigma) - math.exp(exact) * ndtr(-0.5 / sigma - exact * sigma)
    assert value == pytest.approx(delta, rel=1e-6)
    assert epsilon([Spend(1.0, sigma, 1)], delta) == exact
    assert epsilon([Spend(1.0, 2 * sigma, 4)], delta) == pytest.approx(exact, rel=1e-12)
    # The same number by discretisation and convolution: from above, and close.
    composed = composed_epsilon([(Pair(1.0, 3 * sigma, False), 9)], delta)
    assert exact - 1e-9 <= composed <= exact * 1.001 + 1e-4


def hockey_stick(spend: Spend, value: float, direction: str) -> float:
    """delta of one step at epsilon by its definition: integral of max(P - e^epsilon Q, 0), numerically."""
    sigma, q = spend.noise_multiplier, spend.sample_rate
    t = np.linspace(-1 - 14 * sigma, 1 + 14 * sigma, 400_001)

    def mixture(shift: float) -> Any:
        return (1 - q) * norm.pdf(t, 0, sigma) + q * norm.pdf(t, shift, sigma)

    first, second = {"remove": (1, 0), "add": (0, 1), "replace": (1, -1), "replace back": (-1, 1)}[direction]
    return float(np.trapezoid(np.maximum(mixture(first) - math.exp(value) * mixture(second), 0), t))


@settings(max_examples=40, deadline=None)
@given(
    q=st.floats(0.01, 0.99),
    sigma=st.floats(0.3, 10),
    delta=st.sampled_from([1e-2, 1e-4, 1e-6]),
    replace=st.booleans(),
)
def test_one_step_is_an_upper_estimate_of_the_definition(
    q: float, sigma: float, delta: float, replace: bool
) -> None:
    spend = Spend(q, sigma, 1)
    found = epsilon_prv([spend], delta, "replace-one" if replace else "add-or-remove-one")

    def exact(value: float) -> float:
        both = ("replace", "replace back") if replace else ("remove", "add")
        return max(hockey_stick(spend, value, direction) for direction in both)

    assert exact(found) <= delta * (1 + 1e-3)
    if found > 2e-3:
        assert exact(found * 0.999 - 1e-3) > delta * (1 - 1e-3)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.builds(
            Spend,
            st.sampled_from([1e-3, 0.05, 0.3, 0.9, 1.0]),
            st.sampled_from([0.7, 1.0, 2.5, 20.0]),
            st.integers(1, 60),
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([1e-3, 1e-5, 1e-7]),
)
def test_composition_is_ordered_bounded_and_confirmed(spends: list[Spend], delta: float) -> None:
    total = epsilon(spends, delta)  # E408 here would be a bug in one of the two accountants
    assert total <= epsilon_rdp(spends, delta) * 1.001 + 1e-3
    assert total == epsilon(spends[::-1], delta)
    split = [Spend(s.sample_rate, s.noise_multiplier, 1) for s in spends for _ in range(s.steps)]
    assert total == epsilon(split, delta)
    assert epsilon(spends[1:], delta) <= total * (1 + 1e-3) + 1e-3
    assert epsilon([*spends, Spend(0.05, 1.0, 50)], delta) >= total * (1 - 1e-3) - 1e-3


def test_the_mesh_is_fine_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mesh four times finer changes epsilon by less than 0.001, and never upwards."""
    mesh = composition.mesh_of
    for spends, delta in CASES:
        coarse = epsilon_prv(spends, delta)
        monkeypatch.setattr(composition, "mesh_of", lambda steps: mesh(steps) / 4)
        accountant._prv.cache_clear()
        fine = epsilon_prv(spends, delta)
        monkeypatch.setattr(composition, "mesh_of", mesh)
        accountant._prv.cache_clear()
        assert fine - 1e-6 <= coarse <= fine + 1e-3


def test_equal_pairs_are_grouped() -> None:
    assert grouped([Spend(0.1, 1.0, 5), Spend(0.2, 1.0, 1), Spend(0.1, 1.0, 7)]) == (
        Spend(0.1, 1.0, 12),
        Spend(0.2, 1.0, 1),
    )
    assert grouped([Spend(1.0, 2.0, 4)]) == (Spend(1.0, 1.0, 1),)


@pytest.mark.parametrize("wrong", [0.5, 1.5])
def test_accountants_that_disagree_state_no_number(monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    spends = [Spend(0.1, 1.1, 100)]
    true = epsilon_prv(spends, 1e-5)
    monkeypatch.setattr(
        accountant, "_prv", lambda pairs, delta, adjacency: true * (0.1 if wrong < 1 else wrong)
    )
    with pytest.raises(ConsiliumError) as error:
        epsilon(spends, 1e-5)
    assert error.value.number == "E408"


@pytest.mark.parametrize(
    ("spends", "delta"), [([Spend(0.1, 0.01, 1)], 1e-5), ([Spend(0.1, 1.0, 100), Spend(1.0, 1.0, 1)], 1e-18)]
)
def test_what_cannot_be_computed_is_infinite_or_refused_never_small(
    spends: list[Spend], delta: float
) -> None:
    assert epsilon_prv(spends, delta) == math.inf


@pytest.mark.parametrize(
    ("rate", "sigma", "steps"), [(0.0, 1, 1), (1.1, 1, 1), (0.1, 0, 1), (0.1, math.inf, 1), (0.1, 1, 0)]
)
def test_a_spend_that_makes_no_sense_is_refused(rate: float, sigma: float, steps: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        Spend(rate, sigma, steps)
