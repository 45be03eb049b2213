"""The registry of releases: git, DVC and GTO, whatever the machine's own configuration."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from contracts.errors import ConsiliumError
from contracts.release import Change
from release.directory import seal, write_candidate
from release.registry import assignments, current, register, releases, restore, rollback
from release.signature import ReleaseKey
from tests.dossiers import PUBLISHED, approval_of, tiny_candidate, tiny_facts, tiny_onnx


@pytest.fixture
def published(tmp_path):
    candidate, manifest = tiny_candidate(tmp_path / "work")
    target = tmp_path / "coordinator" / "releases" / "tiny" / "1.0.0"
    seal(
        candidate,
        target,
        [approval_of(manifest)],
        ReleaseKey.make(tmp_path / "coordinator" / "release.pem"),
        PUBLISHED,
    )
    return tmp_path / "coordinator", target


def publish_next(home, version: str, scale: float):
    """A further release of the product, with another model."""
    work = home / "work"
    work.mkdir(exist_ok=True)
    facts = replace(tiny_facts(), version=version, change=Change(level="patch", since="1.0.0"))
    manifest = write_candidate(work / "candidate", facts, tiny_onnx(work / "model.onnx", scale))
    target = home / "releases" / "tiny" / version
    seal(
        work / "candidate", target, [approval_of(manifest)], ReleaseKey.load(home / "release.pem"), PUBLISHED
    )
    return target


def git(folder, *arguments):
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.split("\n")


@pytest.mark.slow
def test_registering_tags_version_and_stage_once_without_any_global_configuration(published, monkeypatch):
    home, release = published
    monkeypatch.setenv("HOME", str(home / "nobody"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    registry = home / "registry"
    assert current(registry, "tiny") is None
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


@pytest.mark.slow
def test_every_version_is_brought_back_and_a_rollback_is_written_down(published, tmp_path):
    home, first = published
    registry = home / "registry"
    second = publish_next(home, "1.0.1", 0.02)
    register(registry, first)
    git(registry, "checkout", "--quiet", "tiny@v1.0.0")  # as somebody may leave it who looked at a version
    register(registry, second)
    assert git(registry, "log", "--format=%s", "main")[:2] == ["Release tiny 1.0.1", "Release tiny 1.0.0"]
    assert current(registry, "tiny") == "1.0.1"

    # Each version comes back byte for byte from the storage alone.
    for path in (registry / ".dvc" / "cache").rglob("*"):
        if path.is_file():
            path.chmod(0o644)
            path.unlink()
    restore(registry, "tiny", "1.0.0", tmp_path / "back")
    names = sorted(path.name for path in first.rglob("*") if path.is_file())
    assert sorted(path.name for path in (tmp_path / "back").rglob("*") if path.is_file()) == names
    for name in ("manifest.json", "model.onnx"):
        assert (tmp_path / "back" / name).read_bytes() == (first / name).read_bytes()
    with pytest.raises(ConsiliumError, match="E706"):
        restore(registry, "tiny", "9.0.0", tmp_path / "none")

    listed = {release.manifest.version: release for release in releases(home / "releases")}
    seen = []
    said = {"reason": "Alerts doubled # at\nnight.", "by": "Dr Späth", "time": "2026-02-01T00:00:00Z"}
    rollback(registry, listed["1.0.0"], **said, verify=seen.append)
    assert seen == [first] and current(registry, "tiny") == "1.0.0"
    register(registry, second)  # a run that is repeated takes nothing back
    assert current(registry, "tiny") == "1.0.0"
    history = assignments(registry, "tiny")
    assert [(a.number, a.version) for a in history] == [(1, "1.0.0"), (2, "1.0.1"), (3, "1.0.0")]
    found = history[2].rollback
    assert history[0].rollback is None and found.model_dump() == {
        "version": "1.0.0",
        "instead_of": "1.0.1",
        **said,
    }
    shown = subprocess.run(
        [sys.executable, "-c", "from gto.cli import app; app()", "show", "tiny#released"],
        cwd=registry, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "v1.0.0" in shown.stdout and "v1.0.1" not in shown.stdout  # GTO itself agrees

    with pytest.raises(ConsiliumError, match="E706"):
        rollback(registry, listed["1.0.0"], **said, verify=seen.append)

    def refuse(path):
        raise ConsiliumError("E701", str(path))

    with pytest.raises(ConsiliumError, match="E701"):
        rollback(registry, listed["1.0.1"], **said, verify=refuse)
    assert current(registry, "tiny") == "1.0.0"


def test_what_was_never_registered_cannot_be_gone_back_to(published):
    home, _ = published
    (release,) = releases(home / "releases")
    with pytest.raises(ConsiliumError, match="E706"):
        rollback(home / "registry", release, reason="r", by="b", time=PUBLISHED, verify=print)


def test_releases_are_listed_in_the_order_of_their_versions(published):
    home, release = published
    for version in ("1.0.10", "1.0.9"):
        target = release.parent / version
        target.mkdir()
        manifest = (release / "manifest.json").read_text().replace('"1.0.0"', f'"{version}"')
        (target / "manifest.json").write_text(manifest)
    (release.parent / ".1.1.0-half").mkdir()
    assert [r.manifest.version for r in releases(home / "releases")] == ["1.0.0", "1.0.9", "1.0.10"]
    assert len(releases(home / "releases", "tiny")) == 3 and releases(home / "releases", "other") == []
    assert releases(home / "none") == []
