"""`consilium audit`: what an auditor reads, and the exit codes that a script acts on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from consilium import audit
from contracts.study import StudyProtocol
from privacy.audit import AttackPath, Fault
from privacy.canaries import Observation
from tests.factories import study_fields

pytestmark = pytest.mark.slow

PRIVACY = {"mode": "patient", "epsilon": 3.0, "delta": 1e-5, "max_grad_norm": 1.0}
TRAINING = {"steps": 60, "sample_rate": 0.1, "learning_rate": 0.5, "normalisation": "federated"}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write(tmp_path, privacy=PRIVACY)


def write(folder: Path, **changes: Any) -> Path:
    """Write a study of 120 steps."""
    fields = study_fields(**({"training": TRAINING, "rounds": 2} | changes))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(fields))
    return folder / "tiny.yaml"


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(audit.app, [str(a) for a in arguments])
    return result.exit_code, result.output


def test_the_sound_mechanism_is_attacked_and_nothing_is_found(study: Path, tmp_path: Path) -> None:
    picture = tmp_path / "scores.png"
    code, output = run(study, "--runs", 2, "--plot", picture, "--json")
    found = json.loads(output)
    assert code == 0 and not found["refuted"] and found["fault"] == "none"
    # What is claimed is training alone: statistics, which are not attacked, have a tenth of the study's 3.
    assert 2.0 < found["claimed_epsilon"] < 3.0
    assert (found["canaries"], found["steps"], found["sample_rate"]) == (1000, 120, 0.1)
    assert len(found["runs"]) == 2 and all(r["correct"] <= found["guesses"] for r in found["runs"])
    assert {e["fault"]: e["detection"] for e in found["expected"]}["noise-tenth"] > 0.99
    # Two records are allowed, so that the way through clipping is another than that of one record.
    assert (found["model"], found["path"], found["records"]) == ("logistic", "records", 2)
    assert found["layer"] == "network.weight"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_power_is_printed_before_the_attack_and_the_limits_of_the_audit_after(study: Path) -> None:
    code, output = run(study)
    words = re.sub(r"\s+", " ", output)
    assert code == 0
    assert words.index("simulated beforehand") < words.index("Attack on the mechanism as it is")
    assert "no violation found" in words and "can refute a claim and not prove it" in words


def test_the_path_is_that_of_the_studys_model_or_the_one_asked_for_and_is_said(tmp_path: Path) -> None:
    features = [{"name": f"hr{i}", "kind": "numeric", "unit": "1/min", "range": [20, 250]} for i in range(2)]
    lstm = write(
        tmp_path,
        privacy=PRIVACY,
        model={"name": "lstm", "time_steps": 2},
        features=features,
        subgroups=[],
        cohort={"max_records": 1},
    )
    code, output = run(lstm)
    words = re.sub(r"\s+", " ", output)
    assert code == 0 and "on path recurrent, simulated beforehand" in words
    assert "attacked: network.lstm.weight_ih_l0 of an LSTM, 1 record a patient (path recurrent)" in words
    code, output = run(lstm, "--path", "perceptron", "--json")
    assert code == 0 and json.loads(output)["path"] == "perceptron"


@pytest.mark.parametrize("fault", ["noise-off", "noise-tenth", "clip-off"])
def test_a_fault_that_was_put_in_is_found(study: Path, fault: str) -> None:
    code, output = run(study, "--fault", fault)
    assert code == 0 and "the claim is refuted" in output


def test_a_fault_that_is_missed_ends_with_its_number(study: Path) -> None:
    code, output = run(study, "--fault", "noise-half", "--canaries", 200)
    assert code == 1 and "E421" in output


def test_a_mechanism_that_leaks_more_than_it_claims_ends_with_its_number(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = audit.attack_study

    def broken(
        protocol: StudyProtocol, canaries: int, fault: Fault, progress: Any, path: AttackPath | None
    ) -> Observation:
        return sound(protocol, canaries, "noise-tenth", progress, path)

    monkeypatch.setattr(audit, "attack_study", broken)
    code, output = run(study)
    assert code == 1 and "E420" in output
    code, output = run(study, "--json")
    assert code == 1 and json.loads(output)["refuted"]


def test_a_study_without_a_patient_level_claim_is_refused(tmp_path: Path) -> None:
    code, output = run(write(tmp_path, privacy={"mode": "none"}), "--json")
    assert code == 1 and json.loads(output)["error"]["number"] == "E422"


@pytest.mark.parametrize(
    ("option", "value"), [("--fault", "gremlins"), ("--plot", "scores.txt"), ("--path", "garden")]
)
def test_what_cannot_be_done_is_said_before_anything_runs(study: Path, option: str, value: str) -> None:
    code, output = run(study, option, value)
    assert code == 2 and value in output
