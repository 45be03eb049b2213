"""One valid instance of every contract."""

from __future__ import annotations

from pydantic import BaseModel

from contracts.datasheet import DataSheet, QualityCheck
from contracts.enrolment import MemberCard, StartupKit, make_request, make_rotation
from contracts.errors import ConsiliumError
from contracts.evaluation import (
    CalibrationBin,
    Estimate,
    EvaluationReport,
    HoldoutDiagnostics,
    Parity,
    SealedReport,
    SubgroupResult,
)
from contracts.ledger import LedgerEntry
from contracts.masking import MaskKey, UnmaskRequest, UnmaskShares
from contracts.plan import RosterEntry, RoundPlan
from contracts.refusal import Refusal
from contracts.release import (
    Approval,
    Change,
    GateResult,
    Lineage,
    ModelInput,
    ReleaseFile,
    ReleaseManifest,
    SitePrivacy,
)
from contracts.signing import SigningKey
from contracts.update import UpdateEnvelope
from tests.factories import ZERO, tiny_study

MASK = MaskKey(exchange=1, key="A" * 43, signature="A" * 86)
TIME = "2026-01-01T00:00:00Z"
AUROC = Estimate(value=0.8, standard_error=0.02, lower=0.76, upper=0.84)


def one_of_each() -> list[BaseModel]:
    """Return an instance of each contract, with optional fields and nested models filled."""
    study = tiny_study()
    old, new, edge = (SigningKey.generate("ash") for _ in range(3))
    rotation = make_rotation(old, new, TIME, edge)
    named = {"study": study.study, "protocol_hash": study.hash}
    return [
        study,
        make_request(old, edge, 100, TIME),
        rotation,
        StartupKit(
            federation="north",
            url="https://fed.example:8443",
            coordinator_key=old.public,
            ca="-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            exchange="s3://bucket/prefix",
            members=[MemberCard(site="ash", sign_key=new.public, declared_size=100)],
            rotations=[old.sign(rotation)],
            code_versions=["0.1.0"],
            log_head=ZERO,
            created=TIME,
        ),
        RoundPlan(
            **named,
            kind="training",
            round=1,
            rounds=study.rounds,
            base_model=ZERO,
            roster=[RosterEntry(site="ash", data_sheet=ZERO, declared_size=100, ledger_head=ZERO, mask=MASK)],
            code_versions=["0.1.0"],
            noise_multiplier=1.25,
            expected_epsilon=3.0,
            deadline_seconds=30,
            created=TIME,
        ),
        UnmaskRequest(
            **named,
            plan=ZERO,
            exchange=1,
            alive=["ash", "birch"],
            dead=["cedar"],
            shares={"ash": ZERO, "birch": ZERO},
        ),
        UnmaskShares(
            **named,
            plan=ZERO,
            exchange=1,
            request=ZERO,
            site="ash",
            own={"ash": "A" * 43, "birch": "A" * 43},
            pairs={"ash cedar": "A" * 43, "birch cedar": "A" * 43},
        ),
        UpdateEnvelope(
            **named,
            plan=ZERO,
            round=1,
            site="ash",
            base_model=ZERO,
            tensors=ZERO,
            tensor_bytes=1024,
            planned_steps=3,
            data_sheet=ZERO,
            cohort=ZERO,
            policy=ZERO,
            code_version="0.1.0",
            sample_rate=0.2,
            noise_multiplier=1.25,
            delta=1e-5,
            epsilon_study=1.0,
            epsilon_lineage=1.5,
            epsilon_left=10.0,
            ledger_head=ZERO,
            ledger_length=2,
        ),
        DataSheet(
            **named,
            site="ash",
            connector="csv",
            cohort=ZERO,
            data_version="a" * 40,
            declared_size=100,
            holdout="keyed",
            checks=[QualityCheck(check="range", column="lactate", severity="blocking", passed=True)],
            accepted=True,
            policy=ZERO,
            code_version="0.1.0",
            created=TIME,
        ),
        EvaluationReport(
            **named,
            plan=ZERO,
            kind="evaluation",
            site="ash",
            created=TIME,
            model=ZERO,
            cohort=ZERO,
            n=100,
            events=30,
            metrics={"auroc": AUROC},
            suppressed=False,
            calibration=[CalibrationBin(mean_predicted=0.3, observed=0.3, n=100)],
            subgroups=[SubgroupResult(subgroup="sex", group="0", suppressed=True)],
            parity=Parity(max_abs_difference=1e-8, decisions_flipped=0, tolerance=1e-5),
        ),
        LedgerEntry(
            sequence=1,
            previous=ZERO,
            site="ash",
            lineage="ash",
            kind="reserve",
            mechanism="subsampled-gaussian",
            sample_rate=0.2,
            noise_multiplier=1.25,
            steps=3,
            commitment=ZERO,
        ),
        SealedReport(
            **named,
            plan=ZERO,
            site="ash",
            cohort=ZERO,
            created=TIME,
            diagnostics=HoldoutDiagnostics(enough_events=True, prevalence=True, missingness=True),
            sealed="AAAA",
        ),
        ReleaseManifest(
            **named,
            product="tiny",
            change=Change(level="first"),
            lineage=Lineage(data=[], rounds=[], environment=ZERO),
            sign_off=["clinician"],
            verified=TIME,
            published=TIME,
            title=study.title,
            intended_use=study.intended_use,
            version="1.0.0",
            code_version="0.1.0",
            rounds=2,
            sites=["ash"],
            model=ZERO,
            opset=20,
            inputs=[ModelInput(name="age", unit="years", kind="numeric", low=0, high=100)],
            outputs=["probability", "out_of_range"],
            decision_threshold=0.5,
            privacy_mode="patient",
            epsilon=1.0,
            delta=1e-5,
            site_privacy=[SitePrivacy(site="ash", declared_size=100, epsilon_study=1.0, ledger_head=ZERO)],
            gates=[GateResult(gate="pooled auroc >= 0.7", passed=True, value=0.8, detail="0.800")],
            files=[ReleaseFile(path="model.onnx", sha256=ZERO, size=1024)],
            created=TIME,
            approvals=[Approval(candidate=ZERO, approved_by="Dr Test", role="clinician", time=TIME)],
        ),
        Refusal.of(ConsiliumError("E302", "detail"), study="tiny", site="ash", stage="train", plan=ZERO),
    ]
