"""Hospital-level privacy from the hospitals' data to the release: real sites, one process."""

from __future__ import annotations

import json

import pytest

from consilium.simulation import outcome, run_release, run_rounds
from contracts.errors import ConsiliumError
from contracts.signing import SigningKey, parse_signed
from contracts.update import UpdateEnvelope
from privacy.calibration import calibrate
from privacy.ledger import Ledger
from release.directory import read_manifest
from site_runtime.consent import approve_by_scripts, load_approved
from site_runtime.steps import SiteRefused, train
from tasks.exchange import DirectoryExchange
from tasks.replay import replay
from tests.factories import STUDY, opened_plan, tiny_simulation, tiny_study

pytestmark = pytest.mark.filterwarnings("ignore")

STUDY_FIELDS = {
    "privacy": {
        "mode": "site",
        "epsilon": 8.0,
        "delta": 1e-3,
        "max_update_norm": 0.5,
        "clipping": "adaptive",
    },
    "training": STUDY["training"] | {"normalisation": "declared"},
    "gates": [{"metric": "epsilon", "scope": "site", "at_most": 8.0}],
}


@pytest.fixture
def simulation(tmp_path):
    return tiny_simulation(tmp_path, tiny_study(**STUDY_FIELDS))


@pytest.mark.slow
def test_a_study_runs_from_data_to_a_release_that_says_who_is_protected_from_whom(simulation):
    run_rounds(simulation, lambda text: None)
    published = run_release(simulation, lambda text: None)
    manifest = read_manifest(published)
    sigma = calibrate(simulation.protocol).training
    assert manifest.privacy_mode == "site" and manifest.delta == 1e-3
    assert 7.9 < manifest.epsilon <= 8.0
    assert {p.epsilon_study for p in manifest.site_privacy} == {manifest.epsilon}
    text = (published / "dp_statement.md").read_text()
    for words in (
        "| unit of protection | one hospital with all its training patients |",
        "| protected from | the other hospitals, and whoever holds this release, together |",
        "| **not protected from** | **the coordinator**",
        "No epsilon is stated for a patient",
        "They are protected by suppression, not by\nepsilon",
        f"{sigma:.4f}",
        f"epsilon([Spend(1.0, {sigma!r}, 2)], 0.001)",
        "adaptive: starts at 0.5",
        "W, the total weight of the plan's roster, whoever answered",
    ):
        assert words in text, words
    assert "one patient with all records" not in text
    assert all(r.matches for r in replay(simulation.coordinator, "tiny"))
    assert outcome(simulation)["privacy"]["maximum"] == manifest.epsilon
    home = simulation.coordinator
    key = SigningKey.load("coordinator", home.signing_key)
    assert len(Ledger(home.ledger("federation"), "coordinator", "federation", key).spends()) == 2


def test_a_hospital_sends_an_exact_update_and_claims_no_noise_of_its_own(simulation):
    plan = opened_plan(simulation)
    assert json.loads(plan)["document"]["noise_multiplier"] == calibrate(simulation.protocol).training
    exchange = DirectoryExchange(simulation.coordinator.exchange)
    home = simulation.sites["ash"]
    sent = UpdateEnvelope.model_validate(parse_signed(train(home, plan, exchange)).document)
    assert (sent.noise_multiplier, sent.sample_rate, sent.epsilon_study) == (None, None, None)
    assert sent.planned_steps == simulation.protocol.training.steps
    assert not home.ledger("ash").exists()
    other = simulation.sites["birch"]
    other.config.write_text(other.config.read_text().replace("exact_updates: true", "exact_updates: false"))
    with pytest.raises(SiteRefused) as refused:
        train(other, plan, exchange)
    assert parse_signed(refused.value.document).document["number"] == "E323"  # not what was approved
    with pytest.raises(ConsiliumError, match="E304"):
        approve_by_scripts(other, simulation.protocol)
    assert load_approved(other, "tiny").privacy.mode == "site"
