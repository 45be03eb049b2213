"""The manifest of a release: what was built, from what, by whom approved, and the digest of every file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from contracts.canonical import digest
from contracts.fields import (
    Contract,
    Count,
    Digest,
    Finite,
    LongText,
    SiteName,
    StudyName,
    Text,
    Timestamp,
    Unit,
    Version,
)


class ReleaseFile(Contract):
    """A file of the release, relative to its directory."""

    path: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_./-]{0,120}$")]
    sha256: Digest
    size: Count  # bytes


class ModelInput(Contract):
    """One column of the model's input: raw clinical units, NaN for missing."""

    name: Text
    unit: Unit
    kind: Literal["numeric", "categorical"]
    low: Finite | None = None
    high: Finite | None = None
    levels: Annotated[list[Finite], Field(max_length=64)] | None = None


class SitePrivacy(Contract):
    """What one site spent, by its own ledger."""

    site: SiteName
    declared_size: Count
    epsilon_study: Finite | None = None
    epsilon_lineage: Finite | None = None
    ledger_head: Digest | None = None


class GateResult(Contract):
    """How one gate was decided. `passed` is None when the data could not decide it, which is not a pass."""

    gate: Text
    passed: bool | None = None
    value: Finite | None = None
    detail: Text


class Approval(Contract):
    """Sign-off of one candidate by a person (or, said openly, a script), countersigned by the coordinator."""

    candidate: Digest
    approved_by: Text
    role: Text
    reason: Text = ""
    time: Timestamp


class ReleaseManifest(Contract):
    """The signed manifest. Without `approval` it is the candidate, whose digest the approval names."""

    study: StudyName
    title: Text
    intended_use: LongText
    version: Version
    protocol_hash: Digest
    code_version: Version
    rounds: Count
    sites: Annotated[list[SiteName], Field(max_length=1000)]
    model: Digest  # safetensors of the trained model in the exchange
    opset: Count
    inputs: Annotated[list[ModelInput], Field(max_length=2000)]
    outputs: Annotated[list[Text], Field(max_length=64)]
    decision_threshold: Finite
    privacy_mode: Literal["none", "patient", "site"]
    epsilon: Finite | None = None  # the maximum over sites, for this study
    delta: Finite | None = None
    site_privacy: Annotated[list[SitePrivacy], Field(max_length=1000)]
    gates: Annotated[list[GateResult], Field(max_length=64)]
    files: Annotated[list[ReleaseFile], Field(max_length=1000)]
    created: Timestamp
    approval: Approval | None = None

    @property
    def candidate_digest(self) -> str:
        """Digest of the manifest without its approval."""
        return digest(self.model_copy(update={"approval": None}))
