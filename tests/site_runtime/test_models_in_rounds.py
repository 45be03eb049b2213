"""Every registered model goes through intake and rounds, with privacy and without, from a CSV to a model."""

from __future__ import annotations

import numpy as np
import pytest

from consilium.simulation import run_rounds
from contracts.signing import SigningKey
from models.registry import initial_state
from privacy.ledger import Ledger
from site_runtime.outbox import kept_state
from site_runtime.training import CLIP
from tasks.head import load_head
from tasks.store import get_tensors, load_record
from tests.factories import PRIVACY, tiny_simulation
from tests.model_zoo import table, zoo

pytestmark = pytest.mark.filterwarnings("ignore")

WITHOUT = {"mode": "none"}
STUDIES = {f"{name} without privacy": study for name, study in zoo(privacy=WITHOUT, rounds=1).items()}
STUDIES |= {f"{name} with privacy": study for name, study in zoo(rounds=2).items()}
STUDIES |= {
    f"lstm, {clipping} clipping": zoo(rounds=2, privacy=PRIVACY | {"clipping": clipping})["lstm"]
    for clipping in ("per-layer", "adaptive")
}
PLAIN = {"steps": 3, "sample_rate": 0.2, "learning_rate": 0.5}
STUDIES["shuffled, divided by the cohort"] = zoo(
    privacy=WITHOUT, training=PLAIN | {"sampling": "shuffled", "normaliser": "cohort"}, rounds=1
)["logistic"]
STUDIES["replace-one"] = zoo(privacy=PRIVACY | {"public_n": True}, rounds=1)["logistic"]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(STUDIES))
def test_a_model_is_trained_at_two_hospitals(tmp_path, name):
    protocol = STUDIES[name]
    simulation = tiny_simulation(tmp_path, protocol, table(protocol, 120, seed=1))
    run_rounds(simulation, lambda text: None)
    record = load_record(simulation.coordinator, protocol.study, str(protocol.rounds))
    assert record["admitted"] == ["ash", "birch"]
    head = load_head(simulation.coordinator, protocol.study)
    assert head.status == "finished" and head.model is not None
    reached, start = get_tensors(simulation.coordinator, head.model), initial_state(protocol)
    assert {n: a.shape for n, a in reached.items()} == {n: a.shape for n, a in start.items()}
    assert all(np.isfinite(array).all() for array in reached.values())
    assert any(not np.array_equal(reached[n], start[n]) for n in reached if n.startswith("network."))
    if protocol.privacy.mode == "patient":
        assert record["epsilon"]["maximum"] <= PRIVACY["epsilon"]
        home = simulation.sites["ash"]
        ledger = Ledger(home.ledger("ash"), "ash", "ash", SigningKey.load("ash", home.signing_key))
        entries = [signed.document for signed, _ in ledger.entries()]
        shares = {e.get("quantile_share") for e in entries if e["kind"] == "reserve" and e["steps"] > 1}
        adaptive = protocol.privacy.clipping == "adaptive"
        assert shares == ({0.05} if adaptive else {None})
        # Where the clip norm stands is kept for the next round, and moves.
        assert (CLIP in kept_state(home, protocol, protocol.rounds + 1)) == adaptive
