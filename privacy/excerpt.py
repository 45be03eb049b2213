"""A ledger as whoever may see one study sees it: every entry's public core, that study's entries opened.

Replaying it needs nothing else: `privacy.chain.replay` gives the head and every triple of the lineage. Of
other studies it shows how many entries there are, their order, kinds and triples, and no name, plan, purpose
or time: those are behind commitments with 32 random bytes each.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from contracts.errors import ConsiliumError
from privacy.accountant import Spend
from privacy.chain import Record, read_history

MAX_EXCERPT_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Reservation:
    """What one opened plan of the study paid."""

    plan: str
    purpose: str
    spend: Spend
    quantile_share: float | None
    committed: bool


@dataclass(frozen=True)
class Excerpt:
    """A verified excerpt.

    `spends` is the whole lineage's, whoever spent it. A site could leave an entry of the study unopened: it
    still counts there, and whoever knows the study's plans misses it in `reservations`.
    """

    site: str
    lineage: str
    study: str | None  # None: no entry of a study is opened
    head: str
    length: int
    spends: tuple[Spend, ...]
    study_spends: tuple[Spend, ...]
    by_purpose: dict[str, tuple[Spend, ...]]  # of the study; write-offs under `write-off`
    reservations: tuple[Reservation, ...]
    heads: tuple[str, ...]  # digest of every entry, in order
    lost_heads: tuple[str, ...]  # that it answers for since a restore
    keys: tuple[str, ...]  # the public keys in the order of their time
    rotations: int
    restores: int
    write_offs: int


def excerpt_of(records: Iterable[Record], study: str) -> bytes:
    """Return the excerpt of one study as JSONL.

    Raises:
        ConsiliumError: E418, it would exceed `MAX_EXCERPT_BYTES`.
    """
    lines = [
        record.line(
            with_opening=record.entry.kind == "genesis"
            or (record.opening is not None and record.opening.study == study)
        )
        for record in records
    ]
    size = sum(len(line) for line in lines)
    if size > MAX_EXCERPT_BYTES:
        raise ConsiliumError("E418", f"excerpt of {size} bytes, expected at most {MAX_EXCERPT_BYTES}")
    return b"".join(lines)


def read_excerpt(data: bytes, public: str) -> Excerpt:
    """Verify an excerpt against a key of the site known beforehand.

    Args:
        public: a public key of the site that signed an entry: the first, the one in force, or one between.

    Raises:
        ConsiliumError: E402, naming the line that does not verify; E418, it is too large, is cut off in the
            middle of a line, or opens entries of more than one study or of none.
    """
    if len(data) > MAX_EXCERPT_BYTES:
        raise ConsiliumError("E418", f"excerpt of {len(data)} bytes, expected at most {MAX_EXCERPT_BYTES}")
    history, unfinished = read_history(data, public)
    if unfinished:
        raise ConsiliumError("E418", f"the last {unfinished} bytes are no whole line")
    records = history.records
    opened = [r for r in records if r.opening is not None and r.entry.kind != "genesis"]
    studies = {r.opening.study for r in opened if r.opening is not None}
    if len(studies) > 1 or None in studies:
        raise ConsiliumError("E418", f"entries of {len(studies)} studies are open, expected one study's")
    first = records[0].entry
    kinds = [record.entry.kind for record in records]
    return Excerpt(
        site=first.site,
        lineage=first.lineage,
        study=next(iter(studies), None),
        head=history.head(),
        length=len(records),
        spends=tuple(history.spends()),
        study_spends=tuple(spend for record in opened if (spend := record.spend) is not None),
        by_purpose=_by_purpose(opened),
        reservations=tuple(
            Reservation(plan, r.opening.purpose, r.spend, r.entry.quantile_share, plan in history.committed)
            for plan, r in history.reserved.items()
            if r.opening is not None and r.spend is not None
        ),
        heads=tuple(history.heads),
        lost_heads=tuple(sorted(history.lost_heads)),
        keys=tuple(history.keys),
        rotations=kinds.count("rotate"),
        restores=kinds.count("restore"),
        write_offs=kinds.count("write-off"),
    )


def _by_purpose(opened: list[Record]) -> dict[str, tuple[Spend, ...]]:
    found: dict[str, tuple[Spend, ...]] = {}
    for record in opened:
        if record.opening is not None and record.spend is not None:
            purpose = record.opening.purpose
            found[purpose] = (*found.get(purpose, ()), record.spend)
    return found
