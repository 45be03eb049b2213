"""`consilium ledger`: what a hospital and an auditor see, and that damage ends with its number."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from consilium.ledger import app
from contracts.signing import SigningKey
from privacy.accountant import Spend, epsilon
from privacy.ledger import Ledger
from site_runtime.home import SiteHome

SITE = """
site: ash
source: {connector: csv, path: rows.csv, patient: id}
governance: {institution: Ash, contact: c, lineage: everyone, declared_size: 500, approved_by: officer}
budget: {epsilon: 4.0, delta: 1.0e-4}
"""
SPENDS = [Spend(1.0, 9.0, 1), Spend(0.1, 1.5, 10), Spend(0.1, 1.5, 10)]


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    home = SiteHome(tmp_path / "ash")
    key = SigningKey.generate("ash")
    key.save(home.signing_key)
    home.config.write_text(SITE)
    home.approval("demo").parent.mkdir()
    home.approval("demo").write_text(json.dumps({"privacy": {"mode": "patient", "delta": 1e-4}}))
    ledger = Ledger(home.ledger("everyone"), "ash", "everyone", key)
    for i, spend in enumerate(SPENDS):
        ledger.reserve(
            study="demo", plan=f"{i:064x}", purpose="training", spend=spend, epsilon_cap=9.0, delta=1e-4
        )
    ledger.commit(f"{1:064x}")
    return home


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.output


def test_show_gives_epsilon_over_time_against_the_cap(home: SiteHome) -> None:
    code, output = run("show", "--home", home.root, "--json")
    assert code == 0
    (facts,) = json.loads(output)
    assert [e["epsilon_so_far"] for e in facts["entries"]] == [
        epsilon(SPENDS[: i + 1], 1e-4) for i in range(3)
    ]
    assert [e["delivered"] for e in facts["entries"]] == [False, True, False]
    assert facts["epsilon_cap"] == 4.0 and facts["epsilon_left"] == 4.0 - facts["epsilon"]
    code, output = run("show", "--home", home.root)
    assert code == 0 and f"{facts['epsilon']:.3f}" in output


def test_verify_replays_and_finds_the_head(home: SiteHome) -> None:
    code, output = run("verify", "--home", home.root, "--json")
    (result,) = json.loads(output)
    assert code == 0 and result["entries"] == 5 and result["epsilon"] == epsilon(SPENDS, 1e-4)
    assert run("verify", "--home", home.root, "--head", result["head"])[0] == 0
    code, output = run("verify", "--home", home.root, "--head", "f" * 64, "--json")
    assert code == 1 and json.loads(output)["error"]["number"] == "E407"


def test_an_auditor_verifies_the_triples_without_the_openings(home: SiteHome, tmp_path: Path) -> None:
    lines = home.ledger("everyone").read_text().splitlines()
    shown = tmp_path / "shown.jsonl"
    shown.write_text("".join(json.dumps({"entry": json.loads(line)["entry"]}) + "\n" for line in lines))
    public = SigningKey.load("ash", home.signing_key).public
    code, output = run("verify", "--file", shown, "--public", public, "--delta", 1e-4, "--json")
    assert code == 0 and json.loads(output)[0]["epsilon"] == epsilon(SPENDS, 1e-4)
    other = SigningKey.generate("ash").public
    code, output = run("verify", "--file", shown, "--public", other, "--json")
    assert code == 1 and json.loads(output)["error"]["number"] == "E402"


@pytest.mark.parametrize("damage", ["changed", "deleted", "cut"])
@pytest.mark.parametrize("verb", ["show", "verify"])
def test_damage_ends_with_its_number_and_changes_nothing(home: SiteHome, damage: str, verb: str) -> None:
    path = home.ledger("everyone")
    good = path.read_bytes()
    if damage == "changed":
        path.write_bytes(good.replace(b'"steps":10', b'"steps":1', 1))
    elif damage == "deleted":
        path.unlink()
    else:
        path.write_bytes(good[: good.rstrip(b"\n").rfind(b"\n") + 1])
    before = path.read_bytes() if path.exists() else None
    code, output = run(verb, "--home", home.root, "--json")
    assert code == 1 and json.loads(output)["error"]["number"] == "E402"
    assert (path.read_bytes() if path.exists() else None) == before


def test_the_light_modules_import_nothing_heavy() -> None:
    modules = (
        "consilium.ledger, privacy.accountant, privacy.calibration, privacy.ledger, "
        "privacy.stream, privacy.statistics"
    )
    heavy = ("torch", "opacus", "airflow", "great_expectations", "dvc", "pandas")
    code = f"import sys, {modules}; print([m for m in {heavy!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
