"""An entry of a site's privacy ledger: the part that may be shown, and a commitment to the rest."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from contracts.fields import Contract, Digest, SiteName, StudyName, Timestamp


class LedgerEntry(Contract):
    """One line of the append-only, hash-chained ledger of a lineage.

    The triple (sample_rate, noise_multiplier, steps) is all that accounting needs. What it was spent on is
    behind `commitment` = SHA-256 of the canonical JSON of a `LedgerOpening`, which is shown only to those
    who may see it. A `reserve` entry counts for ever; `commit` and `genesis` spend nothing.
    """

    sequence: Annotated[int, Field(ge=0)]
    previous: Digest  # digest of the entry before; 64 zeros for the first
    site: SiteName
    lineage: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]
    kind: Literal["genesis", "reserve", "commit"]
    mechanism: Literal["subsampled-gaussian"] | None = None
    sample_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    noise_multiplier: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    commitment: Digest


class LedgerOpening(Contract):
    """What an entry's commitment hides: kept at the site, opened in a release for its own study only."""

    study: StudyName | None = None
    plan: Digest | None = None
    purpose: Annotated[str, Field(max_length=64)]
    time: Timestamp
    salt: Digest
