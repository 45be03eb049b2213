"""A ledger's chain of entries, verified from its bytes alone: signatures, links, commitments, changes of key.

Whoever trusts one key that signed an entry of a chain may trust the whole chain: the entries before are
covered by that signature through the hashes, and those after are signed by keys that it handed over to.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from contracts.canonical import canonical_json, digest
from contracts.errors import ConsiliumError
from contracts.ledger import LedgerEntry, LedgerOpening
from contracts.signing import Signed, first_problem, verify_bytes
from privacy.accountant import Spend

ROOT = "0" * 64  # what the first entry names as the entry before it

SPENDING = ("reserve", "write-off")

# What each check that fails says of the line.
_FAILURES = {
    "type": "it is not a ledger entry",
    "signer": "it is not signed by the site with the key in force",
    "signature": "it was changed after it was signed",
    "sequence": "an entry is missing, repeated or out of order",
    "previous": "the entry before it was changed or removed",
    "site": "it is of another site",
    "lineage": "it is of another lineage",
    "kind": "only the first entry is the genesis",
    "triple": "its kind and its triple do not fit",
    "share": "only a reservation has a quantile share",
    "lost_head": "its kind and its lost head do not fit",
    "rotation": "its kind, new key and acceptance do not fit",
    "commitment": "its opening was changed",
}


@dataclass(frozen=True)
class Record:
    """An entry as it was signed, and its opening where it is known."""

    signed: Signed
    entry: LedgerEntry
    opening: LedgerOpening | None
    digest: str

    @property
    def spend(self) -> Spend | None:
        """The triple of a reservation or write-off; None for an entry that spends nothing."""
        e = self.entry
        if e.sample_rate is None or e.noise_multiplier is None or e.steps is None:
            return None
        return Spend(e.sample_rate, e.noise_multiplier, e.steps)

    def line(self, *, with_opening: bool = True) -> bytes:
        """The record as one line of JSON, newline included."""
        value: dict[str, Any] = {"entry": self.signed.model_dump(mode="json")}
        if with_opening and self.opening is not None:
            value["opening"] = self.opening.model_dump(mode="json", exclude_none=True)
        return canonical_json(value) + b"\n"


class History:
    """The verified beginning of a chain with its indices, all kept up to date entry by entry.

    Args:
        site: owner of the chain; None: whoever wrote the first entry.
        lineage: likewise.
    """

    def __init__(self, site: str | None = None, lineage: str | None = None) -> None:
        self.site, self.lineage = site, lineage
        self.records: list[Record] = []
        self.keys: list[str] = []  # public keys in the order of their time; the last is in force
        self.heads: dict[str, int] = {}  # digest of an entry -> its sequence
        self.lost_heads: set[str] = set()
        self.reserved: dict[str, Record] = {}  # by plan
        self.committed: dict[str, Record] = {}
        self.totals: dict[tuple[float, float], int] = {}  # (sample_rate, noise_multiplier) -> steps

    def head(self, length: int | None = None) -> str:
        """Digest of the last entry, or of the last of the first `length`."""
        count = len(self.records) if length is None else length
        return self.records[count - 1].digest if count else ROOT

    def knows(self, head: str) -> bool:
        """Say whether the chain holds an entry of this digest, or answers for it since a restore."""
        return head in self.heads or head in self.lost_heads

    def spends(self, study: str | None = None) -> list[Spend]:
        """What was reserved and written off, in order, altogether or under the name of one study."""
        named = (
            r for r in self.records if study is None or (r.opening is not None and r.opening.study == study)
        )
        return [spend for record in named if (spend := record.spend) is not None]

    def pooled(self) -> list[Spend]:
        """All spends with equal pairs added up: composes to the same epsilon in less time."""
        return [Spend(rate, noise, steps) for (rate, noise), steps in self.totals.items()]

    def add(self, record: Record) -> None:
        """Verify that a record is the next one and take it in.

        Raises:
            ConsiliumError: E402, naming the line and what does not hold.
        """
        self._check(record)
        self.take(record)

    def take(self, record: Record) -> None:
        """Take in a record that is known to be the next one: verified, or just signed here."""
        entry, opening = record.entry, record.opening
        if not self.records:
            self.site, self.lineage = entry.site, entry.lineage
            self.keys.append(record.signed.key)
        self.heads[record.digest] = entry.sequence
        self.records.append(record)
        if entry.new_key is not None:
            self.keys.append(entry.new_key)
        if entry.kind == "restore" and entry.lost_head is not None:
            self.lost_heads.add(entry.lost_head)
        spend = record.spend
        if spend is not None:
            pair = (spend.sample_rate, spend.noise_multiplier)
            self.totals[pair] = self.totals.get(pair, 0) + spend.steps
        if opening is not None and opening.plan is not None and entry.kind in ("reserve", "commit"):
            index = self.reserved if entry.kind == "reserve" else self.committed
            index.setdefault(opening.plan, record)

    def _check(self, record: Record) -> None:
        signed, entry, opening = record.signed, record.entry, record.opening
        key = self.keys[-1] if self.keys else signed.key
        triple = (entry.mechanism, entry.sample_rate, entry.noise_multiplier, entry.steps)
        lost = entry.lost_head is not None
        checks = {
            "type": signed.type == "LedgerEntry",
            "site": entry.site == (self.site or entry.site),
            "lineage": entry.lineage == (self.lineage or entry.lineage),
            "signer": signed.signer == entry.site and signed.key == key,
            "signature": verify_bytes(signed.signed_bytes(), signed.signature, key),
            "sequence": entry.sequence == len(self.records),
            "previous": entry.previous == self.head(),
            "kind": (entry.kind == "genesis") == (not self.records),
            "triple": all((part is not None) == (entry.kind in SPENDING) for part in triple),
            "share": entry.quantile_share is None or entry.kind == "reserve",
            "lost_head": lost if entry.kind == "restore" else not lost or entry.kind == "write-off",
            "rotation": self._rotates_well(entry),
            "commitment": opening is None or digest(opening) == entry.commitment,
        }
        for name, holds in checks.items():
            if not holds:
                raise ConsiliumError(
                    "E402", f"line {len(self.records) + 1}: {name} does not verify: {_FAILURES[name]}"
                )

    def _rotates_well(self, entry: LedgerEntry) -> bool:
        if entry.kind != "rotate":
            return entry.new_key is None and entry.acceptance is None
        if entry.new_key is None or entry.acceptance is None or entry.new_key in self.keys:
            return False
        return verify_bytes(acceptance_bytes(entry), entry.acceptance, entry.new_key)


def acceptance_bytes(entry: LedgerEntry) -> bytes:
    """What the new key of a rotation signs: the entry without its acceptance, under a type of its own."""
    body = entry.model_dump(mode="json", exclude_none=True, exclude={"acceptance"})
    return canonical_json({"type": "LedgerRotation", "signer": entry.site, "document": body})


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
    except (ValueError, RecursionError) as error:
        raise ConsiliumError("E402", f"line {number}: {error}") from error


def read_history(data: bytes, public: str) -> tuple[History, int]:
    """Verify a ledger from its bytes alone, with or without openings; also return its unfinished last bytes.

    Site and lineage are those of the first entry. `public` must have signed, as the first key, the one in
    force at the end or one between (see the top of this file).

    Raises:
        ConsiliumError: E402, naming the first line that does not verify.
    """
    end = data.rfind(b"\n") + 1
    history = History()
    for number, line in enumerate(data[:end].splitlines(keepends=True), 1):
        history.add(parse_line(line, number))
    if not history.records:
        raise ConsiliumError("E402", "the ledger has no entry, not even the first")
    if public not in history.keys:
        raise ConsiliumError("E402", f"no entry is signed by the trusted key {public}")
    return history, len(data) - end


def replay(data: bytes, public: str) -> tuple[list[Record], int]:
    """Like `read_history`, for whoever needs the records alone.

    Raises:
        ConsiliumError: E402, naming the first line that does not verify.
    """
    history, unfinished = read_history(data, public)
    return history.records, unfinished
