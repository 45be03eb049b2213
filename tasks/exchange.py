"""The exchange on disk: a content-addressed store of tensors (design section 4)."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from contracts.errors import ConsiliumError
from durable.files import sync
from durable.partial import refuse_full_disk

_BLOCK = 1 << 20  # bytes


def file_digest(path: Path) -> str:
    """SHA-256 of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class DirectoryExchange:
    """`put` and `get` by SHA-256 below one folder. Authorisation is the business of whoever exposes it."""

    root: Path

    def path_of(self, digest: str) -> Path:
        """Where the content of `digest` lies, whether or not it is there."""
        return self.root / digest[:2] / digest

    def put(self, path: Path, plan: str = "") -> str:
        """Store a copy of the file and return its digest; storing the same content twice is one file.

        `plan`, the digest of the plan that the content answers, is for exchanges that authorise by it.

        Raises:
            ConsiliumError: E821, the disk is full; nothing is left of what was written.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        sha = hashlib.sha256()
        descriptor, temporary = tempfile.mkstemp(dir=self.root, prefix=".incoming.")
        try:
            with os.fdopen(descriptor, "wb") as target, open(path, "rb") as source:
                while block := source.read(_BLOCK):
                    sha.update(block)
                    target.write(block)
                target.flush()
                os.fsync(target.fileno())
            return self.adopt(Path(temporary), sha.hexdigest())
        except BaseException as error:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            if isinstance(error, OSError):
                refuse_full_disk(error, self.root)
            raise

    @property
    def partial(self) -> Path:
        """Uploads that are not complete: `<plan>/<site>/<digest>`."""
        return self.root / ".partial"

    def adopt(self, temporary: Path, digest: str) -> str:
        """Move a complete file, already inside `root` and of known digest, to its place."""
        target = self.path_of(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary, target)
        sync(target.parent)
        return digest

    def get(self, digest: str, target: Path) -> None:
        """Copy the content of `digest` to `target`.

        Raises:
            ConsiliumError: E509, it is not here; E804, what is here has another digest.
        """
        source = self.path_of(digest)
        if not source.is_file():
            raise ConsiliumError("E509", f"digest {digest} is not in the exchange")
        if file_digest(source) != digest:
            raise ConsiliumError("E804", f"the content under {digest} has another digest")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
