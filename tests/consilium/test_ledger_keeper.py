"""Whose ledger `consilium ledger` reads, and at which delta and adjacency its numbers are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from consilium.ledger import app
from consilium.ledger_keeper import BUDGET, federation_budget
from contracts.errors import ConsiliumError
from contracts.signing import SigningKey
from privacy.accountant import Spend, epsilon
from privacy.ledger import Ledger
from site_runtime.home import SiteHome
from tasks.federation_ledger import LINEAGE, Budget, load_budget
from tasks.home import CoordinatorHome

SITE = """
site: ash
source: {connector: csv, path: rows.csv, patient: id}
governance: {institution: Ash, contact: c, lineage: everyone, declared_size: 500, approved_by: officer}
budget: {epsilon: 4.0, delta: 1.0e-5}
"""
SPEND = Spend(0.1, 1.5, 10)


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.output


def approve(home: SiteHome, study: str, **privacy: object) -> None:
    home.approval(study).parent.mkdir(exist_ok=True)
    home.approval(study).write_text(json.dumps({"study": study, "privacy": privacy}))


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    """A hospital with a study whose neighbours replace a patient, and one that the coordinator accounts."""
    home = SiteHome(tmp_path / "ash")
    key = SigningKey.generate("ash")
    key.save(home.signing_key)
    home.config.write_text(SITE)
    approve(home, "public", mode="patient", delta=1e-3, public_n=True)
    ledger = Ledger(home.ledger("everyone"), "ash", "everyone", key)
    ledger.reserve(
        study="public", plan="1" * 64, purpose="training", spend=SPEND, epsilon_cap=9.0, delta=1e-5
    )
    return home


@pytest.fixture
def coordinator(tmp_path: Path) -> CoordinatorHome:
    home = CoordinatorHome(tmp_path / "coordinator")
    key = SigningKey.generate("coordinator")
    key.save(home.signing_key)
    ledger = Ledger(home.ledger(LINEAGE), "coordinator", LINEAGE, key)
    for number in range(3):
        ledger.reserve(
            study="hospitals",
            plan=f"{number:064x}",
            purpose="aggregate",
            spend=Spend(1.0, 2.0, 1),
            epsilon_cap=50.0,
            delta=1e-3,
        )
    return home


def test_the_cap_is_held_in_add_or_remove_whatever_a_study_promises(home: SiteHome) -> None:
    for verb in ("show", "verify"):
        code, output = run(verb, "--home", home.root, "--json")
        (facts,) = json.loads(output)
        assert code == 0 and (facts["delta"], facts["adjacency"]) == (1e-5, "add-or-remove-one")
        assert facts["epsilon"] == epsilon([SPEND], 1e-5)
        assert "one patient added or removed" in " ".join(run(verb, "--home", home.root)[1].split())
    code, output = run("verify", "--home", home.root, "--adjacency", "replace-one", "--json")
    assert json.loads(output)[0]["epsilon"] == epsilon([SPEND], 1e-5, "replace-one")
    assert run("verify", "--home", home.root, "--adjacency", "other")[0] == 2


def test_the_command_that_an_export_names_gives_the_epsilon_of_the_study(
    home: SiteHome, tmp_path: Path
) -> None:
    out = tmp_path / "e.jsonl"
    code, output = run("export", "public", "--out", out, "--home", home.root, "--json")
    named = json.loads(output)["verify"].split()[2:]
    (found,) = json.loads(run(*named, "--json")[1])
    assert code == 0 and found["epsilon_study"] == epsilon([SPEND], 1e-3, "replace-one")
    before = out.read_bytes()
    code, output = run("export", "public", "--out", out, "--home", home.root, "--json")
    assert json.loads(output)["error"]["number"] == "E417" and out.read_bytes() == before
    assert run("export", "public", "--out", out, "--home", home.root, "--force")[0] == 0


def test_the_coordinators_ledger_is_shown_against_the_federations_budget(
    coordinator: CoordinatorHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent = epsilon([Spend(1.0, 2.0, 3)], 1e-3)
    monkeypatch.setenv("CONSILIUM_HOME", str(tmp_path))
    for where in ((), ("--home", coordinator.root), ("--home", tmp_path)):
        for verb in ("show", "verify"):
            code, output = run(verb, "--coordinator", *where, "--json")
            (facts,) = json.loads(output)
            assert code == 0 and facts["epsilon"] == pytest.approx(spent, abs=1e-9)
            assert (facts["lineage"], facts["unit"], facts["delta"]) == (LINEAGE, "hospital", 1e-3)
    assert not coordinator.budget.exists()  # looking writes nothing
    coordinator.budget.write_text(json.dumps({"epsilon": 20.0, "delta": 1e-2}))
    (facts,) = json.loads(run("show", "--coordinator", "--json")[1])
    assert (facts["epsilon_cap"], facts["delta"]) == (20.0, 1e-2)
    coordinator.ledger(LINEAGE).unlink()
    code, output = run("show", "--coordinator", "--json")
    assert code == 1 and json.loads(output)["error"]["number"] == "E402"
    code, output = run("show", "--coordinator", "--home", tmp_path / "none", "--json")
    assert code == 1 and json.loads(output)["error"]["number"] == "E806"


def test_a_hospital_is_told_whose_ledger_holds_a_study_of_hospital_level_privacy(home: SiteHome) -> None:
    assert "coordinator" not in run("show", "--home", home.root)[1]
    approve(home, "hospitals", mode="site", delta=1e-9)
    output = " ".join(run("show", "--home", home.root)[1].split())
    assert "hospitals: privacy per hospital, in the coordinator's ledger" in output
    (facts,) = json.loads(run("show", "--home", home.root, "--json")[1])
    assert facts["delta"] == 1e-5  # its delta is about hospitals and has no say here


def test_the_budget_is_read_as_the_coordinator_reads_it(tmp_path: Path) -> None:
    home = CoordinatorHome(tmp_path)
    assert BUDGET == (Budget().epsilon, Budget().delta) == federation_budget(home.budget)
    for text in ("{", "[]", '{"epsilon": -1}', '{"epsilon": "x"}', '{"delta": 2}'):
        home.budget.write_text(text)
        for read in (lambda: federation_budget(home.budget), lambda: load_budget(home)):
            with pytest.raises(ConsiliumError, match="E423"):
                read()
    home.budget.write_text('{"epsilon": 7}')
    assert federation_budget(home.budget) == (load_budget(home).epsilon, load_budget(home).delta)


@pytest.mark.parametrize("delta", ["0", "1", "2", "-1", "nan"])
def test_a_delta_out_of_its_bounds_is_a_usage_error(home: SiteHome, delta: str) -> None:
    for verb in ("show", "verify"):
        assert run(verb, "--home", home.root, "--delta", delta)[0] == 2


def test_what_is_not_there_is_refused_before_anything_is_computed(home: SiteHome, tmp_path: Path) -> None:
    code, output = run("show", "--home", home.root, "--lineage", "everyome", "--json")
    assert code == 1 and json.loads(output)["error"]["number"] == "E417" and "everyone" in output
    for plot in (tmp_path / "none" / "x.svg", tmp_path / "x.txt", tmp_path):
        assert run("show", "--home", home.root, "--plot", plot)[0] == 2
