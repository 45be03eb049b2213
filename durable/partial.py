"""A file that arrives in pieces: its beginning outlives broken connections, and it appears only whole."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from pathlib import Path

from contracts.errors import ConsiliumError
from durable.files import sync

_BLOCK = 1 << 20  # bytes
# So much is handed to the disk while more arrives: a large file would else wait for all of it in the end.
_WRITE_BACK = 16 << 20  # bytes
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Busy(Exception):
    """Somebody else is writing this very file."""


class Partial:
    """The beginning of a file, open for more; one writer at a time, until `close` or the end of the process.

    After a crash there is what reached the disk: a beginning of the file, or something else that the digest
    finds in the end. Opening reads nothing of it, so that many attempts that add little cost little.

    One block is hashed and written in a thread of its own while the caller receives the next: what goes
    wrong with it is raised by the call that follows.

    Args:
        path: where the beginning is kept.

    Raises:
        Busy: another process or another part of this one has it open.
        ConsiliumError: E821, the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _opened(path)
        except OSError as error:
            refuse_full_disk(error, path)
            raise
        self.size = os.fstat(self._file.fileno()).st_size
        self._sha, self._hashed = hashlib.sha256(), 0  # bytes from the beginning that the hash has seen
        self._written = self._handed_over = self.size
        self._writer = ThreadPoolExecutor(1, "partial")
        self._last: Future[None] | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of what is there; reads what an earlier one wrote, once.

        Raises:
            ConsiliumError: E821, the disk was full.
        """
        self._settle()
        self._file.seek(self._hashed)
        while block := self._file.read(_BLOCK):
            self._hash(block)
        return self._sha.hexdigest()

    def _hash(self, block: bytes | bytearray) -> None:
        self._sha.update(block)
        self._hashed += len(block)

    def write(self, block: bytes | bytearray) -> None:
        """Append `block`, which must not change any more.

        Raises:
            ConsiliumError: E821, the disk was full; what was there is then thrown away, to make room.
        """
        self._settle()
        self.size += len(block)
        self._last = self._writer.submit(self._append, block)

    def _settle(self) -> None:
        """Wait for the last block, and raise what went wrong with it."""
        if self._last is not None:
            self._last.result()

    def _append(self, block: bytes | bytearray) -> None:
        try:
            left = memoryview(block)
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            self._drop()
            refuse_full_disk(error, self.path)
            raise
        if self._hashed == self._written:
            self._hash(block)
        self._written += len(block)
        if (ready := self._written - self._handed_over) >= _WRITE_BACK:
            # Pages that are not on disk yet are not dropped by this: the kernel begins to write them.
            with contextlib.suppress(OSError):  # a wish; where it is not known the end takes longer
                os.posix_fadvise(self._file.fileno(), self._handed_over, ready, os.POSIX_FADV_DONTNEED)
            self._handed_over = self._written

    def restart(self) -> None:
        """Begin anew with an empty file."""
        self._settle()
        self._file.seek(0)
        self._file.truncate()
        self._sha, self._hashed, self.size = hashlib.sha256(), 0, 0
        self._written = self._handed_over = 0

    def move(self, target: Path) -> None:
        """Put the file, as it is, in its final place, on disk when this returns.

        Raises:
            ConsiliumError: E821, the disk is full.
        """
        self._settle()
        try:
            os.fsync(self._file.fileno())
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.path, target)
            sync(target.parent)
        except OSError as error:
            self.discard()
            refuse_full_disk(error, target)
            raise
        self.close()

    def discard(self) -> None:
        """Throw away what is there."""
        self._end()
        self._drop()

    def close(self) -> None:
        """Keep what is there for another time; whoever goes on with it meets what went wrong."""
        self._end()
        self._file.close()

    def _end(self) -> None:
        self._writer.shutdown()
        with contextlib.suppress(ConsiliumError, OSError):
            self._settle()

    def _drop(self) -> None:
        if not self._file.closed:  # closed, the lock is gone, and somebody else may have begun there
            self.path.unlink(missing_ok=True)
            self._file.close()


def refuse_full_disk(error: OSError, path: Path) -> None:
    """Raise E821 for a full disk; any other error is the caller's to raise.

    Raises:
        ConsiliumError: E821.
    """
    if error.errno in _FULL:
        raise ConsiliumError("E821", f"{path}: {error.strerror}") from error


def _opened(path: Path) -> FileIO:
    """Open and lock the file of this name; it may be moved to its final place between the two."""
    while True:
        file = FileIO(path, "a+", opener=lambda name, flags: os.open(name, flags, 0o600))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.seek(0)
                return file
        except BlockingIOError as error:
            file.close()
            raise Busy(path.name) from error
        except FileNotFoundError:
            pass
        file.close()
