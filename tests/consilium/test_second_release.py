"""A product's further releases: amendments on the same hospitals, compared, and gone back from."""

from __future__ import annotations

import json
import subprocess

import pytest
import yaml
from typer.testing import CliRunner

import consilium.release
import consilium.simulate
import consilium.study
from consilium.output import screen
from release.directory import read_manifest
from tests.factories import SITE, study_fields, tiny_rows, write_site

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

TRAINING = {"steps": 3, "sample_rate": 0.5, "learning_rate": 0.5, "normalisation": "declared"}
FEW = {"diagnostics": {"minimum_events": 1}}  # holdouts are drawn anew each time
GATE = {"metric": "brier", "at_most": 0.5}


def call(app, *arguments):
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == 0, done.output
    return done


def called(app, *arguments):
    return json.loads(call(app, *arguments, "--json").stdout)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A home with three releases: a study, an amendment that trains longer, one after new data at ash."""
    root = tmp_path_factory.mktemp("two")
    patch = pytest.MonkeyPatch()
    patch.setenv("CONSILIUM_HOME", str(root / "home"))
    federation = root / "federation"
    for site in ("ash", "birch"):
        governance = {**SITE["governance"], "lineage": site}
        write_site(federation / site, site=site, governance=governance)
    first = root / "tiny.yaml"
    first.write_text(yaml.safe_dump(study_fields(rounds=1, training=TRAINING, gates=[GATE], validation=FEW)))
    where = ("--federation", federation, "--out", root / "home")
    shown = [called(consilium.simulate.app, first, *where)]
    for number, source in ((2, "tiny"), (3, "tiny-2")):
        amended = root / f"tiny-{number}.yaml"
        if number == 3:
            write_site(
                federation / "ash", tiny_rows(150), governance={**SITE["governance"], "lineage": "ash"}
            )
        steps = f"training.steps={3 * number}"
        call(consilium.study.app, "amend", source, f"tiny-{number}", "--set", steps, "--out", amended)
        shown.append(called(consilium.simulate.app, amended, *where, "--continue"))
    yield root / "home", shown
    patch.undo()


def test_versions_follow_from_what_really_changed(two):
    home, shown = two
    manifests = [
        read_manifest(home / "coordinator" / "releases" / "tiny" / v) for v in ("1.0.0", "1.0.1", "1.1.0")
    ]
    assert [m.study for m in manifests] == ["tiny", "tiny-2", "tiny-3"]
    assert [list(m.change.changed) for m in manifests] == [[], ["weights"], ["weights", "data"]]
    cohorts = [{d.site: d.cohort for d in m.lineage.data} for m in manifests]
    assert cohorts[0] == cohorts[1]  # the same records are the same data, whatever the study is called
    assert cohorts[2]["ash"] != cohorts[1]["ash"] and cohorts[2]["birch"] == cohorts[1]["birch"]
    assert shown[1]["release"].endswith("tiny/1.0.1")
    assert read_manifest(home / "coordinator" / "releases" / "tiny" / "1.0.1").change.since == "1.0.0"


def test_the_second_is_evaluated_beside_the_first_on_the_same_holdout(two):
    home, _ = two
    coordinator = home / "coordinator"
    plan_digest = json.loads((coordinator / "studies" / "tiny-2" / "head.json").read_text())["evaluation"]
    signed = json.loads((coordinator / "studies" / "tiny-2" / "plans" / f"{plan_digest}.json").read_text())
    first = next(
        f for f in read_manifest(coordinator / "releases" / "tiny" / "1.0.0").files if f.path == "model.onnx"
    )
    assert signed["document"]["baselines"] == {"previous": first.sha256, "first": first.sha256}
    n = [
        json.loads((coordinator / "releases" / "tiny" / v / "validation.json").read_text())["birch"]["n"]
        for v in ("1.0.0", "1.0.1", "1.1.0")
    ]
    assert n[0] == n[1] == n[2]


def test_diff_shows_hospitals_side_by_side_and_what_changed(two, monkeypatch):
    found = called(consilium.release.app, "diff", "tiny@1.0.0", "tiny@v1.0.1")
    assert (found["change"]["level"], found["change"]["changed"]) == ("patch", ["weights"])
    assert found["protocol"] == [{"field": "training.steps", "a": 3, "b": 6}]
    assert {row["hospital"] for row in found["metrics"]} == {"pooled", "ash", "birch"}
    for row in found["metrics"]:
        assert row["difference"] == pytest.approx(row["b"]["value"] - row["a"]["value"])
    assert all(row["same_cohort"] for row in found["data"])
    assert "model.onnx" in found["files"]["changed"]
    same = called(consilium.release.app, "diff", "tiny@1.0.0", "tiny@1.0.0")
    assert same["change"]["level"] == "none" and same["protocol"] == same["facts"] == []
    monkeypatch.setattr(screen, "_width", 100)
    text = call(consilium.release.app, "diff", "tiny@1.0.0", "tiny").stdout
    assert "minor" in text and "birch" in text and "training.steps" in text
    assert max(map(len, text.splitlines())) <= 100
    monkeypatch.setattr(screen, "_width", 80)
    text = call(consilium.release.app, "diff", "tiny@1.0.0", "tiny").stdout
    assert "sensitivity" in text and "observed expected" in text  # not broken to make room
    assert "created" not in call(consilium.release.app, "list").stdout  # rather than a date that is cut


def test_going_back_makes_the_earlier_release_current_and_the_next_one_replaces_it(two):
    home, _ = two
    app = consilium.release.app
    assert [(r["version"], r["current"]) for r in called(app, "list")] == [
        ("1.0.0", False), ("1.0.1", False), ("1.1.0", True),
    ]  # fmt: skip
    done = called(app, "rollback", "tiny", "1.0.1", "--reason", "Alerts doubled.", "--by", "Dr Back")
    assert (done["version"], done["instead_of"], done["by"]) == ("1.0.1", "1.1.0", "Dr Back")
    assert [r["version"] for r in called(app, "list") if r["current"]] == ["1.0.1"]
    assert called(app, "show", "tiny")["version"] == "1.0.1"
    assert called(app, "copy", "tiny", home.parent / "handed-over")["version"] == "1.0.1"
    tags = ["git", "tag", "--list", "tiny#released#*"]
    listed = subprocess.run(tags, cwd=home / "coordinator" / "registry", capture_output=True, text=True)
    assert len(listed.stdout.split()) == 4
    unknown = CliRunner().invoke(app, ["rollback", "tiny", "9.0.0", "--reason", "r", "--by", "b"])
    assert unknown.exit_code == 1 and "E706" in unknown.output
    broken = home / "coordinator" / "releases" / "tiny" / "1.0.0" / "README.txt"
    broken.write_bytes(broken.read_bytes() + b" ")
    refused = CliRunner().invoke(app, ["rollback", "tiny", "1.0.0", "--reason", "r", "--by", "b"])
    assert refused.exit_code == 1 and "E701" in refused.output
    assert [r["version"] for r in called(app, "list") if r["current"]] == ["1.0.1"]
