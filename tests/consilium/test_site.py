"""The hospital's own commands: they need no coordinator, say what would leave, and end with a number."""

import json
import socket
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from consilium.__main__ import app
from contracts.signing import parse_signed
from site_runtime.config import load_site
from site_runtime.consent import approve_by_scripts
from site_runtime.steps import intake
from tests.factories import POLICY, SITE, enrolled_site, study_fields, tiny_rows, tiny_study, write_site


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(study_fields()))
    return str(path)


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def answer(*arguments: str) -> tuple[int, dict]:
    result = run(*arguments, "--json")
    return result.exit_code, json.loads(result.stdout)


def test_check_prints_exactly_what_would_leave_and_keeps_nothing(tmp_path, study, monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("CONSILIUM_HOME", str(tmp_path / "home"))
    folder = write_site(tmp_path / "ash").parent
    before = sorted(tmp_path.rglob("*"))
    result = run("site", "check", str(folder), "--study", study)
    assert result.exit_code == 0, result.output
    assert sorted(tmp_path.rglob("*")) == before
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("{")]
    assert parse_signed(line).type == "DataSheet"
    for check in ("missingness", "uniqueness", "prevalence"):
        assert check in result.stdout


def test_check_of_a_cohort_that_is_not_accepted(tmp_path, study):
    rows = tiny_rows()
    folder = write_site(tmp_path / "ash", [*rows, rows[0]]).parent
    code, facts = answer("site", "check", str(folder), "--study", study)
    assert code == 1 and facts["error"]["number"] == "E206" and not facts["accepted"]
    assert "'p0'" in facts["error"]["detail"] and '"p0"' not in json.dumps(facts["leaves"])
    result = run("site", "check", str(folder), "--study", study)
    assert result.exit_code == 1 and "E206" in result.output


def test_check_of_a_source_that_cannot_be_read_shows_the_refusal(tmp_path, study):
    rows = tiny_rows()
    rows[0]["age"] = "fifty"
    code, facts = answer("site", "check", str(write_site(tmp_path / "ash", rows)), "--study", study)
    assert code == 1 and facts["error"]["number"] == "E203"
    assert "'fifty'" in facts["error"]["detail"]
    assert facts["leaves"]["type"] == "Refusal" and "fifty" not in json.dumps(facts["leaves"])


def test_check_without_a_site_file(tmp_path, study):
    code, facts = answer("site", "check", str(tmp_path / "nowhere"), "--study", study)
    assert code == 1 and facts["error"]["number"] == "E103"


@pytest.fixture
def hospital(tmp_path):
    """A hospital with two named approvers."""
    people = {**SITE["governance"], "approvers": ["Dr. A", "Dr. B"]}
    return enrolled_site(tmp_path, governance=people)


def test_two_people_approve_from_the_studys_own_page(hospital, study):
    home = ("--home", str(hospital.root))
    code, facts = answer("site", "protocol", study, *home)
    assert code == 0
    page = Path(facts["page"]).read_text()
    assert facts["code"] in page and tiny_study().hash in page
    for words in (
        "lactate",
        "mmol/L",
        "died in hospital",
        "logistic",
        "2 rounds of 3 steps",
        "norm",
        "Dr. A, Dr. B",
    ):
        assert words in page, words
    assert "default-src &#x27;none&#x27;" in page or "default-src 'none'" in page
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")
    assert facts["code"] in run("site", "protocol", study, *home).stdout
    said = [
        answer("site", "approve", study, "--by", by, "--code", facts["code"], *home)[1]
        for by in ("Dr. A", "dr. a", "Dr. B")
    ]
    assert [s.get("state") or s["error"]["number"] for s in said] == ["proposed", "E322", "approved"]
    shown = answer("site", "show", *home)[1]["studies"][0]
    assert (shown["state"], shown["by"], shown["script"]) == ("approved", "Dr. A and Dr. B", False)


def test_a_text_of_the_study_is_no_markup_on_the_page(hospital, tmp_path):
    path = tmp_path / "evil.yaml"
    path.write_text(yaml.safe_dump(study_fields(title="<img src=x onerror=alert(1)>")))
    page = Path(answer("site", "protocol", str(path), "--home", str(hospital.root))[1]["page"]).read_text()
    assert "<img" not in page and "&lt;img src=x" in page


def test_consent_from_the_command_line(hospital):
    home = str(hospital.root)
    approve_by_scripts(hospital, tiny_study())
    states = [
        answer("site", verb, *what, "--home", home)[1]["state"]
        for verb, what in (
            ("pause", ["tiny"]),
            ("resume", ["tiny"]),
            ("pause", []),
            ("resume", []),
            ("withdraw", ["tiny"]),
        )
    ]
    assert states == ["paused", "approved", "paused", "resumed", "withdrawn"]
    code, facts = answer("site", "resume", "tiny", "--home", home)
    assert code == 1 and facts["error"]["number"] == "E303"


def test_a_policy_is_shown_with_the_digest_that_rounds_record(hospital):
    code, facts = answer("site", "policy", "show", "--home", str(hospital.root))
    assert code == 0 and facts["digest"] == load_site(hospital).policy_digest
    assert facts["policy"]["dua"]["purposes"] == POLICY["dua"]["purposes"]
    assert facts["digest"] in run("site", "policy", "show", "--home", str(hospital.root)).stdout.replace(
        "\n", ""
    )


def test_policy_test_names_what_would_be_refused_and_touches_no_data(hospital, study, tmp_path):
    (tmp_path / "source" / "data.csv").unlink()
    home = ("--home", str(hospital.root))
    before = sorted(hospital.root.rglob("*"))
    code, facts = answer("site", "policy", "test", study, *home)
    assert code == 1 and [r["number"] for r in facts["rules"] if not r["passes"]] == ["E301"]
    assert sorted(hospital.root.rglob("*")) == before
    approve_by_scripts(hospital, tiny_study())
    code, facts = answer("site", "policy", "test", study, *home)
    assert (code, facts["refused"]) == (0, 0)
    value = yaml.safe_load(hospital.config.read_text())
    value["policy"] |= {"models": ["mlp"], "irb": POLICY["irb"] | {"expires": "2021-01-01"}}
    hospital.config.write_text(yaml.safe_dump(value))
    result = run("site", "policy", "test", study, *home)
    assert result.exit_code == 1
    for number in ("E308", "E316", "E323"):
        assert number in result.stdout


def test_show_lists_what_left(tmp_path):
    home = enrolled_site(tmp_path)
    approve_by_scripts(home, tiny_study())
    intake(home, "tiny")
    code, facts = answer("site", "show", "--home", str(home.root))
    assert code == 0
    assert [(r["type"], r["what"]) for r in facts["egress"]] == [("DataSheet", "accepted")]
    assert facts["egress"][0]["to"].startswith("coordinator (key ")
    assert facts["studies"][0]["state"] == "approved" and facts["studies"][0]["rounds_trained"] == 0
    assert run("site", "show", "--home", str(home.root)).exit_code == 0


def test_show_knows_what_was_spent_and_what_is_left(tmp_path):
    from contracts.signing import SigningKey
    from privacy.accountant import Spend, epsilon
    from privacy.ledger import Ledger
    from tests.factories import ZERO

    home = enrolled_site(tmp_path, budget={"epsilon": 5.0})
    private = {"mode": "patient", "epsilon": 3.0, "delta": 1e-4, "max_grad_norm": 1.0}
    approve_by_scripts(home, tiny_study(privacy=private))
    (row,) = answer("site", "show", "--home", str(home.root))[1]["privacy"]
    assert (row["epsilon_lineage"], row["left"]) == (0.0, 5.0) and not home.ledger("ash").exists()
    ledger = Ledger(home.ledger("ash"), "ash", "ash", SigningKey.load("ash", home.signing_key))
    spend = Spend(sample_rate=0.1, noise_multiplier=1.5, steps=20)
    ledger.reserve(study="tiny", plan=ZERO, purpose="training", spend=spend, epsilon_cap=5.0, delta=1e-4)
    (row,) = answer("site", "show", "--home", str(home.root))[1]["privacy"]
    assert 0 < row["epsilon_study"] == row["epsilon_lineage"] < 3
    assert row["cap_delta"] == 1e-5  # the cap holds at the hospital's own, smaller delta
    assert row["left"] == pytest.approx(5.0 - epsilon([spend], 1e-5))
    assert row["epsilon_lineage"] == pytest.approx(epsilon([spend], row["delta"]))


def test_show_asks_which_hospital_when_there_are_several(tmp_path, monkeypatch):
    monkeypatch.setenv("CONSILIUM_HOME", str(tmp_path))
    code, facts = answer("site", "show")
    assert code == 1 and facts["error"]["number"] == "E806"
    enrolled_site(tmp_path)
    assert answer("site", "show")[1]["site"] == "ash"
    assert answer("site", "show", "--site", "oak")[1]["error"]["number"] == "E806"
