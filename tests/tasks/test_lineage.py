"""What a release says of the code and the packages it was made with."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tasks.lineage import code_commit, components, environment_digest


def git(folder: Path, *arguments: str) -> str:
    own = ["-c", "user.name=t", "-c", "user.email=t@example.invalid"]
    done = subprocess.run(["git", *own, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A committed checkout with one file."""
    folder = (tmp_path / "checkout").resolve()
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "code.py").write_text("x = 1\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "one")
    return folder


def test_a_clean_checkout_is_named_by_its_commit(checkout: Path) -> None:
    assert code_commit(checkout) == git(checkout, "rev-parse", "HEAD")


def test_a_commit_is_named_only_where_it_is_all_of_the_code(checkout: Path, tmp_path: Path) -> None:
    (checkout / "sub").mkdir()
    (checkout / "sub" / "keep").write_text("")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "two")
    assert code_commit(checkout / "sub") is None  # installed inside somebody else's checkout
    (checkout / "new.py").write_text("")
    assert code_commit(checkout) is None
    (checkout / "new.py").unlink()
    (checkout / "code.py").write_text("x = 2\n")
    assert code_commit(checkout) is None
    assert code_commit(tmp_path) is None  # no checkout at all


def test_without_git_there_is_no_commit_and_no_error(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert code_commit(checkout) is None


def test_components_tell_what_a_deployment_needs_from_what_training_needed() -> None:
    found = {component.name: component for component in components()}
    for name in ("onnxruntime", "numpy", "model-signing", "pydantic-core", "cryptography"):
        assert found[name].runtime, name
    for name in ("torch", "apache-airflow", "opacus", "pytest"):
        assert not found[name].runtime, name
    assert found["numpy"].version and "BSD" in found["numpy"].license
    assert list(found) == sorted(found)


def test_the_environment_is_the_same_digest_while_nothing_is_installed() -> None:
    assert environment_digest() == environment_digest() and len(environment_digest()) == 64
