"""A small release for the tests: a hand-made ONNX file, so that no torch is needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from contracts.evaluation import EvaluationReport, Parity
from contracts.release import Approval, GateResult, ReleaseManifest, SitePrivacy
from contracts.study import StudyProtocol
from release.directory import write_candidate
from release.facts import ReleaseFacts
from tests.factories import ZERO, tiny_study
from validation.performance import evaluate
from validation.pooling import metrics_tree

CREATED, APPROVED = "2026-01-01T00:00:00Z", "2026-01-01T00:05:00Z"


def tiny_onnx(target: Path, scale: float = 0.01) -> Path:
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
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), target)
    return target


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
                model=ZERO, cohort=ZERO, **fields,
            )
        )  # fmt: skip
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
            SitePrivacy(
                site=r.site,
                declared_size=400,
                epsilon_study=2.5 if private else None,
                epsilon_lineage=2.7 if private else None,
                ledger_head=ZERO if private else None,
            )
            for r in reports
        ],
        verification=[r.model_copy(update={"kind": "verification", "parity": parity}) for r in reports],
        training_noise=1.25 if private else None,
        statistics_noise=9.5 if study.first_round == 0 and private else None,
    )


def tiny_candidate(root: Path, **facts: object) -> tuple[Path, ReleaseManifest]:
    """A candidate below `root`: its folder and manifest."""
    root.mkdir(parents=True, exist_ok=True)
    model = tiny_onnx(root / "model.onnx")
    manifest = write_candidate(root / "candidate", tiny_facts(**facts), model)  # type: ignore[arg-type]
    return root / "candidate", manifest


def approval_of(manifest: ReleaseManifest, **changes: str) -> Approval:
    """The approval of a candidate."""
    fields = {
        "candidate": manifest.candidate_digest,
        "approved_by": "Dr Test",
        "role": "clinician",
        "time": APPROVED,
    }
    return Approval(**{**fields, **changes})
