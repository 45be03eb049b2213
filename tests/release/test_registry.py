"""The registry of releases: git, DVC and GTO, whatever the machine's own configuration."""

from __future__ import annotations

import subprocess

import pytest

from release.directory import seal
from release.registry import next_version, register, releases
from release.signature import ReleaseKey
from tests.dossiers import PUBLISHED, approval_of, tiny_candidate


@pytest.fixture
def published(tmp_path):
    candidate, manifest = tiny_candidate(tmp_path / "work")
    target = tmp_path / "coordinator" / "releases" / "tiny" / "1.0.0"
    seal(candidate, target, [approval_of(manifest)], ReleaseKey.make(tmp_path / "release.pem"), PUBLISHED)
    return tmp_path / "coordinator", target


def git(folder, *arguments):
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.split("\n")


@pytest.mark.slow
def test_registering_tags_version_and_stage_once_without_any_global_configuration(published, monkeypatch):
    home, release = published
    monkeypatch.setenv("HOME", str(home / "nobody"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    registry = home / "registry"
    assert register(registry, release) == "tiny@v1.0.0"
    commits = git(registry, "log", "--format=%an %s")
    assert register(registry, release) == "tiny@v1.0.0"
    assert git(registry, "log", "--format=%an %s") == commits
    assert set(git(registry, "tag")) - {""} == {"tiny@v1.0.0", "tiny#released#1"}
    assert not (home / "nobody").exists()
    tracked = git(registry, "ls-files")
    assert "releases/tiny.dvc" in tracked and not any("model.onnx" in name for name in tracked)
    assert "config.local" not in " ".join(tracked)
    assert "analytics = false" in (registry / ".dvc" / "config").read_text()
    # The bytes are in the remote: a lost working copy comes back.
    assert sum(path.is_file() for path in (home / "registry-storage").rglob("*")) >= 9


def test_releases_are_listed_in_the_order_of_their_versions(published):
    home, release = published
    for version in ("1.0.10", "1.0.9"):
        target = release.parent / version
        target.mkdir()
        manifest = (release / "manifest.json").read_text().replace('"1.0.0"', f'"{version}"')
        (target / "manifest.json").write_text(manifest)
    (release.parent / ".1.1.0-half").mkdir()
    assert [r.manifest.version for r in releases(home / "releases")] == ["1.0.0", "1.0.9", "1.0.10"]
    assert releases(home / "none") == []


def test_version_follows_from_what_changed(published):
    last = releases(published[0] / "releases")[0].manifest
    same = {"protocol_hash": last.protocol_hash, "sites": last.sites}
    assert next_version([], **same) == "1.0.0"
    assert next_version([last], **same) == "1.0.1"
    assert next_version([last], **same | {"sites": ["ash"]}) == "1.1.0"
    assert next_version([last], **same | {"protocol_hash": "1" * 64}) == "2.0.0"
    ninth = last.model_copy(update={"version": "1.0.9"})
    tenth = last.model_copy(update={"version": "1.0.10"})
    assert next_version([tenth, last, ninth], **same) == "1.0.11"
