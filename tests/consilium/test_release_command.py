"""`consilium release`: what the deployment team types."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from consilium.release import app
from contracts.signing import SigningKey
from release.directory import seal
from tests.dossiers import PUBLISHED, approval_of, tiny_candidate


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CONSILIUM_HOME", str(tmp_path))
    key = SigningKey.generate("coordinator")
    key.save(tmp_path / "coordinator" / "keys" / "sign.pem")
    candidate, manifest = tiny_candidate(tmp_path / "work")
    release = tmp_path / "coordinator" / "releases" / "tiny" / "1.0.0"
    seal(candidate, release, [approval_of(manifest)], key, PUBLISHED)
    return tmp_path, release, key


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_list_is_objects_with_path_and_version(home):
    listed = json.loads(call("list", "--json").stdout)
    assert [(r["path"], r["version"], r["approved_by"]) for r in listed] == [
        (str(home[1]), "1.0.0", "Dr Test")
    ]


def test_verify_trusts_this_home_or_the_given_key_and_nothing_else(home, tmp_path):
    _, release, key = home
    assert call("verify", release).exit_code == 0
    assert call("verify", release, "--key", key.public).exit_code == 0
    (tmp_path / "coordinator.pub").write_text(key.public + "\n")
    assert call("verify", release, "--key", tmp_path / "coordinator.pub").exit_code == 0
    stranger = SigningKey.generate("coordinator").public
    refused = call("verify", release, "--key", stranger, "--json")
    assert refused.exit_code == 1 and json.loads(refused.stdout)["verified"] is False


def test_a_key_inside_the_release_or_no_key_is_refused(home):
    _, release, key = home
    (release / "key.pub").write_text(key.public)
    refused = call("verify", release, "--key", release / "key.pub")
    assert refused.exit_code == 1 and "E801" in refused.output
    assert call("verify", release, "--key", "nonsense").exit_code == 1


def test_without_a_coordinator_here_a_key_must_be_given(home, tmp_path, monkeypatch):
    monkeypatch.setenv("CONSILIUM_HOME", str(tmp_path / "elsewhere"))
    refused = call("verify", home[1])
    assert refused.exit_code == 1 and "E801" in refused.output
    assert json.loads(call("list", "--json").stdout) == []


def test_a_changed_byte_is_named_with_its_number(home):
    path = home[1] / "validation.html"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    refused = call("verify", home[1])
    assert refused.exit_code == 1 and "E701" in refused.output and "validation.html" in refused.output


def test_show_prints_the_manifest(home):
    assert json.loads(call("show", home[1], "--json").stdout)["study"] == "tiny"
    assert "Dr Test" in call("show", home[1]).output
    assert call("show", home[0] / "nowhere").exit_code == 1
