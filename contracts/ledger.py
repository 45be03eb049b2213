"""An entry of a site's privacy ledger: the part that may be shown, and a commitment to the rest."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from contracts.fields import Contract, Digest, Key, Signature, SiteName, StudyName, Timestamp


class LedgerEntry(Contract):
    """One line of the append-only, hash-chained ledger of a lineage.

    The triple (sample_rate, noise_multiplier, steps) is all that accounting needs. What it was spent on is
    behind `commitment` = SHA-256 of the canonical JSON of a `LedgerOpening`, which is shown only to those
    who may see it. `reserve` and `write-off` count for ever; the other kinds spend nothing:

    - genesis: the first entry. commit: the result of a reserved plan is in the outbox.
    - rotate: from the next entry on only `new_key` signs. The key in force signs the entry, and `acceptance`
      is the new key's signature over the rest of it, and so over everything before.
    - restore: entries were lost up to `lost_head`, which this chain answers for from now on.
    - write-off: a privacy officer's charge that no plan made; with `lost_head`, for entries lost with it.
    """

    sequence: Annotated[int, Field(ge=0)]
    previous: Digest  # digest of the entry before; 64 zeros for the first
    site: SiteName
    lineage: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]
    kind: Literal["genesis", "reserve", "commit", "rotate", "restore", "write-off"]
    mechanism: Literal["subsampled-gaussian"] | None = None
    sample_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    noise_multiplier: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    steps: Annotated[int, Field(ge=1, le=2**40)] | None = None
    # Of each step's precision 1 / noise_multiplier^2, what paid for the count of adaptive clipping. No cost.
    quantile_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    new_key: Key | None = None
    acceptance: Signature | None = None
    lost_head: Digest | None = None
    commitment: Digest


class LedgerOpening(Contract):
    """What an entry's commitment hides: kept at the site, opened in a release for its own study only."""

    study: StudyName | None = None
    plan: Digest | None = None
    purpose: Annotated[str, Field(max_length=64)]
    officer: Annotated[str, Field(min_length=1, max_length=100)] | None = None  # who decided
    reason: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    time: Timestamp  # by the site's clock, but never before the entry before
    salt: Digest
