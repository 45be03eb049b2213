"""The coordinator's registry of releases: git for history, DVC for bytes, GTO for versions and stages.

`<registry>/releases/<study>/` is the latest release, tracked by DVC; every version is a commit and a GTO
tag `<study>@v1.2.3`, its stage a tag `<study>#released#1`. It is a repository of its own with its own
identity and remote (`.dvc/config.local`); no git or DVC configuration of user or machine is read or written.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from contracts.errors import ConsiliumError
from contracts.release import ReleaseManifest
from release.directory import read_manifest

STAGE = "released"
_AUTHOR = (("user.name", "Consilium coordinator"), ("user.email", "coordinator@consilium.invalid"))


@dataclass(frozen=True)
class RegisteredRelease:
    """A published release and what its manifest says of itself (not yet verified)."""

    path: Path
    manifest: ReleaseManifest


def releases(root: Path) -> list[RegisteredRelease]:
    """Return the published releases, by study and version.

    Args:
        root: `CoordinatorHome.releases`, with `<study>/<version>/`.
    """
    found = [
        RegisteredRelease(path.parent, read_manifest(path.parent))
        for path in root.glob("*/*/manifest.json")
        if not path.parent.name.startswith(".")
    ]
    return sorted(found, key=lambda r: (r.manifest.study, _semver(r.manifest.version)))


def next_version(published: list[ReleaseManifest], *, protocol_hash: str, sites: list[str]) -> str:
    """Return the SemVer of the next release of a study from what changed since the last.

    The first is 1.0.0; new weights only are a patch; other hospitals a minor; another protocol a major.

    Args:
        published: manifests of the study's earlier releases, in any order.
        protocol_hash: of the new one.
        sites: of the new one.
    """
    if not published:
        return "1.0.0"
    last = max(published, key=lambda m: _semver(m.version))
    major, minor, patch = _semver(last.version)
    if protocol_hash != last.protocol_hash:
        return f"{major + 1}.0.0"
    if sorted(sites) != sorted(last.sites):
        return f"{major}.{minor + 1}.0"
    return f"{major}.{minor}.{patch + 1}"


def register(registry: Path, release: Path) -> str:
    """Add a published release to the registry; repeating it changes nothing.

    Args:
        registry: `CoordinatorHome.registry`; created on first use.
        release: the sealed directory.

    Returns:
        The GTO tag, `<study>@v<version>`.

    Raises:
        ConsiliumError: E708, git, DVC or GTO failed.
    """
    manifest = read_manifest(release)
    tag = f"{manifest.study}@v{manifest.version}"
    _initialise(registry)
    version = f"v{manifest.version}"
    # A run that died on the way is finished by the next one, from the step it had reached.
    if not _git(registry, "tag", "--list", tag):
        target = registry / "releases" / manifest.study
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(release, target)
        _dvc(registry, "add", f"releases/{manifest.study}")
        _dvc(registry, "push", f"releases/{manifest.study}.dvc")
        _write_artifact(registry, manifest)
        _git(registry, "add", "--all")
        message = f"Release {manifest.study} {manifest.version}"
        _git(registry, "commit", "--quiet", "--allow-empty", "--message", message)
        _gto(registry, "register", manifest.study, "--version", version)
    if not _git(registry, "tag", "--points-at", f"{tag}^{{}}", "--list", f"{manifest.study}#{STAGE}#*"):
        _gto(registry, "assign", manifest.study, "--version", version, "--stage", STAGE)
    return tag


def _initialise(registry: Path) -> None:
    if (registry / ".git").exists() and (registry / ".dvc" / "config").exists():
        return
    registry.mkdir(parents=True, exist_ok=True)
    _git(registry, "init", "--quiet", "--initial-branch", "main")
    for key, value in _AUTHOR:
        _git(registry, "config", key, value)
    _dvc(registry, "init", "--force", "--quiet")
    _dvc(registry, "config", "core.analytics", "false")
    _dvc(registry, "config", "core.check_update", "false")
    _dvc(registry, "config", "core.autostage", "false")
    storage = registry.parent / f"{registry.name}-storage"
    storage.mkdir(exist_ok=True)
    # Machine-specific, so never committed. Relative: the home may be moved.
    _dvc(registry, "remote", "add", "--local", "--default", "--force", "storage", f"../{storage.name}")
    _git(registry, "add", "--all")
    _git(registry, "commit", "--quiet", "--allow-empty", "--message", "Registry of releases")


def _write_artifact(registry: Path, manifest: ReleaseManifest) -> None:
    """Declare the study's artefact in the registry's `dvc.yaml`, where DVC and GTO look for it."""
    path = registry / "dvc.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    content.setdefault("artifacts", {})[manifest.study] = {
        "path": f"releases/{manifest.study}",
        "type": "model",
        "desc": manifest.title,
        "labels": ["investigational"],
    }
    path.write_text(yaml.safe_dump(content, sort_keys=True), encoding="utf-8")


def _git(registry: Path, *arguments: str) -> str:
    return _run(registry, "git", *arguments)


def _dvc(registry: Path, *arguments: str) -> str:
    return _run(registry, sys.executable, "-m", "dvc", *arguments)


def _gto(registry: Path, *arguments: str) -> str:
    # The package has no __main__, and its script need not be on the path.
    return _run(registry, sys.executable, "-c", "from gto.cli import app; app()", *arguments)


def _run(registry: Path, *command: str) -> str:
    """Run a command in the registry, deaf to the user's and the machine's configuration."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "DVC_"))}
    state = str(registry / ".dvc" / "tmp" / "global")
    own |= {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "DVC_NO_ANALYTICS": "1",
        "DVC_GLOBAL_CONFIG_DIR": state,
        "DVC_SYSTEM_CONFIG_DIR": state,
        "DVC_SITE_CACHE_DIR": state,
    }
    done = subprocess.run(command, cwd=registry, env=own, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()[-1:]
        shown = " ".join(Path(part).name if part == sys.executable else part for part in command)
        raise ConsiliumError("E708", f"`{shown}` failed: {' '.join(said)}")
    return done.stdout.strip()


def _semver(version: str) -> tuple[int, int, int]:
    try:
        major, minor, patch = (int(part) for part in version.split("."))
    except ValueError:
        return 0, 0, 0
    return major, minor, patch
