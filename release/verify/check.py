"""What a check is, and the release that it looks at."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from contracts.canonical import sha256
from contracts.errors import ConsiliumError
from contracts.release import ReleaseManifest
from contracts.study import StudyProtocol, parse_study


@dataclass(frozen=True)
class Check:
    """One check. `passed` is None when it was not made, since an earlier one failed."""

    name: str
    passed: bool | None
    detail: str
    number: str = "E701"  # the refusal that a failure means

    def require(self) -> None:
        """Raise the check's numbered error unless it passed."""
        if self.passed is not True:
            raise ConsiliumError(self.number, f"{self.name}: {self.detail}")


@dataclass(frozen=True)
class Opened:
    """A release whose files are those of its manifest."""

    folder: Path
    manifest: ReleaseManifest

    def has(self, path: str) -> bool:
        """Say whether the manifest names a file."""
        return any(file.path == path for file in self.manifest.files)

    def sha256(self, path: str) -> str:
        """The digest that the manifest gives a file."""
        return next(file.sha256 for file in self.manifest.files if file.path == path)

    def read(self, path: str) -> bytes:
        """Read a file that the manifest names, and no other: a pointer in a document must not lead outside.

        Raises:
            KeyError: the manifest does not name it.
            ConsiliumError: E701, it was changed since its digest was checked.
        """
        if not self.has(path):
            raise KeyError(path)
        data = (self.folder / path).read_bytes()
        if sha256(data) != self.sha256(path):
            raise ConsiliumError("E701", f"{path} changed while the release was verified")
        return data

    def json(self, path: str) -> dict[str, Any]:
        """Read a file as a JSON object.

        Raises:
            ValueError: it is none.
        """
        value = json.loads(self.read(path))
        if not isinstance(value, dict):
            raise ValueError(f"{path} is no JSON object")
        return value

    @cached_property
    def protocol(self) -> StudyProtocol:
        """The study's protocol, of `study.json`."""
        return parse_study(self.json("study.json"), "study.json")


def made(name: str, number: str, check: Callable[[], str]) -> Check:
    """Make one check.

    Args:
        name: of the check.
        number: of its failure, when the check does not raise a numbered error itself.
        check: returns what it found, raises when it does not hold.
    """
    try:
        return Check(name, True, check(), number)
    except ConsiliumError as error:
        return Check(name, False, error.detail, error.number)
    except Exception as error:
        # A signed file can still be malformed, and every parser has exceptions of its own: none may pass.
        return Check(name, False, f"{type(error).__name__}: {error}"[:500], number)
