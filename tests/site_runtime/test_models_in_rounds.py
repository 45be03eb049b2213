"""Every registered model goes through intake and the rounds of a study, from a hospital's CSV to a model."""

from __future__ import annotations

import numpy as np
import pytest

from consilium.simulation import run_rounds
from models.registry import MODELS, initial_state
from tasks.head import load_head
from tasks.store import get_tensors, load_record
from tests.factories import tiny_simulation
from tests.model_zoo import table, zoo

pytestmark = pytest.mark.filterwarnings("ignore")

WITHOUT = zoo(privacy={"mode": "none"}, rounds=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_model_is_trained_at_two_hospitals_without_privacy(tmp_path, name):
    protocol = WITHOUT[name]
    simulation = tiny_simulation(tmp_path, protocol, table(protocol, 120, seed=1))
    run_rounds(simulation, lambda text: None)
    assert load_record(simulation.coordinator, protocol.study, "1")["admitted"] == ["ash", "birch"]
    head = load_head(simulation.coordinator, protocol.study)
    assert head.status == "finished" and head.model is not None
    reached, start = get_tensors(simulation.coordinator, head.model), initial_state(protocol)
    assert {n: a.shape for n, a in reached.items()} == {n: a.shape for n, a in start.items()}
    assert all(np.isfinite(array).all() for array in reached.values())
    assert any(not np.array_equal(reached[n], start[n]) for n in reached if n.startswith("network."))
