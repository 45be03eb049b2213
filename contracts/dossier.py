"""What people write for the release dossier, in the study's YAML. What nobody wrote is shown as open."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from contracts.fields import Contract, LongText, Text

Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Level = Annotated[int, Field(ge=1, le=5)]  # 1 lowest, 5 highest

Changed = Literal[
    "weights", "data", "sites", "architecture", "threshold", "inputs", "outputs", "intended_use"
]


class Control(Contract):
    """A risk control and the test that shows it (ISO 14971:2019, clause 7)."""

    id: Identifier
    description: LongText
    kind: Literal["design", "protective", "information"]  # clause 7.1, in order of priority
    test: Text | None = None  # pytest id, `tests/release/test_verify.py::test_...`, or none: open


class Risk(Contract):
    """A foreseeable harm, estimated before and after its controls (ISO 14971:2019, clauses 5 to 8)."""

    id: Identifier
    hazard: LongText
    sequence: LongText  # of events that leads from hazard to hazardous situation
    harm: LongText
    severity: Level
    probability: Level
    controls: Annotated[list[Control], Field(max_length=20)] = []
    residual_severity: Level | None = None
    residual_probability: Level | None = None
    accepted_by: Text | None = None  # who decided that the residual risk is acceptable


class Modification(Contract):
    """A planned change of the model, as a predetermined change control plan describes it (FDA, 2024)."""

    id: Identifier
    title: Text
    changes: Annotated[list[Changed], Field(min_length=1, max_length=8)]
    description: LongText
    data_management: LongText | None = None
    retraining: LongText | None = None
    performance_evaluation: LongText | None = None
    update_procedure: LongText | None = None
    impact: LongText | None = None  # benefits, risks and how they are mitigated


class ChangeControl(Contract):
    """Predetermined change control plan (section 515C of the FD&C Act)."""

    modifications: Annotated[list[Modification], Field(max_length=20)] = []
    authorised_by: Text | None = None


class Monitoring(Contract):
    """How the deployed model is watched (EU AI Act, article 72; ISO 14971:2019, clause 10)."""

    responsible: Text | None = None
    interval_days: Annotated[int, Field(ge=1, le=3660)] | None = None
    measures: Annotated[list[Text], Field(max_length=30)] = []
    triggers: Annotated[list[Text], Field(max_length=30)] = []  # what leads to investigation or withdrawal
    reporting: LongText | None = None  # to whom incidents are reported


class Dossier(Contract):
    """Human statements about the device. Every one may be missing: it then stands as open, never invented."""

    manufacturer: Text | None = None
    contact: Text | None = None
    users: LongText | None = None
    setting: LongText | None = None
    patients: LongText | None = None  # population the model is meant for
    out_of_scope: LongText | None = None
    use_of_output: LongText | None = None  # what is done with the number, and by whom
    benefit: LongText | None = None
    background: LongText | None = None  # clinical rationale
    model_description: LongText | None = None
    limitations: Annotated[list[LongText], Field(max_length=30)] = []
    bias: LongText | None = None  # known or suspected, and what was done
    funding: LongText | None = None
    ethics: LongText | None = None
    patient_involvement: LongText | None = None
    security: LongText | None = None
    maintenance: LongText | None = None
    risks: Annotated[list[Risk], Field(max_length=100)] = []
    change_control: ChangeControl | None = None
    monitoring: Monitoring | None = None
    # Anything else a standard asks for: `tripod.6a`, `hti1.3.ii`, `annex_iv.2.g`, ... -> text
    statements: Annotated[dict[Identifier, LongText], Field(max_length=300)] = {}
