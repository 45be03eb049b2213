"""The dependency audit says what it found, and never that an audit passed which did not happen."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("dependencies", ROOT / ".ci" / "dependencies.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def package(name: str, *found: str) -> dict[str, Any]:
    """An audited package with these advisories."""
    return {"name": name, "version": "1.0", "vulns": [{"id": one, "fix_versions": ["1.1"]} for one in found]}


def test_an_advisory_fails_and_names_the_version_that_mends_it(script: ModuleType) -> None:
    status, lines = script.verdict({"dependencies": [package("good"), package("bad", "CVE-1")]})
    assert status == 1
    assert lines == ["bad 1.0: CVE-1 (fixed in 1.1)", "audited 2 of 2 packages"]


def test_an_accepted_advisory_is_shown_with_its_reason(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(script.ACCEPTED, "CVE-1", "never called")
    status, lines = script.verdict({"dependencies": [package("bad", "CVE-1")]})
    assert status == 0
    assert lines[0] == "bad 1.0: CVE-1 (accepted: never called)"


def test_what_nobody_could_audit_is_not_called_audited(script: ModuleType) -> None:
    skipped = {"name": "alone", "skip_reason": "not found"}
    status, lines = script.verdict({"dependencies": [skipped, package("good")]})
    assert status == 0
    assert lines == [
        "NOT AUDITED: 1 of 2 packages, for which no advisories could be read",
        "audited 1 of 2 packages",
    ]
