"""What round 0 puts into the first global model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.registry import initial_state
from privacy.stream import derive_stream
from strategies.interface import Admitted
from strategies.normalisation import (
    PREVALENCE,
    SUMS,
    class_weights,
    normalised_start,
    site_statistics,
    statistics_norm_bound,
    statistics_shapes,
)
from tests.factories import STUDY, ZERO, tiny_study

BALANCED = tiny_study(training=STUDY["training"] | {"class_weights": "balanced"})


class Sums:
    """An update's only tensor."""

    def __init__(self, sums: np.ndarray) -> None:
        self.sums = sums

    def read(self, name: str, span: slice) -> np.ndarray:
        return self.sums[span]

    def whole(self, name: str) -> np.ndarray:
        return self.sums


def updates(protocol) -> list[Admitted]:
    """Exact statistics of two sites of 40 patients with 10 and 20 positives."""
    stream = derive_stream(bytes(32), plan=ZERO, cohort=ZERO, code_version="1", purpose="statistics")
    admitted = []
    for site, positives in (("ash", 10), ("birch", 20)):
        x = np.random.default_rng(positives).uniform(0, 20, (40, 2, 3)).astype(np.float32)
        mask = np.arange(2) < np.ones((40, 1))
        y = (np.arange(40)[:, None] < positives) & mask
        sent = site_statistics(protocol, x, mask, y.astype(np.float32), None, stream).sent
        assert {name: array.shape for name, array in sent.items()} == statistics_shapes(protocol)
        assert np.linalg.norm(sent[SUMS]) < statistics_norm_bound(protocol, 40, None)
        admitted.append(Admitted(site, 1.0, Sums(sent[SUMS])))
    return admitted


def test_the_first_model_holds_the_federations_share_of_positives_if_and_only_if_it_is_asked_for():
    state = normalised_start(BALANCED, initial_state(BALANCED), updates(BALANCED), None)
    assert set(state) == set(initial_state(BALANCED))
    assert state[PREVALENCE] == pytest.approx(30 / 80)
    assert class_weights(state) == pytest.approx((80 / 100, 80 / 60))
    plain = normalised_start(tiny_study(), initial_state(tiny_study()), updates(tiny_study()), None)
    assert PREVALENCE not in plain and class_weights(plain) is None


@given(st.floats(0.01, 0.99))
def test_balanced_weights_have_mean_one_and_both_classes_weigh_the_same(prevalence):
    negative, positive = class_weights({PREVALENCE: np.array([prevalence])})
    assert (1 - prevalence) * negative == pytest.approx(0.5) == pytest.approx(prevalence * positive)
