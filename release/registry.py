"""The coordinator's registry of releases: git for history, DVC for bytes, GTO for versions and stages.

`<registry>/releases/<product>/` is the newest release, tracked by DVC; every version is a commit and a GTO
tag `<product>@v1.2.3`, so that `dvc get --rev <tag>` brings back any of them. Which version is current, the
stage `released`, is the product's last tag `<product>#released#<n>`; these tags are only ever added, and the
annotation of one that a rollback made says who, why and when. The registry is a repository of its own with
its own identity and remote (`.dvc/config.local`); no git or DVC configuration of user or machine is read or
written.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from contracts.canonical import canonical_json
from contracts.errors import ConsiliumError
from contracts.fields import Contract, LongText, Text, Timestamp, Version
from contracts.release import ReleaseManifest
from release.directory import read_manifest
from release.versioning import semver

STAGE = "released"
_AUTHOR = (("user.name", "Consilium coordinator"), ("user.email", "coordinator@consilium.invalid"))


@dataclass(frozen=True)
class RegisteredRelease:
    """A published release and what its manifest says of itself (not yet verified)."""

    path: Path
    manifest: ReleaseManifest


class Rollback(Contract):
    """Who made an earlier version current again, why and when; the annotation of the stage's tag."""

    version: Version
    instead_of: Version
    reason: LongText
    by: Text
    time: Timestamp


@dataclass(frozen=True)
class Assignment:
    """One time that a version became current; `rollback` is None where publishing it did that."""

    number: int
    version: str
    rollback: Rollback | None


def releases(root: Path, product: str | None = None) -> list[RegisteredRelease]:
    """Return the published releases, by product and version.

    Args:
        root: `CoordinatorHome.releases`, with `<product>/<version>/`.
        product: of these alone.
    """
    found = [
        RegisteredRelease(path.parent, read_manifest(path.parent))
        for path in root.glob(f"{product or '*'}/*/manifest.json")
        if not path.parent.name.startswith(".")
    ]
    return sorted(found, key=lambda r: (r.manifest.product, semver(r.manifest.version)))


def register(registry: Path, release: Path) -> str:
    """Add a published release to the registry and make it current; repeating it changes nothing.

    Args:
        registry: `CoordinatorHome.registry`; created on first use.
        release: the sealed directory.

    Returns:
        The GTO tag, `<product>@v<version>`.

    Raises:
        ConsiliumError: E708, git, DVC or GTO failed.
    """
    manifest = read_manifest(release)
    product, tag = manifest.product, manifest.release_id
    _initialise(registry)
    version = f"v{manifest.version}"
    # A run that died on the way is finished by the next one, from the step it had reached.
    if not _git(registry, "tag", "--list", tag):
        if _git(registry, "branch", "--list", "main"):
            # Somebody may have checked out an earlier version: history goes on where it ended.
            _git(registry, "checkout", "--quiet", "--force", "main")
        target = registry / "releases" / product
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(release, target)
        _dvc(registry, "add", f"releases/{product}")
        _dvc(registry, "push", f"releases/{product}.dvc")
        _write_artifact(registry, manifest)
        _git(registry, "add", "--all")
        message = f"Release {product} {manifest.version}"
        _git(registry, "commit", "--quiet", "--allow-empty", "--message", message)
        _gto(registry, "register", product, "--version", version)
    if not any(a.version == manifest.version for a in assignments(registry, product)):
        _gto(registry, "assign", product, "--version", version, "--stage", STAGE)
    return tag


def assignments(registry: Path, product: str) -> list[Assignment]:
    """Return every time that a version of the product became current, oldest first.

    Raises:
        ConsiliumError: E708, git failed.
    """
    if not (registry / ".git").exists():
        return []
    form = "--format=%(refname:strip=2)%09%(*objectname)%09%(contents:subject)"
    versions: dict[str, str] = {}
    for line in _git(registry, "tag", "--list", f"{product}@v*", form).splitlines():
        name, commit, _ = line.split("\t", 2)
        versions[commit] = name.removeprefix(f"{product}@v")
    found = []
    for line in _git(registry, "tag", "--list", f"{product}#{STAGE}#*", form).splitlines():
        name, commit, said = line.split("\t", 2)
        number = re.fullmatch(r"[1-9][0-9]*", name.removeprefix(f"{product}#{STAGE}#"))
        if number is not None and commit in versions:
            rollback = Rollback.model_validate_json(said) if said.startswith("{") else None
            found.append(Assignment(int(number.group()), versions[commit], rollback))
    return sorted(found, key=lambda assignment: assignment.number)


def current(registry: Path, product: str) -> str | None:
    """Return the version that is current: the one that became so last, not simply the newest.

    Raises:
        ConsiliumError: E708, git failed.
    """
    found = assignments(registry, product)
    return found[-1].version if found else None


def rollback(
    registry: Path,
    release: RegisteredRelease,
    *,
    reason: str,
    by: str,
    time: str,
    verify: Callable[[Path], None],
) -> Rollback:
    """Make an earlier version of a product current again. Nothing is deleted; the history says it.

    Args:
        registry: `CoordinatorHome.registry`.
        release: the version to go back to.
        reason: why, in a person's words.
        by: who decided it.
        time: UTC.
        verify: raises a refusal for a release directory that does not verify.

    Raises:
        ConsiliumError: E706, the registry has no such version, or it is current already; what `verify`
            raises; E708, git or GTO failed.
    """
    manifest = release.manifest
    now_current = current(registry, manifest.product)
    if now_current is None or not _git(registry, "tag", "--list", manifest.release_id):
        raise ConsiliumError("E706", f"{manifest.release_id} is not in the registry")
    if now_current == manifest.version:
        raise ConsiliumError("E706", f"{manifest.release_id} is current: there is nothing to go back to")
    verify(release.path)
    entry = Rollback(version=manifest.version, instead_of=now_current, reason=reason, by=by, time=time)
    message = canonical_json(entry).decode()
    version = ("--version", f"v{manifest.version}")
    # --force: it was current before, and gto makes no second tag for a stage without being told so.
    _gto(registry, "assign", manifest.product, *version, "--stage", STAGE, "--force", "--message", message)
    return entry


def restore(registry: Path, product: str, version: str, target: Path) -> None:
    """Bring any version of a product back from the registry's DVC storage into `target`.

    Raises:
        ConsiliumError: E706, the registry has no such version; E707, `target` exists; E708, DVC failed.
    """
    tag = f"{product}@v{version}"
    if not (registry / ".git").exists() or not _git(registry, "tag", "--list", tag):
        raise ConsiliumError("E706", f"{tag} is not in the registry")
    if target.exists():
        raise ConsiliumError("E707", f"{target}")
    _dvc(registry, "get", ".", f"releases/{product}", "--rev", tag, "--out", str(target.absolute()))


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
    """Declare the product's artefact in the registry's `dvc.yaml`, where DVC and GTO look for it."""
    path = registry / "dvc.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    content.setdefault("artifacts", {})[manifest.product] = {
        "path": f"releases/{manifest.product}",
        "type": "model",
        "desc": manifest.title,
        "labels": [manifest.regulatory_status],
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
