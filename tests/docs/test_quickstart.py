"""The files that the quickstart shows are what it says: two hospitals' own tables become a release."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import consilium.__main__ as cli

DOCS = Path(__file__).resolve().parents[2] / "docs"


def write_tables(folder: Path) -> None:
    """The tables of both hospitals, as each keeps them; the older and the more lactate, the more deaths."""
    draw = np.random.default_rng(0)
    for site, patients, delimiter, header in (
        ("ash", 1200, ",", ["pid", "age", "sex", "lactate", "died"]),
        ("oak", 800, ";", ["patient_no", "age", "sex", "LAC", "died"]),
    ):
        with open(folder / f"{site}.csv", "w", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerow(header)
            for patient in range(patients):
                age, lactate = draw.integers(18, 100), draw.lognormal(0.6, 0.5)
                sex = int(draw.integers(0, 2))
                died = draw.random() < 1 / (1 + np.exp(4.5 - 0.04 * age - 0.5 * lactate))
                shown = lactate if site == "ash" else lactate / 0.111
                writer.writerow(
                    [patient, age, sex if site == "ash" else "MF"[sex], f"{shown:.1f}", int(died)]
                )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reader's folder, with every file that the page shows."""
    shown = re.findall(r"```yaml\n# (\S+)\n(.*?)```", (DOCS / "quickstart.md").read_text(), re.DOTALL)
    assert [name for name, _ in shown] == ["my-question.yaml", "federation/ash.yaml", "federation/oak.yaml"]
    (tmp_path / "federation").mkdir()
    for name, text in shown:
        (tmp_path / name).write_text(text)
    write_tables(tmp_path / "federation")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONSILIUM_HOME", str(tmp_path / "home"))
    return tmp_path


def consilium(monkeypatch: pytest.MonkeyPatch, command: str) -> tuple[int, str]:
    """Run a command line as the page shows it."""
    arguments = command.split()
    monkeypatch.setattr("sys.argv", ["consilium", *arguments])
    result = CliRunner().invoke(cli.app, arguments)
    return result.exit_code, result.stdout


def test_both_hospitals_pass_their_own_check(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, text = consilium(monkeypatch, "study check my-question.yaml --json")
    assert code == 0 and json.loads(text)["privacy"]["epsilon_composed"] <= 3.0
    for site in ("ash", "oak"):
        check = f"site check federation/{site}.yaml --study my-question.yaml --json"
        code, text = consilium(monkeypatch, check)
        assert code == 0, text
        declared = json.loads(text)["leaves"]["document"]["declared_size"]
        assert json.loads(text)["local"]["training_patients"] == pytest.approx(declared, rel=0.1)


def test_without_the_conversion_the_check_says_e209(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "federation" / "oak.yaml"
    file.write_text(file.read_text().replace("lactate: {from: mg/dL, factor: 0.111}", "{}"))
    code, text = consilium(monkeypatch, "site check federation/oak.yaml --study my-question.yaml --json")
    assert code == 1 and json.loads(text)["error"]["number"] == "E209"


@pytest.mark.slow
def test_the_simulation_ends_in_a_release_that_verifies(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, text = consilium(
        monkeypatch, "simulate my-question.yaml --federation federation --out out/my-question --json"
    )
    assert code == 0, text
    found = json.loads(text)
    assert found["pooled"]["auroc"]["value"] > 0.65 and found["privacy"]["maximum"] <= 3.0
    monkeypatch.setenv("CONSILIUM_HOME", str(folder / "out" / "my-question"))
    release = "out/my-question/coordinator/releases/my-question/1.0.0"
    assert Path(found["release"]) == folder / release
    code, text = consilium(monkeypatch, f"release verify {release}")
    assert code == 0, text
