"""A small release for the tests: a hand-made ONNX file, so that no torch is needed."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from onnx import TensorProto, helper, numpy_helper
from pydantic import JsonValue

from contracts.canonical import sha256
from contracts.datasheet import DataSheet, QualityCheck
from contracts.evaluation import EvaluationReport, Parity
from contracts.privacy import PatientPrivacy
from contracts.release import (
    Approval,
    GateResult,
    Lineage,
    ReleaseManifest,
    RoundLineage,
    SiteData,
    SitePrivacy,
)
from contracts.signing import Signed, SigningKey, parse_signed, to_text
from contracts.study import StudyProtocol
from privacy.accountant import Spend, epsilon
from privacy.ledger import Ledger
from release.directory import write_candidate
from release.events import GENESIS, Event
from release.export import model_metadata
from release.facts import ReleaseFacts
from tests.factories import ZERO, tiny_study
from validation.performance import evaluate
from validation.pooling import metrics_tree

CREATED, APPROVED, PUBLISHED = "2026-01-01T00:00:00Z", "2026-01-01T00:05:00Z", "2026-01-01T00:06:00Z"


def tiny_onnx(target: Path, scale: float = 0.01, metadata: Mapping[str, str] | None = None) -> Path:
    """A model of three features: sigmoid(scale * sum), out of range where all are missing."""
    ones = numpy_helper.from_array(np.full((3, 1), scale, dtype=np.float32), "w")
    axes = numpy_helper.from_array(np.array([1], dtype=np.int64), "axes")
    zero = numpy_helper.from_array(np.array(0, dtype=np.float32), "zero")
    nodes = [
        helper.make_node("IsNaN", ["features"], ["missing"]),
        helper.make_node("Where", ["missing", "zero", "features"], ["known"]),
        helper.make_node("MatMul", ["known", "w"], ["column"]),
        helper.make_node("Squeeze", ["column", "axes"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["probability"]),
        helper.make_node("Cast", ["missing"], ["count"], to=TensorProto.INT32),
        helper.make_node("ReduceMin", ["count", "axes"], ["least"], keepdims=0),
        helper.make_node("Cast", ["least"], ["out_of_range"], to=TensorProto.BOOL),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 3])],
        [
            helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["batch"]),
            helper.make_tensor_value_info("out_of_range", TensorProto.BOOL, ["batch"]),
        ],
        [ones, axes, zero],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model.producer_name = "consilium"
    helper.set_model_props(model, dict(metadata or {}))
    target.write_bytes(model.SerializeToString(deterministic=True))
    return target


@cache
def site_key(site: str) -> SigningKey:
    """The key with which a hospital signs its data sheet and its ledger; the same every time."""
    return SigningKey(site, Ed25519PrivateKey.from_private_bytes(bytes.fromhex(sha256(site.encode()))))


def tiny_ledger(site: str, study: StudyProtocol) -> tuple[SitePrivacy, bytes]:
    """What a hospital spent, by a real ledger, and the excerpt it shows; another study spent before."""
    key, privacy = site_key(site), study.privacy
    assert isinstance(privacy, PatientPrivacy)
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / f"{site}.jsonl", site, site, key)
        spends = [Spend(0.01, 4.0, 50), Spend(1.0, 9.5, 1), *[Spend(0.2, 1.25, 3)] * 2]
        for number, spend in enumerate(spends):
            kind = "statistics" if spend.steps == 1 else "training"
            plan = {
                "study": study.study if number else "secret-trial",
                "plan": f"{number:064x}",
                "purpose": kind,
            }
            ledger.reserve(**plan, spend=spend, epsilon_cap=99.0, delta=privacy.delta)
            ledger.commit(plan["plan"])
        excerpt = ledger.excerpt(study.study)
        return SitePrivacy(
            site=site,
            declared_size=400,
            epsilon_study=epsilon(ledger.spends(study.study), privacy.delta, privacy.adjacency),
            epsilon_lineage=epsilon(ledger.spends(), privacy.delta, privacy.adjacency),
            ledger_head=ledger.head,
            ledger_key=key.public,
        ), excerpt


def sheet(study: StudyProtocol, site: str, created: str = CREATED) -> Signed:
    """A hospital's signed data sheet."""
    return site_key(site).sign(
        DataSheet(
            study=study.study, protocol_hash=study.hash, site=site, connector="csv", cohort=ZERO,
            data_version="a" * 40, declared_size=400, holdout="keyed",
            checks=[QualityCheck(check="label", severity="blocking", passed=True)], accepted=True,
            policy=ZERO, code_version="0.1.0", created=created,
        )
    )  # fmt: skip


def sheets_of(study: StudyProtocol, sites: tuple[str, ...], created: str = CREATED) -> dict[str, str]:
    """Each hospital's signed data sheet, as text."""
    return {site: to_text(sheet(study, site, created)) for site in sites}


def lineage_of(sheets: dict[str, str]) -> Lineage:
    """One round over the hospitals of these data sheets."""
    data = [
        SiteData(
            site=site, data_sheet=parse_signed(text).digest, cohort=ZERO, data_version="a" * 40, policy=ZERO
        )
        for site, text in sheets.items()
    ]
    updates = dict.fromkeys(sheets, ZERO)
    rounds = [RoundLineage(round=1, kind="training", plan=ZERO, model=ZERO, updates=updates)]
    return Lineage(data=data, rounds=rounds, environment=ZERO)


def event_log(sites: tuple[str, ...]) -> bytes:
    """What happened, from registration to the last verification; these hospitals were admitted at intake."""
    lines, previous = [], GENESIS
    admitted: dict[str, JsonValue] = {"cohorts": dict.fromkeys(sites, ZERO)}
    for n, name in enumerate(("registered", "intake", "round_opened", "round_closed", "verified"), 1):
        details = admitted if name == "intake" else {}
        event = Event(n=n, time=CREATED, event=name, key=f"{name}/{n}", details=details, previous=previous)
        lines.append(event.line)
        previous = sha256(event.line)
    return b"\n".join(lines) + b"\n"


def tiny_facts(study: StudyProtocol | None = None, *, passed: bool | None = True) -> ReleaseFacts:
    """Facts of two hospitals, one of them under the minimum cell."""
    study = study or tiny_study()
    draw = np.random.default_rng(0)
    reports = []
    for site, n in (("ash", 200), ("birch", 8)):
        p = draw.random(n)
        y = (draw.random(n) < p).astype(int)
        x = np.column_stack([draw.uniform(0, 100, n), draw.uniform(0, 20, n), draw.integers(0, 2, n)])
        fields = evaluate(p, y, x, study, 5)
        reports.append(
            EvaluationReport(
                study=study.study, protocol_hash=study.hash, plan=ZERO, kind="evaluation", site=site,
                model=ZERO, cohort=ZERO, created=CREATED, **fields,
            )
        )  # fmt: skip
    sheets = sheets_of(study, ("ash", "birch"))
    private = study.privacy.mode == "patient"
    shown = {r.site: tiny_ledger(r.site, study) for r in reports} if private else {}
    parity = Parity(max_abs_difference=1e-8, decisions_flipped=0, tolerance=1e-5)
    private = study.privacy.mode != "none"
    return ReleaseFacts(
        protocol=study,
        version="1.0.0",
        code_version="0.1.0",
        rounds=2,
        model=ZERO,
        created=CREATED,
        evaluation=reports,
        metrics=metrics_tree(reports),
        gates=[GateResult(gate="pooled auroc >= 0.6", passed=passed, value=0.8, detail="0.800")],
        site_privacy=[
            shown[r.site][0] if shown else SitePrivacy(site=r.site, declared_size=400) for r in reports
        ],
        ledgers={site: excerpt for site, (_, excerpt) in shown.items()},
        data_sheets=sheets,
        lineage=lineage_of(sheets),
        events=event_log(("ash", "birch")),
        verification=[r.model_copy(update={"kind": "verification", "parity": parity}) for r in reports],
        training_noise=1.25 if private else None,
        statistics_noise=9.5 if study.first_round == 0 and private else None,
    )


def tiny_candidate(root: Path, **facts: object) -> tuple[Path, ReleaseManifest]:
    """A candidate below `root`: its folder and manifest."""
    root.mkdir(parents=True, exist_ok=True)
    known = tiny_facts(**facts)  # type: ignore[arg-type]
    model = tiny_onnx(root / "model.onnx", metadata=metadata_of(known))
    manifest = write_candidate(root / "candidate", known, model)
    return root / "candidate", manifest


def metadata_of(facts: ReleaseFacts) -> dict[str, str]:
    """What the model of these facts says of itself."""
    return model_metadata(
        facts.protocol,
        release_id=facts.release_id,
        model=facts.model,
        epsilon=facts.epsilon,
        threshold=facts.decision_threshold,
    )


def approval_of(manifest: ReleaseManifest, **changes: str) -> Approval:
    """The approval of a candidate."""
    fields = {
        "candidate": manifest.candidate_digest,
        "approved_by": "Dr Test",
        "role": "clinician",
        "time": APPROVED,
    }
    return Approval(**{**fields, **changes})
