"""`consilium release`: what the deployment team types."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from consilium.release import app
from release.directory import seal
from release.signature import ReleaseKey
from tasks.home import CoordinatorHome
from tasks.release_key import release_key
from tests.dossiers import PUBLISHED, approval_of, tiny_candidate


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CONSILIUM_HOME", str(tmp_path))
    key = release_key(CoordinatorHome(tmp_path / "coordinator"))
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
    public = tmp_path / "release.pub.pem"
    public.write_text(key.public.pem)
    assert call("verify", release, "--key", public).exit_code == 0
    stranger = tmp_path / "stranger.pub.pem"
    stranger.write_text(ReleaseKey.make(tmp_path / "stranger.pem").public.pem)
    refused = call("verify", release, "--key", stranger, "--json")
    assert refused.exit_code == 1 and json.loads(refused.stdout)["verified"] is False


def test_a_fingerprint_that_was_told_must_be_that_of_the_key(home):
    _, release, key = home
    told = key.public.fingerprint
    spoken = ":".join(told[i : i + 2] for i in range(0, 64, 2)).upper()
    assert call("verify", release, "--fingerprint", spoken).exit_code == 0
    refused = call("verify", release, "--fingerprint", "0" * 64)
    assert refused.exit_code == 1 and "E801" in refused.output


def test_after_a_rotation_old_releases_verify_with_the_old_key_and_the_new_one_is_named_by_it(home):
    root, release, key = home
    old = root / "old.pub.pem"
    old.write_text(key.public.pem)
    done = json.loads(call("rotate-key", "--reason", "yearly", "--json").stdout)
    assert done["old"] == key.public.fingerprint != done["new"]
    assert call("verify", release).exit_code == 0  # this home knows the keys that it had
    alone = root / "new.pub.pem"
    alone.write_text(done["pem"])
    assert call("verify", release, "--key", alone).exit_code == 1
    assert call("verify", release, "--key", done["old_public"]).exit_code == 0
    assert call("verify", release, "--key", old, "--rotations", done["rotations"]).exit_code == 0
    shutil.copy(done["rotations"], release / "rotations.jsonl")
    refused = call("verify", release, "--key", old, "--rotations", release / "rotations.jsonl")
    assert refused.exit_code == 1 and "E801" in refused.output


def test_a_release_is_handed_over_with_the_key_apart(home):
    root = home[0]
    assert call("copy", "tiny", root / "out", "--key-file", root / "release.pub.pem").exit_code == 0
    assert call("verify", root / "out", "--key", root / "release.pub.pem").exit_code == 0


def test_a_key_inside_the_release_or_no_key_is_refused(home):
    _, release, key = home
    (release / "key.pem").write_text(key.public.pem)
    refused = call("verify", release, "--key", release / "key.pem")
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
