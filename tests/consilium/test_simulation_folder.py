"""The folder of a simulation holds ledgers: what is emptied, what is refused, and a second study in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from consilium.simulate import app
from consilium.simulation import Simulation, explained, prepare, simulate_study
from consilium.simulation_folder import fresh_folder, kept_folder
from contracts.errors import ConsiliumError
from privacy.accountant import epsilon
from privacy.calibration import calibrate, planned_spends
from tests.factories import SITE, private_study, study_fields, write_site

pytestmark = pytest.mark.filterwarnings("ignore")

CAP = 4.0
FIELDS = {
    "rounds": 1,
    "training": {"steps": 2, "sample_rate": 1.0, "learning_rate": 0.5, "normalisation": "declared"},
    "validation": {"diagnostics": {"minimum_events": 1}},  # holdouts are drawn anew each time
}


def federation(folder: Path) -> Path:
    for site in ("ash", "birch"):
        governance = {**SITE["governance"], "lineage": site}
        budget = {"epsilon": CAP, "delta": 1e-3}
        write_site(folder / site, site=site, governance=governance, budget=budget)
    return folder


def test_a_folder_with_what_another_study_spent_is_never_emptied(tmp_path: Path) -> None:
    folder = fresh_folder(tmp_path / "out", "first")
    (folder / "ledger").write_text("spent")
    with pytest.raises(ConsiliumError, match=r"E107.*first"):
        fresh_folder(tmp_path / "out", "second")
    assert (folder / "ledger").exists()
    assert fresh_folder(tmp_path / "out", "first") == folder and not (folder / "ledger").exists()
    (folder / "coordinator").mkdir()
    assert kept_folder(tmp_path / "out", "second") == folder
    for study in ("first", "second"):  # each would lose the other's ledger
        with pytest.raises(ConsiliumError, match="E107"):
            fresh_folder(tmp_path / "out", study)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    for find in (fresh_folder, kept_folder):
        with pytest.raises(ConsiliumError, match="E107"):
            find(tmp_path / "mine", "first")
    with pytest.raises(ConsiliumError, match="E107"):
        kept_folder(tmp_path / "new", "first")


@pytest.mark.slow
def test_a_second_study_on_the_same_lineage_is_refused_with_every_hospitals_own_reason(
    tmp_path: Path,
) -> None:
    sites, out = federation(tmp_path / "federation"), tmp_path / "out"
    first = private_study(**FIELDS)
    simulation, _ = simulate_study(
        first, sites, fresh_folder(out, first.study), lambda text: None, release=False
    )
    keys = {name: home.signing_key.read_bytes() for name, home in simulation.sites.items()}
    second = private_study(**FIELDS, study="second")
    file = tmp_path / "second.yaml"
    file.write_text(yaml.safe_dump(study_fields(**FIELDS, study="second", privacy=second.body()["privacy"])))
    command = [str(file), "--federation", str(sites), "--out", str(out)]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 1 and json.loads(done.stdout)["error"]["number"] == "E107"
    done = CliRunner().invoke(app, [*command, "--continue", "--json"])
    error = json.loads(done.stdout)["error"]
    assert done.exit_code == 1 and error["number"] == "E506"
    both = [*planned_spends(first, calibrate(first)), *planned_spends(second, calibrate(second))]
    total = epsilon(both, 1e-3)
    for site in ("ash", "birch"):
        assert f"{site}: E401" in error["detail"]
    assert f"epsilon {total:.4f} at delta 0.001, expected at most {CAP:g}" in error["detail"]
    assert keys == {name: home.signing_key.read_bytes() for name, home in simulation.sites.items()}
    changed = CliRunner().invoke(app, [*command, "--continue", "--epsilon", "0.5", "--json"])
    assert json.loads(changed.stdout)["error"]["number"] == "E101"  # its name is taken by another protocol
    done = CliRunner().invoke(app, [*command, "--continue"])
    told = done.stderr.splitlines()
    assert told[0].startswith("1/") and not any(line in done.stdout for line in told[:3])


def test_a_quorum_that_was_missed_is_explained_by_every_hospital_and_nothing_else_is(tmp_path: Path) -> None:
    simulation = Simulation(tmp_path, private_study(), {"birch": "E205 few", "ash": "E401 much"})
    missed = explained(simulation, ConsiliumError("E506", "round 1"))
    assert missed.detail.splitlines() == ["round 1", "ash: E401 much", "birch: E205 few"]
    other = ConsiliumError("E601", "a gate")
    assert explained(simulation, other) is other


def test_the_same_homes_are_prepared_again_without_a_new_key(tmp_path: Path) -> None:
    sites, study = federation(tmp_path / "federation"), private_study(**FIELDS)
    keys = [prepare(tmp_path / "out", study, sites).sites["ash"].noise_key.read_bytes() for _ in range(2)]
    assert keys[0] == keys[1]
