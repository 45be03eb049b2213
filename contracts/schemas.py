"""JSON Schema of every contract, for hospitals that review what may cross."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from contracts.datasheet import DataSheet
from contracts.enrolment import JoinRequest, KeyRotation, StartupKit
from contracts.evaluation import EvaluationReport, SealedReport
from contracts.ledger import LedgerEntry
from contracts.masking import UnmaskRequest, UnmaskShares
from contracts.plan import RoundPlan
from contracts.refusal import Refusal
from contracts.release import ReleaseManifest
from contracts.study import StudyProtocol
from contracts.update import UpdateEnvelope

CONTRACTS: dict[str, type[BaseModel]] = {
    kind.__name__: kind
    for kind in (
        StudyProtocol,
        RoundPlan,
        UpdateEnvelope,
        UnmaskRequest,
        UnmaskShares,
        DataSheet,
        EvaluationReport,
        SealedReport,
        LedgerEntry,
        ReleaseManifest,
        Refusal,
        JoinRequest,
        StartupKit,
        KeyRotation,
    )
}


def json_schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON Schema (2020-12) of each contract by name."""
    return {name: kind.model_json_schema() for name, kind in CONTRACTS.items()}
