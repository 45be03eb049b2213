"""The signed envelope of a site's update; the tensors lie in the exchange under their digest."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from contracts.fields import Contract, Count, Digest, Finite, SiteName, StudyName, Version
from contracts.masking import MaskKey


class UpdateEnvelope(Contract):
    """What a site sends for a plan. With DP on nothing in it is computed from the data but `cohort`: a keyed
    digest, which nobody can guess and which shows whether the cohort is the one of the data sheet. An answer
    to a `local` plan has no tensors: the model that was trained stays at the hospital."""

    study: StudyName
    protocol_hash: Digest
    plan: Digest
    round: Annotated[int, Field(ge=0)]
    site: SiteName
    base_model: Digest | None = None
    tensors: Digest | None = None  # safetensors; None for a local model
    tensor_bytes: Count | None = None
    planned_steps: Annotated[int, Field(ge=1)]
    data_sheet: Digest
    cohort: Digest
    policy: Digest
    code_version: Version
    sample_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    noise_multiplier: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    delta: Finite | None = None
    epsilon_study: Finite | None = None  # this study so far on this lineage, composed
    epsilon_lineage: Finite | None = None  # everything ever spent on this lineage, composed
    epsilon_left: Finite | None = None  # what the site's own cap leaves, at the site's own delta
    ledger_head: Digest | None = None  # after this update's reservation
    ledger_length: Count | None = None
    next_mask: MaskKey | None = None  # secure aggregation: the ephemeral key for the exchange after this
