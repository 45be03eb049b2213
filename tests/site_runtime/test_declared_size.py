"""One patient more or less changes no normaliser, no rate and no history: those are declared."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import site_runtime.trainer
from contracts.canonical import digest
from contracts.plan import RosterEntry, RoundPlan
from contracts.signing import SigningKey
from contracts.update import UpdateEnvelope
from contracts.version import CODE_VERSION
from models.registry import initial_state
from privacy.calibration import calibrate, planned_spends
from privacy.ledger import Ledger
from site_runtime.cohort import build_cohort, freeze, load_cohort
from site_runtime.config import load_site
from site_runtime.outbox import DOCUMENT
from site_runtime.split import load_split_key
from site_runtime.training import make_update
from tasks.exchange import DirectoryExchange
from tests.factories import PRIVACY, SITE, STUDY, ZERO, enrolled_site, private_study, write_tensors

pytestmark = pytest.mark.filterwarnings("ignore")

DECLARED = 1000
STUDY_CHANGES = {
    "privacy": PRIVACY | {"delta": 1e-4},
    "training": STUDY["training"] | {"class_weights": "balanced"},
    "decision_threshold": {"alert_rate": 0.3},
}


def rows(patients: int) -> pd.DataFrame:
    """As many patients, every third with two records; the last 50 are for the holdout."""
    draw = np.random.default_rng(1)
    records = [(f"p{i}", str(r)) for i in range(patients + 50) for r in range(2 if i % 3 == 0 else 1)]
    size = len(records)
    return pd.DataFrame(
        {
            "patient": [p for p, _ in records],
            "record": [r for _, r in records],
            "age": draw.uniform(20, 90, size),
            "lactate": np.where(draw.random(size) < 0.2, np.nan, draw.uniform(0, 8, size)),
            "sex": draw.integers(0, 2, size).astype(float),
            "died": draw.integers(0, 2, size).astype(float),
        }
    )


def plans(protocol, base):
    """Every plan of the study in which a site computes something from its training patients."""
    noise = calibrate(protocol)
    kinds = ["statistics", *["training"] * protocol.rounds, "histogram"]
    for number, kind in enumerate(kinds):
        yield RoundPlan(
            study=protocol.study,
            protocol_hash=protocol.hash,
            kind=kind,
            round=number,
            rounds=protocol.rounds,
            base_model=None if kind == "statistics" else base,
            roster=[RosterEntry(site="ash", data_sheet=ZERO, declared_size=DECLARED)],
            code_versions=[CODE_VERSION],
            noise_multiplier=noise.of(kind),
            deadline_seconds=30,
            created="2026-01-01T00:00:00Z",
        )


def test_cohorts_of_999_1000_and_1001_patients_have_one_normaliser_rate_and_history(tmp_path, monkeypatch):
    protocol = private_study(**STUDY_CHANGES)
    seen: list[tuple[str, object]] = []
    private, batches = site_runtime.trainer.make_private_patient, site_runtime.trainer.PatientBatches

    def noting_private(module, optimizer, **settings):
        settings_seen = {k: v for k, v in settings.items() if k != "stream"}
        seen.append(("mechanism", settings_seen))
        return private(module, optimizer, **settings)

    def noting_batches(patients, rate, steps, stream):
        seen.append(("sampling", (rate, steps)))
        return batches(patients, rate, steps, stream)

    monkeypatch.setattr(site_runtime.trainer, "make_private_patient", noting_private)
    monkeypatch.setattr(site_runtime.trainer, "PatientBatches", noting_batches)
    left, histories, mechanisms = [], [], []
    for patients in (999, 1000, 1001):
        root = tmp_path / str(patients)
        governance = {**SITE["governance"], "declared_size": DECLARED}
        home = enrolled_site(root, governance=governance)
        config, key = load_site(home), load_split_key(home)
        holdout = frozenset(f"p{i}" for i in range(patients, patients + 50))
        freeze(home, build_cohort(rows(patients), protocol, key, holdout), protocol, key)
        assert load_cohort(home, config, protocol).patients == patients
        exchange = DirectoryExchange(root / "exchange")
        base = exchange.put(write_tensors(root / "base", initial_state(protocol)))
        seen.clear()
        said = []
        for plan in plans(protocol, base):
            home.outbox("any").parent.mkdir(parents=True, exist_ok=True)
            make_update(home, config, protocol, plan, digest(plan), exchange)
            document = (home.outbox(digest(plan)) / DOCUMENT).read_bytes()
            fields = UpdateEnvelope.model_validate_json(document).model_dump()
            said.append(
                {k: v for k, v in fields.items() if k not in ("cohort", "tensors", "ledger_head", "policy")}
            )
        left.append(said)
        mechanisms.append(list(seen))
        ledger = Ledger(home.ledger("ash"), "ash", "ash", SigningKey.load("ash", home.signing_key))
        histories.append(ledger.spends())
    assert left[0] == left[1] == left[2]
    assert histories[0] == histories[1] == histories[2] == planned_spends(protocol, calibrate(protocol))
    assert mechanisms[0] == mechanisms[1] == mechanisms[2]
    found = dict(mechanisms[0])
    assert found["mechanism"]["expected_batch_size"] == protocol.training.sample_rate * DECLARED
    assert found["sampling"] == (protocol.training.sample_rate, protocol.training.steps)
