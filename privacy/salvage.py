"""What the bytes of a damaged ledger still prove to be spent.

Behind a damage the chain does not hold any more, but each line can be judged by itself. A line that a key of
the site signed is **found**: it was spent. A line that shows a triple and does not verify is a **hint**: it
was changed, and what it shows is the least that anybody may assume. What is known to be missing beyond these
is **unknown**. `privacy/restoration.py` says what follows for a restore.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from contracts.canonical import digest
from contracts.errors import ConsiliumError
from contracts.signing import verify_bytes
from privacy.accountant import Spend, epsilon
from privacy.chain import History, Record, acceptance_bytes, parse_line

# At these an epsilon must be stated of everything, or no later reservation could be judged.
_DELTAS = (1e-5, 1e-6)


@dataclass(frozen=True)
class Charge:
    """A triple to be written off, and the study it was spent on where that is known."""

    spend: Spend
    study: str | None = None


@dataclass(frozen=True)
class Loss:
    """What is wrong with a ledger's files.

    Attributes:
        damaged: no ledger could be opened from them.
        carried: spent in a ledger that cannot be continued, since its key has left: charged anew in any case.
        found: spent according to signed lines behind the damage.
        hints: lines that show a triple but were changed, with their numbers in the file.
        unknown: how many entries there were at least that no readable line tells of.
    """

    damaged: bool = False
    carried: tuple[Charge, ...] = ()
    found: tuple[Charge, ...] = ()
    hints: tuple[tuple[int, Record], ...] = ()
    unknown: int = 0


@dataclass
class _Lines:
    """The lines behind a damage, sorted by what they prove."""

    signed: dict[str, Record] = field(default_factory=dict)  # by digest
    changed: list[tuple[int, Record]] = field(default_factory=list)  # with the number of the line
    mute: set[int] = field(default_factory=set)  # numbers of lines that prove nothing: changed or unreadable


def judge(kept: History, rest: bytes, key: str, head: tuple[int, str] | None) -> Loss:
    """Judge what lies behind the longest beginning of a ledger that verifies.

    Args:
        kept: that beginning.
        rest: the bytes behind it.
        key: the site's public key of now.
        head: length and last digest according to the head file; None where it says nothing.
    """
    lines = _sorted(kept, rest, key)
    known = {r.entry.commitment for r in (*kept.records, *lines.signed.values())}
    hints = [
        (number, record)
        for number, record in lines.changed
        if record.spend is not None and record.entry.commitment not in known and statable([record.spend])
    ]
    agrees = head is None or kept.head(min(head[0], len(kept.records))) == head[1]
    whole = rest[: rest.rfind(b"\n") + 1]
    mute = set(lines.mute)
    if head is not None:
        mute.discard(1)  # the genesis, which spends nothing
        if agrees and len(whole) < len(rest):
            mute.discard(len(kept.records) + whole.count(b"\n") + 1)  # half a line was never answered for
    return Loss(
        damaged=not agrees or bool(whole),
        found=charges_of(lines.signed.values()),
        hints=tuple(hints),
        unknown=max(
            _missing(kept, lines, [record for _, record in hints], head, agrees=agrees),
            len(mute.difference(number for number, _ in hints)),
        ),
    )


def _missing(
    kept: History, lines: _Lines, hints: list[Record], head: tuple[int, str] | None, *, agrees: bool
) -> int:
    """How many entries are missed by their place in the chain."""
    first = max(1, len(kept.records))  # the very first spends nothing
    told = {record.entry.sequence for record in (*lines.signed.values(), *hints)}
    length = max([*(r.entry.sequence + 1 for r in lines.signed.values()), head[0] if head else 0])
    missing = max(0, length - first) - sum(first <= sequence < length for sequence in told)
    if missing or agrees or hints or head is None or head[1] in lines.signed:
        return missing
    return 1  # another chain: how much longer it was nobody knows


def charges_of(records: Iterable[Record]) -> tuple[Charge, ...]:
    """What some records spent, each by itself: whoever knows the plans looks for the same triples again."""
    return tuple(Charge(r.spend, _study_of(r)) for r in records if r.spend is not None)


def _study_of(record: Record) -> str | None:
    """The study that an opening names, if it is the one that the entry commits to."""
    opening = record.opening
    return opening.study if opening is not None and digest(opening) == record.entry.commitment else None


def statable(spends: Sequence[Spend]) -> bool:
    """Say whether the accountant states a finite epsilon of some spends."""
    try:
        return all(epsilon(spends, delta) < float("inf") for delta in _DELTAS)
    except ConsiliumError:
        return False


def _sorted(kept: History, rest: bytes, key: str) -> _Lines:
    numbered = [(n, line) for n, line in enumerate(rest.split(b"\n"), len(kept.records) + 1) if line]
    parsed = [(number, _parsed(line, number)) for number, line in numbered]
    lines, keys = _Lines(), _keys(kept, [record for _, record in parsed if record is not None], key)
    for number, record in parsed:
        if record is None:
            lines.mute.add(number)
            continue
        signed, entry = record.signed, record.entry
        valid = signed.type == "LedgerEntry" and verify_bytes(
            signed.signed_bytes(), signed.signature, signed.key
        )
        if record.digest in kept.heads:
            continue
        if valid and (entry.site, entry.lineage) != (kept.site, kept.lineage):
            continue  # of another ledger, by its own signature
        if valid and signed.signer == entry.site and signed.key in keys:
            lines.signed.setdefault(record.digest, record)
        else:
            lines.mute.add(number)
            lines.changed.append((number, record))
    return lines


def _parsed(line: bytes, number: int) -> Record | None:
    """The record of a line, without its opening where that cannot be read; None where nothing can."""
    try:
        return parse_line(line, number)
    except ConsiliumError:
        pass
    try:
        return parse_line(json.dumps({"entry": json.loads(line)["entry"]}).encode(), number)
    except (ConsiliumError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _keys(kept: History, records: Sequence[Record], key: str) -> set[str]:
    """The site's keys: those of the beginning, the one of now, and what is tied to them by a rotation."""
    keys, grew = {*kept.keys, key}, True
    rotations = [
        (record.signed.key, record.entry.new_key)
        for record in records
        if record.entry.new_key is not None
        and record.entry.acceptance is not None
        and verify_bytes(record.signed.signed_bytes(), record.signed.signature, record.signed.key)
        and verify_bytes(acceptance_bytes(record.entry), record.entry.acceptance, record.entry.new_key)
    ]
    while grew:
        tied = {k for pair in rotations if keys.intersection(pair) for k in pair}
        keys, grew = keys | tied, not tied <= keys
    return keys
