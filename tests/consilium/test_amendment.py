"""`consilium study amend`: the amendment is a study file of its own, valid, and not looser."""

from __future__ import annotations

import json

import pytest
import yaml
from typer.testing import CliRunner

from consilium.amendment import amendment_of
from consilium.study import app
from contracts.errors import ConsiliumError
from contracts.study import load_study
from tasks.head import register_study
from tasks.home import CoordinatorHome
from tests.factories import PRIVACY, study_fields, tiny_study

BASE = tiny_study(gates=[{"metric": "auroc", "at_least": 0.7}], privacy=PRIVACY)


def call(*arguments):
    return CliRunner().invoke(app, ["amend", *(str(a) for a in arguments)])


def test_everything_is_copied_but_what_was_set():
    changes = [
        "training.steps=9",
        "privacy.delta=1e-4",
        "features.age.range=[0, 110]",
        "gates.0.at_least=0.8",
    ]
    body = amendment_of(BASE, "tiny-2", [*changes, "quality.max_out_of_range=0.02"]).body()
    assert (body.pop("study"), body.pop("product"), body.pop("amends")) == ("tiny-2", "tiny", BASE.hash)
    wanted = BASE.body()
    del wanted["study"]
    wanted["training"]["steps"], wanted["privacy"]["delta"] = 9, 1e-4
    wanted["features"][0]["range"], wanted["gates"][0]["at_least"] = [0, 110], 0.8
    assert body == wanted | {"quality": {"max_out_of_range": 0.02}}


def test_an_amendment_of_an_amendment_stays_with_the_product():
    second = amendment_of(BASE, "tiny-2", [])
    third = amendment_of(second, "tiny-3", ['gates.1={"metric": "brier", "at_most": 0.2}'])
    assert (third.product_name, third.amends, len(third.gates)) == ("tiny", second.hash, 2)


@pytest.mark.parametrize(
    ("change", "number"),
    [
        ("training.steps=0", "E101"),
        ("training.stps=3", "E101"),
        ("training.steps", "E101"),
        ("features.weight.unit=kg", "E101"),
        ("title.short=x", "E101"),
        ("title=[", "E101"),
        ("study=other", "E101"),
        ("amends=" + "0" * 64, "E101"),
        ("gates.0.at_least=0.6", "E111"),
        ("gates=[]", "E111"),
    ],
)
def test_what_is_no_valid_amendment_is_refused_with_its_field(change, number):
    with pytest.raises(ConsiliumError, match=number):
        amendment_of(BASE, "tiny-2", [change])


def test_the_written_file_is_the_amendment_of_what_is_registered(tmp_path, monkeypatch):
    monkeypatch.setenv("CONSILIUM_HOME", str(tmp_path))
    home = CoordinatorHome(tmp_path / "coordinator")
    register_study(home, BASE)
    (tmp_path / "studies").mkdir()  # the file that was run with --rounds says another number
    (tmp_path / "studies" / "tiny.yaml").write_text(yaml.safe_dump(study_fields(rounds=5)))
    out = tmp_path / "tiny-2.yaml"
    done = json.loads(call("tiny", "tiny-2", "--set", "training.steps=9", "--out", out, "--json").stdout)
    amendment = load_study(out)
    assert (amendment.hash, amendment.amends) == (done["protocol_hash"], BASE.hash)
    register_study(home, amendment)
    assert yaml.safe_load(call("tiny", "tiny-2", "--set", "training.steps=9").stdout) == amendment.body()


def test_refusals_reach_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setenv("CONSILIUM_HOME", str(tmp_path))
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(BASE.body()))
    assert "E111" in call(file, "tiny").output
    assert call(file, "tiny-2", "--out", tmp_path / "nowhere" / "x.yaml").exit_code == 2
    assert "E102" in call("unknown", "tiny-2").output
