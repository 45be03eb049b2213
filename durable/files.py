"""Whole files or none, private to their owner: every store of the coordinator and of a site uses these."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contracts.canonical import canonical_json

_BLOCK = 1 << 16  # bytes


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data`, readable by its owner only, so that a crash leaves the old file or the new one.

    The new one is on disk under its name when this returns, also where a power cut follows.
    """
    make_folder(path.parent)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    sync(path.parent)


def make_folder(path: Path, mode: int = 0o777) -> None:
    """Make a folder and those above it that are missing; their names are on disk when this returns.

    Args:
        mode: permissions of the folder itself, before the umask.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(mode, parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a mapping as canonical JSON, atomically."""
    write_atomic(path, canonical_json(value))


def read_json(path: Path) -> dict[str, Any]:
    """Read a mapping written by `write_json`."""
    value = json.loads(path.read_bytes())
    assert isinstance(value, dict)
    return value


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock for the block; other processes and threads wait."""
    make_folder(path.parent)
    with open(path, "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def append_line(path: Path, line: str) -> None:
    """Append one line, on disk when this returns; lines of several processes do not mix.

    A line that a killed writer or a full disk left without its end was never acknowledged: it is cut off.
    """
    with locked(path.with_name(f".{path.name}.lock")):
        new = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            if new:
                sync(path.parent)
            whole = _whole(descriptor)
            os.ftruncate(descriptor, whole)
            try:
                left = memoryview(line.encode() + b"\n")
                while left:
                    left = left[os.write(descriptor, left) :]
                os.fsync(descriptor)
            except BaseException:
                os.ftruncate(descriptor, whole)
                raise
        finally:
            os.close(descriptor)


def read_lines(path: Path) -> list[str]:
    """Lines written by `append_line`, without one that was never acknowledged; none of a missing file."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    return text[: text.rfind("\n") + 1].splitlines()


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk is full or a quota is used up."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _whole(descriptor: int) -> int:
    """Number of bytes up to and with the last newline."""
    end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - _BLOCK)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
