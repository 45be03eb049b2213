"""The manifest of a release: what was built, from what, by whom approved, and the digest of every file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from contracts.canonical import canonical_json, digest
from contracts.dossier import Changed, Identifier
from contracts.fields import (
    Contract,
    Count,
    Digest,
    Finite,
    Key,
    LongText,
    Signature,
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
    ledger_key: Key | None = (
        None  # of whom keeps the ledger, as the coordinator knows it; verifies the excerpt
    )


class GateResult(Contract):
    """How one gate was decided. `passed` is None when the data could not decide it, which is not a pass."""

    gate: Text
    passed: bool | None = None
    value: Finite | None = None
    margin: Finite | None = None  # how far inside its limit (above 0) or outside (below 0)
    site: SiteName | None = None  # the hospital that decides it: the worst, or where it failed
    detail: Text


class Approval(Contract):
    """Sign-off of one candidate by a person (or, said openly, a script), countersigned by the coordinator.

    With `key` and `signature` it is also signed by the person: Ed25519 over `signed_bytes`.
    """

    candidate: Digest
    approved_by: Text
    user: Text = ""  # the Airflow user who answered
    role: Text
    reason: Text = ""
    time: Timestamp
    key: Key | None = None
    signature: Signature | None = None

    @property
    def signed_bytes(self) -> bytes:
        """What a personal signature covers: everything but the signature itself."""
        return canonical_json(self.model_copy(update={"signature": None}))


class SiteData(Contract):
    """Which data of a hospital a release rests on: digests, and the commit in the hospital's own DVC."""

    site: SiteName
    data_sheet: Digest
    cohort: Digest
    data_version: Text | None = None
    policy: Digest


class RoundLineage(Contract):
    """One closed exchange: its plan, the model after it, and the admitted updates' digests by hospital."""

    round: Count
    kind: Text
    fold: SiteName | None = None
    plan: Digest
    model: Digest | None = None
    updates: dict[SiteName, Digest]


class Lineage(Contract):
    """From what and with what a release was made."""

    data: Annotated[list[SiteData], Field(max_length=1000)]
    rounds: Annotated[list[RoundLineage], Field(max_length=20_000)]
    code_commit: Text | None = None  # of the coordinator's checkout; None when it is not a clean checkout
    environment: Digest  # of the sorted list of installed packages, name==version


class Change(Contract):
    """What changed since the product's release before, and which planned modification this is."""

    level: Literal["first", "patch", "minor", "major"]
    since: Version | None = None
    changed: Annotated[list[Changed], Field(max_length=8)] = []
    modification: Identifier | None = None  # of the change control plan; None: open


INVESTIGATIONAL = "investigational, not cleared"


class ReleaseManifest(Contract):
    """The signed manifest. Without approvals and time of publication it is the candidate that is approved."""

    product: StudyName
    study: StudyName
    title: Text
    intended_use: LongText
    version: Version
    regulatory_status: Text = INVESTIGATIONAL
    change: Change
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
    lineage: Lineage
    events: Digest | None = None  # head of the event log in events.jsonl
    sign_off: Annotated[list[Text], Field(min_length=1, max_length=2)]  # roles that must approve
    triggered_by: Text | None = None  # the Airflow user who started the release run; they may not approve
    # Hospitals that withdrew in mid-study, and the first exchange without them; None where nobody did.
    withdrawn: Annotated[dict[SiteName, Count], Field(max_length=1000)] | None = None
    files: Annotated[list[ReleaseFile], Field(max_length=5000)]
    verified: Timestamp  # when the last hospital had verified the exported model
    created: Timestamp
    approvals: Annotated[list[Approval], Field(max_length=2)] = []
    published: Timestamp | None = None

    @property
    def release_id(self) -> str:
        """`heart-disease@v1.0.0`: what the model file and the registry's tag say."""
        return f"{self.product}@v{self.version}"

    @property
    def candidate_digest(self) -> str:
        """Digest of the manifest without its approvals and its publication."""
        return digest(self.model_copy(update={"approvals": [], "published": None}))
