"""An append-only, hash-chained, signed file of ledger entries that fails closed.

Three files lie side by side: `<lineage>.jsonl`, one line of canonical JSON per entry with its opening;
`<lineage>.head`, how long the chain was when an append was last acknowledged; `<lineage>.lock`.

An append is acknowledged when its line is on disk and the head is written. Hence:

- bytes behind the last newline were never acknowledged (the writer was killed): they are cut off;
- whole lines beyond the head are valid entries whose writer died before it could answer: they count;
- a chain shorter than its head, or missing although there is a head, has lost entries: E402.

Whoever puts back an older copy of both files is found out by the head that the coordinator has seen (E407).
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from contracts.canonical import canonical_json, digest
from contracts.errors import ConsiliumError
from contracts.ledger import LedgerEntry, LedgerOpening
from contracts.signing import Signed, SigningKey, first_problem, verify_bytes

ROOT = "0" * 64  # what the first entry names as the entry before it

_LOCK_SECONDS = 30.0


@dataclass(frozen=True)
class Record:
    """An entry as it was signed, and its opening where it is known."""

    signed: Signed
    entry: LedgerEntry
    opening: LedgerOpening | None
    digest: str


class Chain:
    """The file of one lineage; `records` is what was verified last. Append only inside `locked()`."""

    def __init__(self, path: Path, site: str, lineage: str, key: SigningKey) -> None:
        self.path, self.site, self.lineage, self._key = path, site, lineage, key
        self.records: list[Record] = []
        self._verified = b""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the lineage, among processes and threads, with `records` brought up to date.

        Raises:
            ConsiliumError: E402, the ledger cannot be locked, read, verified or written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                _lock(lock, self.path)
                self._refresh()
                yield
            finally:
                os.close(lock)
        except OSError as error:
            raise ConsiliumError("E402", f"{self.path}: {error}") from error

    def forget(self) -> None:
        """Verify everything anew at the next `locked()`."""
        self.records, self._verified = [], b""

    def append(self, entry: dict[str, Any], opening: LedgerOpening) -> Record:
        """Sign the next entry, write it behind the last and wait for the disk; inside `locked()` only.

        Args:
            entry: `kind`, and for a reservation the mechanism and its triple.

        Raises:
            OSError: nothing was added (`locked` turns it into E402).
        """
        fields = {
            "sequence": len(self.records),
            "previous": self.records[-1].digest if self.records else ROOT,
            "site": self.site,
            "lineage": self.lineage,
            "commitment": digest(opening),
        }
        signed = self._key.sign(LedgerEntry.model_validate({**fields, **entry}))
        line = canonical_json({"entry": signed.model_dump(mode="json"), "opening": _plain(opening)}) + b"\n"
        record = parse_line(line, len(self.records) + 1)
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                rest = memoryview(line)
                while rest:
                    rest = rest[os.write(file, rest) :]
                os.fdatasync(file)
                self._write_head(len(self.records) + 1, record.digest)
            except BaseException:
                # Never acknowledged: take it back, so that a full disk leaves nothing half-written.
                os.ftruncate(file, len(self._verified))
                os.fsync(file)
                raise
        finally:
            os.close(file)
        self._verified += line
        self.records.append(record)
        return record

    def _refresh(self) -> None:
        head = self._read_head()
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            data = b""
        if head is None:
            if self.path.exists():
                raise ConsiliumError("E402", f"{self._head_path} is missing beside {self.path}")
            self._create_head()
            head = (0, ROOT)
        whole = data[: data.rfind(b"\n") + 1]
        if not whole.startswith(self._verified):
            self.forget()
        records = list(self.records)
        for line in whole[len(self._verified) :].splitlines(keepends=True):
            record = parse_line(line, len(records) + 1)
            check_record(record, records, self.site, self.lineage, self._key.public)
            if record.opening is None:
                raise ConsiliumError("E402", f"line {len(records) + 1}: the opening is missing")
            records.append(record)
        self.records, self._verified = records, whole
        length, last = head
        if length > len(self.records) or last != ([ROOT] + [r.digest for r in self.records])[length]:
            raise ConsiliumError(
                "E402",
                f"{self.path} holds {len(self.records)} entries that do not end in head {length} {last}",
            )
        if len(whole) < len(data):
            with open(self.path, "r+b") as file:
                file.truncate(len(whole))
                os.fsync(file.fileno())
        if length < len(self.records):
            self._write_head(len(self.records), self.records[-1].digest)

    @property
    def _head_path(self) -> Path:
        return self.path.with_suffix(".head")

    def _read_head(self) -> tuple[int, str] | None:
        try:
            value = json.loads(self._head_path.read_bytes())
            return int(value["length"]), str(value["head"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise ConsiliumError("E402", f"{self._head_path}: {error!r}") from error

    def _create_head(self) -> None:
        """Write the head of an empty chain, whole or not at all."""
        new = self._head_path.with_suffix(".new")
        with open(new, "wb") as file:
            file.write(_head_bytes(0, ROOT))
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self._head_path)
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _write_head(self, length: int, head: str) -> None:
        """Overwrite the head in place: one short write of constant length, which no kill can tear.

        It is not waited for: should a power cut bring back the head before, the chain is ahead and counts.
        """
        file = os.open(self._head_path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(file, _head_bytes(length, head), 0)
        finally:
            os.close(file)


def _head_bytes(length: int, head: str) -> bytes:
    return canonical_json({"length": length, "head": head}).ljust(120) + b"\n"


def parse_line(line: bytes, number: int) -> Record:
    """Parse one line of a ledger; its opening may have been left out before it was shown to somebody.

    Raises:
        ConsiliumError: E402, naming the line.
    """
    try:
        value = json.loads(line)
        if not isinstance(value, dict) or not value.keys() <= {"entry", "opening"}:
            raise ValueError("expected an object with entry and opening")
        signed = Signed.model_validate(value.get("entry"))
        entry = LedgerEntry.model_validate(signed.document)
        opening = value.get("opening")
        shown = None if opening is None else LedgerOpening.model_validate(opening)
        return Record(signed, entry, shown, signed.digest)
    except ValidationError as error:
        raise ConsiliumError("E402", f"line {number}: {first_problem(error)}") from error
    except ValueError as error:
        raise ConsiliumError("E402", f"line {number}: {error}") from error


def check_record(record: Record, before: list[Record], site: str, lineage: str, public: str) -> None:
    """Check that a record is the next one of a chain: signature, links, form and commitment.

    Raises:
        ConsiliumError: E402, naming the line and what does not hold.
    """
    signed, entry, opening = record.signed, record.entry, record.opening
    triple = (entry.mechanism, entry.sample_rate, entry.noise_multiplier, entry.steps)
    checks = {
        "type": signed.type == "LedgerEntry",
        "signer": signed.signer == site and signed.key == public,
        "signature": verify_bytes(signed.signed_bytes(), signed.signature, public),
        "sequence": entry.sequence == len(before),
        "previous": entry.previous == (before[-1].digest if before else ROOT),
        "site": entry.site == site,
        "lineage": entry.lineage == lineage,
        "kind": (entry.kind == "genesis") == (not before),
        "triple": all((part is not None) == (entry.kind == "reserve") for part in triple),
        "commitment": opening is None or digest(opening) == entry.commitment,
    }
    for name, holds in checks.items():
        if not holds:
            raise ConsiliumError("E402", f"line {len(before) + 1}: {name} does not verify")


def replay(data: bytes, public: str) -> tuple[list[Record], int]:
    """Verify a ledger from its bytes alone, with or without openings; also return its unfinished last bytes.

    Site and lineage are those of the first entry, which must carry the signature of `public`.

    Raises:
        ConsiliumError: E402, naming the first line that does not verify.
    """
    whole = data[: data.rfind(b"\n") + 1]
    records: list[Record] = []
    for line in whole.splitlines(keepends=True):
        record = parse_line(line, len(records) + 1)
        first = records[0].entry if records else record.entry
        check_record(record, records, first.site, first.lineage, public)
        records.append(record)
    if not records:
        raise ConsiliumError("E402", "the ledger has no entry, not even the first")
    return records, len(data) - len(whole)


def _plain(opening: LedgerOpening) -> dict[str, Any]:
    return opening.model_dump(mode="json", exclude_none=True)


def _lock(lock: int, path: Path) -> None:
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
