"""What a hospital says of its cohort after intake: verdicts and digests, never a value."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from contracts.fields import Contract, Digest, FeatureName, SiteName, StudyName, Timestamp, Version
from contracts.masking import MaskKey


class QualityCheck(Contract):
    """One data-quality check: what was asked and whether it held. No count, no value, no example."""

    check: Literal[
        "column", "type", "range", "levels", "missingness", "uniqueness", "label", "prevalence", "time"
    ]
    column: FeatureName | None = None
    severity: Literal["blocking", "warning"]
    passed: bool


class DataSheet(Contract):
    """A frozen cohort of one site for one study."""

    study: StudyName
    protocol_hash: Digest
    site: SiteName
    connector: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{1,31}$")]
    cohort: Digest  # HMAC-SHA256 of the cohort under a key of the site: names it, cannot be guessed
    data_version: Annotated[str, Field(pattern=r"^[0-9a-f]{7,64}$")] | None = None  # commit in the site's DVC
    declared_size: Annotated[int, Field(ge=1)]  # patients, two significant figures, frozen at enrolment
    holdout: Literal["keyed", "list"]
    checks: Annotated[list[QualityCheck], Field(max_length=10_000)]
    accepted: bool  # no blocking check failed
    policy: Digest
    code_version: Version
    mask: MaskKey | None = None  # secure aggregation: the ephemeral key for the next exchange
    created: Timestamp
