"""The head file beside a ledger: how long its chain was when an append was last acknowledged."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from contracts.canonical import canonical_json
from contracts.errors import ConsiliumError
from durable.files import write_atomic

_BYTES = 121


class HeadFile:
    """One line of constant length: number of entries and digest of the last."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[int, str] | None:
        """Return (length, head); None where there is no file.

        Raises:
            ConsiliumError: E402, it holds something else.
            OSError: it cannot be read or is no plain file.
        """
        data = read_plain(self.path)
        if data is None:
            return None
        try:
            value = json.loads(data)
            length, head = int(value["length"]), str(value["head"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConsiliumError("E402", f"{self.path}: {error!r}") from error
        if length < 0:
            raise ConsiliumError("E402", f"{self.path}: length {length}, expected 0 or more")
        return length, head

    def create(self, length: int, head: str) -> None:
        """Write a new file, whole or not at all, and wait for the disk."""
        write_atomic(self.path, _line(length, head))

    def write(self, length: int, head: str) -> None:
        """Overwrite in place: one short write of constant length, which no kill can tear.

        It is not waited for: should a power cut bring back the head before, the chain is ahead and counts.
        """
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:  # lost, and being restored
            self.create(length, head)
            return
        try:
            os.pwrite(file, _line(length, head), 0)
            if os.fstat(file).st_size > _BYTES:  # what a restore found was damaged
                os.ftruncate(file, _BYTES)
        finally:
            os.close(file)


def _line(length: int, head: str) -> bytes:
    return canonical_json({"length": length, "head": head}).ljust(_BYTES - 1) + b"\n"


def open_plain(path: Path) -> int | None:
    """Open a plain file for reading; None where there is none.

    Raises:
        OSError: it cannot be read, or a link, a folder or a pipe lies in its place.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(f"{path} is no plain file")
    return file


def read_plain(path: Path) -> bytes | None:
    """Return what a plain file holds; None where there is none.

    Raises:
        OSError: as `open_plain`.
    """
    file = open_plain(path)
    if file is None:
        return None
    with open(file, "rb") as stream:
        return stream.read()
