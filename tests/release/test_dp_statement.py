"""The privacy statement of a release: first what is not covered, then numbers that can be composed anew."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from consilium.ledger import app as ledger_app
from release.dp_statement import dp_statement, statement
from tests.dossiers import tiny_facts
from tests.factories import study_fields, tiny_study
from tests.full_release import PRIVATE


def test_dp_statement_says_holdout_first_and_the_numbers_of_each_site():
    text = dp_statement(tiny_facts(tiny_study(privacy=PRIVATE)))
    first = re.search(r"^## (.*)", text, re.M).group(1)
    assert first == "Holdout patients: suppression, not epsilon"
    facts = tiny_facts(tiny_study(privacy=PRIVATE))
    value, ash = statement(facts), facts.site_privacy[0]
    numbers = [f"{e:.3f}" for e in (ash.epsilon_study, ash.epsilon_lineage)]
    for said in (*numbers, "0.0001", "1.2500", "rate x declared size", "add or remove one patient"):
        assert said in dp_statement(facts)
    assert value["epsilon"] == facts.epsilon and value["delta"] == 1e-4
    first = value["hospitals"][0]
    assert first["epsilon"] < first["epsilon_lineage"] and first["epsilon_beside_this_study"] > 0
    assert first["by_purpose"]["training"]["releases"] == 6
    assert value["epsilon_without_amplification"] > value["epsilon"]
    assert value["not_covered"][0].startswith("holdout patients")
    assert "What tuning cost" in text and "secret-trial" not in text
    assert "Not covered" in text and "quality verdicts" in text and "Timing" in text


def test_dp_statement_without_privacy_says_so_and_names_no_epsilon():
    text = dp_statement(tiny_facts())
    assert "trained without differential privacy" in text
    assert re.search(r"epsilon\D{0,20}\d", text) is None


def test_without_privacy_every_exact_thing_that_left_is_named():
    study = tiny_study(decision_threshold={"sensitivity": 0.9})
    facts = replace(tiny_facts(), protocol=study, threshold=0.3)
    text = " ".join(dp_statement(facts).split())
    for said in ("exact model updates", "exact normalisation statistics", "exact histogram"):
        assert said in text
    assert "histogram" not in dp_statement(tiny_facts())


def test_what_leaves_of_a_holdout_is_named_to_the_last_kind():
    text = " ".join(dp_statement(tiny_facts(tiny_study(privacy=PRIVATE))).split())
    for said in ("decision curve", "baselines", "as a range", "three bits", "exported model agrees"):
        assert said in text


@pytest.mark.parametrize("public_n", [False, True])
def test_the_command_that_the_statement_names_gives_its_numbers(tmp_path, monkeypatch, public_n):
    facts = tiny_facts(tiny_study(privacy=PRIVATE | {"public_n": public_n}))
    value = statement(facts)
    (tmp_path / "ledgers").mkdir()
    for name, data in facts.ledgers.items():
        (tmp_path / "ledgers" / f"{name}.jsonl").write_bytes(data)
    monkeypatch.chdir(tmp_path)
    for line in value["hospitals"]:
        named = value["replay"]["one_ledger"]
        named = named.replace("HOSPITAL", line["site"]).replace("KEY", line["ledger_key"])
        assert named == line["replay"] and value["replay"]["one_ledger"] in dp_statement(facts)
        done = CliRunner().invoke(ledger_app, [*shlex.split(named)[2:], "--json"])
        (replayed,) = json.loads(done.output)
        assert replayed["epsilon_study"] == pytest.approx(line["epsilon"], abs=1e-9)
        assert replayed["epsilon"] == pytest.approx(line["epsilon_lineage"], abs=1e-9)
        assert replayed["delta"] == value["delta"] and replayed["adjacency"] == value["adjacency"]


def test_an_epsilon_that_promises_little_is_said_to():
    hospitals = {"mode": "site", "epsilon": 40.0, "delta": 1e-2, "max_update_norm": 1.0}
    training = study_fields()["training"] | {"normalisation": "declared"}
    for privacy, weak in ((hospitals, True), (hospitals | {"epsilon": 5.0}, False)):
        facts = tiny_facts(tiny_study(privacy=privacy, training=training))
        assert ("promises little" in dp_statement(facts)) == weak
        assert bool(statement(facts)["caution"]) == weak
        assert "ledgers/coordinator.jsonl" in dp_statement(facts)
        assert "--delta 0.01" in statement(facts)["replay"]["one_ledger"]
