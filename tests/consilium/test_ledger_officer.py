"""`consilium ledger` restore, write-off, rotate and export: refused clearly, asked before, told after."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

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
budget: {epsilon: 4.0}
"""
SPEND = Spend(0.1, 1.5, 10)
WHO = ("--officer", "Dr. [A.] Smith", "--reason", "two trials [by hand]")


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    home = SiteHome(tmp_path / "ash")
    SigningKey.generate("ash").save(home.signing_key)
    home.config.write_text(SITE)
    reserve(home, "demo", 1)
    return home


def ledger_of(home: SiteHome) -> Ledger:
    return Ledger(home.ledger("everyone"), "ash", "everyone", SigningKey.load("ash", home.signing_key))


def reserve(home: SiteHome, study: str, number: int) -> None:
    plan = {"study": study, "plan": f"{number:064x}", "purpose": "training"}
    ledger_of(home).reserve(**plan, spend=SPEND, epsilon_cap=90.0, delta=1e-5)


def run(home: SiteHome, *arguments: object, answer: str | None = None) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in (*arguments, "--home", home.root)], input=answer)
    return result.exit_code, result.output


def run_json(home: SiteHome, *arguments: object) -> Any:
    code, output = run(home, *arguments, "--json")
    value = json.loads(output)
    assert (code == 1) == ("error" in value)
    return value


def test_a_write_off_is_shown_with_who_and_why(home: SiteHome) -> None:
    done = run_json(
        home, "write-off", *WHO, "--spend", "0.2,2,7", "--spend", "1,9,1", "--study", "demo", "--yes"
    )
    assert [e["kind"] for e in done["entries"]] == ["write-off"] * 2 and done["length"] == 4
    charged = [SPEND, Spend(0.2, 2.0, 7), Spend(1.0, 9.0, 1)]
    assert ledger_of(home).spends("demo") == charged
    (facts,) = run_json(home, "show")
    assert facts["epsilon"] == epsilon(charged, 1e-5)
    assert [e["kind"] for e in facts["entries"]] == ["reserve", "write-off", "write-off"]
    assert {d["officer"] for d in facts["decisions"]} == {"Dr. [A.] Smith"}
    code, text = run(home, "show")
    assert code == 0 and "Dr. [A.]" in text and "of the cap" in text


@pytest.mark.parametrize(
    "spend",
    ["", "0.1,1.5", "0.1;1.5;10", "2,1.5,10", "0.1,0,10", "0.1,nan,1", "0.1,1.5,0", f"0.1,1.5,{2**60}"],
)
def test_a_charge_that_is_none_is_refused(home: SiteHome, spend: str) -> None:
    before = home.ledger("everyone").read_bytes()
    refusal = run_json(home, "write-off", *WHO, "--spend", spend, "--yes")
    assert refusal["error"]["number"] == "E417" and "RATE,SIGMA,STEPS" in refusal["error"]["detail"]
    assert home.ledger("everyone").read_bytes() == before


@pytest.mark.parametrize(
    "command",
    [
        ("write-off", "--spend", "0.2,2,7"),
        ("restore", "--head", "e" * 64, "--nothing-lost"),
        ("rotate",),
    ],
)
def test_nothing_is_decided_without_a_yes(home: SiteHome, command: tuple[str, ...]) -> None:
    before = home.ledger("everyone").read_bytes(), home.signing_key.read_bytes()
    for answer in ("n\n", None):  # None: there is no terminal, and nothing to read
        code, output = run(home, *command, *WHO, answer=answer)
        assert code == 1 and "E417" in output and "nobody confirmed it" in output
    assert run_json(home, *command, *WHO)["error"]["number"] == "E417"
    assert (home.ledger("everyone").read_bytes(), home.signing_key.read_bytes()) == before
    assert run(home, *command, *WHO, answer="y\n")[0] == 0
    assert home.ledger("everyone").read_bytes() != before[0]


@pytest.mark.parametrize(
    "command",
    [("write-off", "--spend", "1,9,1"), ("restore", "--head", "e" * 64, "--spend", "1,9,1")],
)
def test_a_mistyped_lineage_begins_no_ledger(home: SiteHome, command: tuple[str, ...]) -> None:
    refusal = run_json(home, *command, *WHO, "--lineage", "everyome", "--yes")
    assert refusal["error"]["number"] == "E417" and not home.ledger("everyome").exists()


def test_after_a_rollback_a_restore_satisfies_the_head_that_was_seen(home: SiteHome, tmp_path: Path) -> None:
    folder = home.ledger("everyone").parent
    shutil.copytree(folder, tmp_path / "backup")
    reserve(home, "demo", 2)
    seen = ledger_of(home).head
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "backup", folder)
    assert run_json(home, "verify", "--head", seen)["error"]["number"] == "E407"
    for wrong in ((), ("--nothing-lost", "--spend", "1,9,1"), ("--spend", "x")):
        assert run_json(home, "restore", *WHO, "--head", seen, *wrong, "--yes")["error"]["number"] == "E417"
    assert (
        run_json(home, "restore", *WHO, "--head", "short", "--nothing-lost", "--yes")["error"]["number"]
        == "E417"
    )
    done = run_json(home, "restore", *WHO, "--head", seen, "--spend", "0.1,1.5,10", "--yes")
    assert [e["kind"] for e in done["entries"]] == ["write-off", "restore"]
    (result,) = run_json(home, "verify", "--head", seen)
    assert result["epsilon"] == epsilon([SPEND] * 2, 1e-5)
    assert (result["restores"], result["write_offs"]) == (1, 1)
    assert (
        run_json(home, "restore", *WHO, "--head", seen, "--nothing-lost", "--yes")["error"]["number"]
        == "E417"
    )


def test_a_refused_restore_prints_the_command_that_charges_what_still_stands_there(home: SiteHome) -> None:
    for number in range(2, 6):
        reserve(home, "demo", number)
    seen, path = ledger_of(home).head, home.ledger("everyone")
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"steps":10', b'"steps":11')
    path.write_bytes(b"".join(lines))
    for too_little in (("--spend", "1,10000,1"), ("--nothing-lost",), ("--spend-found",)):
        refusal = run_json(home, "restore", *WHO, "--head", seen, *too_little, "--yes")["error"]
        assert refusal["number"] == "E417" and "0.1,1.5,11" in refusal["detail"]
        assert path.read_bytes() == b"".join(lines)
    command = shlex.split(refusal["detail"].splitlines()[-1])
    assert command[:3] == ["consilium", "ledger", "restore"] and "--spend-found" in command
    result = CliRunner().invoke(app, [*command[2:], "--yes", "--json"])
    assert result.exit_code == 0, result.output
    entries = json.loads(result.output)["entries"]
    assert [e["kind"] for e in entries] == [*["write-off"] * 4, "restore"]
    assert ledger_of(home).spends("demo") == [SPEND, *[SPEND] * 3, Spend(0.1, 1.5, 11)]
    assert run_json(home, "verify", "--head", seen)[0]["epsilon"] == epsilon([Spend(0.1, 1.5, 51)], 1e-5)


@pytest.mark.parametrize("line", [2, 4])
def test_a_ledger_damaged_in_an_interrupted_rotation_is_restored_and_then_handed_over(
    home: SiteHome, line: int
) -> None:
    new = SigningKey.generate("ash")
    new.save(home.signing_key.parent / "sign-next.pem")
    ledger = ledger_of(home)
    ledger.rotate(new, officer="O", reason="R")
    ledger.write_off(Spend(0.2, 2.0, 7), officer="O", reason="R")
    seen, path = ledger.head, home.ledger("everyone")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(
        b"".join(lines).replace(lines[line - 1], lines[line - 1].replace(b'"steps"', b'"stebs"'))
    )
    assert run_json(home, "rotate", *WHO, "--yes")["error"]["number"] == "E402"
    charge = "0.1,1.5,10" if line == 2 else "0.2,2,7"
    run_json(home, "restore", *WHO, "--head", seen, "--spend-found", "--spend", charge, "--yes")
    run_json(home, "rotate", *WHO, "--yes")
    assert sorted(ledger_of(home).spends()) == [SPEND, Spend(0.2, 2.0, 7)]
    assert SigningKey.load("ash", home.signing_key).public == new.public
    assert "error" not in run_json(home, "verify", "--head", seen)[0]


def test_several_charges_of_which_one_cannot_be_composed_write_none(home: SiteHome) -> None:
    before = home.ledger("everyone").read_bytes()
    charges = ("--spend", "0.2,2,7", "--spend", "0.1,0.04,1")
    refusal = run_json(home, "write-off", *WHO, *charges, "--yes")["error"]
    assert refusal["number"] == "E417" and "no epsilon" in refusal["detail"]
    assert home.ledger("everyone").read_bytes() == before


def test_after_a_rotation_old_and_new_key_verify_and_the_coordinator_is_mentioned(home: SiteHome) -> None:
    old = SigningKey.load("ash", home.signing_key).public
    code, text = run(home, "rotate", *WHO, "--yes")
    assert code == 0 and "coordinator" in text
    new = SigningKey.load("ash", home.signing_key).public
    (result,) = run_json(home, "verify")
    assert result["keys"] == [old, new] and result["rotations"] == 1
    for public in (old, new):
        arguments = ("verify", "--file", home.ledger("everyone"), "--public", public)
        assert CliRunner().invoke(app, [str(a) for a in arguments]).exit_code == 0


def test_an_interrupted_rotation_is_named_by_show_and_verify(home: SiteHome) -> None:
    ledger_of(home).rotate(SigningKey.generate("ash"), officer="O", reason="R")
    for verb in ("show", "verify"):
        refusal = run_json(home, verb)["error"]
        assert refusal["number"] == "E402" and "consilium ledger rotate" in refusal["detail"]


def test_an_excerpt_is_exported_and_verified_by_somebody_else(home: SiteHome, tmp_path: Path) -> None:
    reserve(home, "hidden", 2)
    out = tmp_path / "excerpt.jsonl"
    done = run_json(home, "export", "demo", "--out", out)
    assert done["head"] == ledger_of(home).head and done["bytes"] == out.stat().st_size
    assert "hidden" not in out.read_text()
    public = SigningKey.load("ash", home.signing_key).public
    verify = ["verify", "--file", str(out), "--public", public, "--excerpt", "--json"]
    result = CliRunner().invoke(app, verify)
    (facts,) = json.loads(result.output)
    assert result.exit_code == 0 and facts["study"] == "demo" and facts["plans"] == [f"{1:064x}"]
    assert facts["epsilon_study"] == epsilon([SPEND], 1e-5) < facts["epsilon"]
    out.write_bytes(out.read_bytes().replace(b'"steps":10', b'"steps":1'))
    error = json.loads(CliRunner().invoke(app, verify).output)["error"]
    assert error["number"] == "E402" and "line 2" in error["detail"]
    assert run_json(home, "export", "unknown", "--out", out)["error"]["number"] == "E102"


def test_a_long_ledger_is_one_line_per_study_and_purpose(home: SiteHome) -> None:
    for number in range(2, 32):
        reserve(home, "demo" if number % 3 else "second", number)
    code, short = run(home, "show", "--delta", 1e-5)
    assert code == 0 and short.count("demo") == 1 and short.count("second") == 1 and "--all" in short
    code, long = run(home, "show", "--delta", 1e-5, "--all")
    assert code == 0 and long.count("demo") == 21 and long.count("second") == 10
    (facts,) = run_json(home, "show", "--delta", 1e-5)
    assert len(facts["entries"]) == 31 and facts["entries"][-1]["epsilon_so_far"] == facts["epsilon"]
    assert {g["study"]: (g["entries"], g["steps"]) for g in facts["by_study"]} == {
        "demo": (21, 210),
        "second": (10, 100),
    }


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_plot_is_drawn_beside_the_table(home: SiteHome, tmp_path: Path, suffix: str) -> None:
    run(home, "write-off", *WHO, "--spend", "0.2,2,7", "--yes")
    run(home, "rotate", *WHO, "--yes")
    target = tmp_path / f"epsilon{suffix}"
    assert run(home, "show", "--plot", target)[0] == 0
    data = target.read_bytes()
    if suffix == ".png":
        assert data.startswith(b"\x89PNG")
    else:
        assert all(word in data.decode() for word in ("cap 4", "lineage everyone", "write-off", "new key"))
    assert run(home, "show", "--plot", tmp_path / "epsilon.doc")[0] == 2
