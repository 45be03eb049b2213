"""An append-only, hash-chained, signed file of ledger entries that fails closed.

Three files lie side by side: `<lineage>.jsonl`, one line of canonical JSON per entry with its opening;
`<lineage>.head`, how long the chain was when an append was last acknowledged; `<lineage>.lock`.

An append is acknowledged when its lines are on disk and the head is written. Hence:

- bytes behind the last newline were never acknowledged (the writer was killed): they are cut off;
- whole lines beyond the head are valid entries whose writer died before it could answer: they count;
- a chain shorter than its head, or missing although there is a head, has lost entries: E402.

Whoever puts back an older copy of both files is found out by the head that the coordinator has seen (E407).
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from contracts.canonical import digest
from contracts.errors import ConsiliumError
from contracts.ledger import LedgerEntry, LedgerOpening
from contracts.signing import SigningKey, first_problem
from durable.files import make_folder, sync, write_atomic
from privacy.chain import ROOT, History, Record, acceptance_bytes, parse_line
from privacy.headfile import HeadFile, open_plain, read_plain
from privacy.salvage import Loss, charges_of, judge

_LOCK_SECONDS = 30.0

Draft = tuple[dict[str, Any], LedgerOpening]  # what an entry says besides its place in the chain


class ChainFile:
    """The file of one lineage; `history` is what was verified last. Append only inside `locked()`."""

    def __init__(self, path: Path, site: str, lineage: str, key: SigningKey) -> None:
        self.path, self.site, self.lineage, self._key = path, site, lineage, key
        self._head = HeadFile(path.with_suffix(".head"))
        self.forget()

    def forget(self) -> None:
        """Verify everything anew at the next `locked()`."""
        self.history = History(self.site, self.lineage)
        self._verified = bytearray()
        self._seen: tuple[int, ...] | None = None  # state of the file when it held `_verified`
        self._unusable = False  # it is being restored and could not be opened
        self._cut: bytes | None = None  # all it held, if the next append cuts some of it off

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the lineage, among processes and threads, with `history` brought up to date.

        Raises:
            ConsiliumError: E402, the ledger cannot be locked, read, verified or written.
        """
        with self._lock():
            self._refresh()
            yield

    @contextmanager
    def salvaged(self) -> Iterator[Loss]:
        """Like `locked`, over the longest beginning that still verifies; nothing if its key has left since.

        For a restore alone. Until something is appended all files are as they were. Then what is cut off is
        set aside in `<lineage>.damaged-<n>`.

        Raises:
            ConsiliumError: E402, the files cannot be locked, read or written, or this key was handed over.
        """
        with self._lock():
            self.forget()
            data = read_plain(self.path)
            for line in (data or b"").splitlines(keepends=True):
                try:
                    if not line.endswith(b"\n"):
                        break
                    self._add(line)
                except ConsiliumError:
                    break
                self._verified += line
            head = None
            with suppress(ConsiliumError):
                head = self._head.read()
            loss = judge(self.history, (data or b"")[len(self._verified) :], self._key.public, head)
            if data is not None and head is None:
                loss = replace(loss, damaged=True)
            if data is not None and self._key.public not in (self.history.keys or [self._key.public]):
                loss = replace(loss, damaged=True, carried=charges_of(self.history.records))
                self.forget()
            self._check_key()
            self._unusable = loss.damaged
            self._cut = data if data is not None and len(self._verified) < len(data) else None
            yield loss

    def append(self, *drafts: Draft, new_key: SigningKey | None = None) -> list[Record]:
        """Sign the next entries, write them behind the last in one go and wait for the disk.

        Inside `locked()` only. All of them or none, also after a crash. With `new_key` the one entry is a
        rotation to it.

        Raises:
            ConsiliumError: E417, a field is out of its bounds.
            OSError: nothing was added (`locked` turns it into E402).
            BaseException: of a signal, say: they count if the head file was written, and else do not.
        """
        records: list[Record] = []
        previous = self.history.head()
        for fields, opening in drafts:
            place = {
                "sequence": len(self.history.records) + len(records),
                "previous": previous,
                "site": self.site,
                "lineage": self.lineage,
                "commitment": digest(opening),
            }
            try:
                entry = LedgerEntry.model_validate({**place, **fields})
            except ValidationError as error:
                raise ConsiliumError("E417", first_problem(error)) from error
            if new_key is not None:
                acceptance = new_key.sign_bytes(acceptance_bytes(entry))
                entry = entry.model_copy(update={"acceptance": acceptance})
            signed = self._key.sign(entry)
            previous = signed.digest
            records.append(Record(signed, entry, opening, previous))
        lines = b"".join(record.line() for record in records)
        length = len(self.history.records) + len(records)
        try:
            if self._unusable or self._cut is not None or len(records) > 1:
                self._replace(lines, length, previous)
            else:
                self._extend(lines, length, previous)
            self._verified += lines
            for record in records:
                self.history.take(record)
        except BaseException:
            self.forget()  # whatever came of it, the files say it
            with suppress(ConsiliumError, OSError):
                self._refresh()
            raise
        if new_key is not None:
            self._key = new_key
        return records

    def _replace(self, lines: bytes, length: int, head: str) -> None:
        """Put a whole new file in the place of the old one, or a first one."""
        if self._cut is not None:
            self._set_aside(self._cut)
        draft = self.path.with_suffix(".next")
        write_atomic(draft, bytes(self._verified) + lines)
        if self._unusable:
            # First: a crash before the file leaves what is as unusable as before and shows all it showed.
            self._head.create(length, head)
        os.replace(draft, self.path)
        sync(self.path.parent)
        if not self._unusable:
            self._head.write(length, head)
        self._unusable, self._cut, self._seen = False, None, None

    def _extend(self, lines: bytes, length: int, head: str) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        file = os.open(self.path, flags, 0o600)
        try:
            try:
                rest = memoryview(lines)
                while rest:
                    rest = rest[os.write(file, rest) :]
                os.fdatasync(file)
                if not self._verified:
                    sync(self.path.parent)
                self._head.write(length, head)
            except BaseException:
                # Never acknowledged: take it back, so that a full disk leaves nothing half-written. But once
                # the head file names it, a shorter file would be one that has lost entries.
                if self._head.read() != (length, head):
                    os.ftruncate(file, len(self._verified))
                    os.fsync(file)
                raise
            self._seen = _state(file)
        finally:
            os.close(file)

    def _refresh(self) -> None:
        head = self._head.read()
        unfinished = self._catch_up(missing_head=head is None)
        if head is None:
            self._head.create(0, ROOT)
            head = (0, ROOT)
        length, last = head
        count = len(self.history.records)
        if length > count or last != self.history.head(length):
            raise ConsiliumError(
                "E402", f"{self.path} holds {count} entries that do not end in head {length} {last}"
            )
        self._check_key()
        if unfinished:
            with open(self.path, "r+b") as file:
                file.truncate(len(self._verified))
                os.fsync(file.fileno())
        if length < count:
            self._head.write(count, self.history.head())

    def _catch_up(self, *, missing_head: bool) -> int:
        """Verify what the file holds beyond `history`; return the number of its unfinished last bytes."""
        file = open_plain(self.path)
        if file is None:
            if self._verified:
                raise ConsiliumError("E402", f"{self.path} was removed while it was open")
            return 0
        try:
            if missing_head:
                raise ConsiliumError("E402", f"{self._head.path} is missing beside {self.path}")
            state = _state(file)
            if state == self._seen:
                return 0
            with open(file, "rb", closefd=False) as stream:
                data = stream.read()
        finally:
            os.close(file)
        end = data.rfind(b"\n") + 1
        start = len(self._verified)
        if start > end or not data.startswith(self._verified):
            raise ConsiliumError("E402", f"{self.path} was changed or replaced while it was open")
        try:
            for line in data[start:end].splitlines(keepends=True):
                self._add(line)
        except ConsiliumError:
            self.forget()
            raise
        self._verified += data[start:end]
        self._seen = state if end == len(data) else None
        return len(data) - end

    def _add(self, line: bytes) -> None:
        number = len(self.history.records) + 1
        record = parse_line(line, number)
        if record.opening is None:
            raise ConsiliumError("E402", f"line {number}: the opening is missing")
        self.history.add(record)

    def _check_key(self) -> None:
        keys = self.history.keys
        if keys and keys[-1] != self._key.public:
            raise ConsiliumError(
                "E402",
                f"{self.path}: key {keys[-1]} is in force, expected {self._key.public}; "
                "if a rotation was interrupted, `consilium ledger rotate` completes it (at the coordinator "
                "`consilium federation rotate --coordinator`)",
            )

    @contextmanager
    def _lock(self) -> Iterator[None]:
        try:
            make_folder(self.path.parent, mode=0o700)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            lock = os.open(self.path.with_suffix(".lock"), flags, 0o600)
            try:
                _wait_for(lock, self.path)
                yield
            finally:
                os.close(lock)
        except OSError as error:
            raise ConsiliumError("E402", f"{self.path}: {error}") from error

    def _set_aside(self, data: bytes) -> None:
        number = 1
        while (aside := self.path.with_suffix(f".damaged-{number}")).exists():
            if aside.read_bytes() == data:
                return
            number += 1
        write_atomic(aside, data)


def _state(file: int) -> tuple[int, ...]:
    """What changes when anybody writes to a file: verified in this state, it need not be read again."""
    s = os.fstat(file)
    return s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns


def _wait_for(lock: int, path: Path) -> None:
    """Wait for the exclusive lock, but not for ever: a process that hangs must not hang the next one."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ConsiliumError("E402", f"{path} is locked for {_LOCK_SECONDS:g} seconds") from None
            time.sleep(0.002)
