"""Evaluation on the hospital's own holdout: scores are computed, reduced to estimates, and stay."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from contracts.errors import ConsiliumError
from contracts.evaluation import EvaluationReport, Parity
from contracts.plan import RoundPlan
from contracts.study import StudyProtocol
from models.registry import load_model
from release.export import parity
from release.session import predict
from site_runtime.cohort import load_cohort
from site_runtime.config import SiteConfig
from site_runtime.exchange import Exchange
from site_runtime.home import SiteHome
from site_runtime.outbox import keep
from validation.performance import evaluate as performance


def make_report(
    home: SiteHome,
    config: SiteConfig,
    protocol: StudyProtocol,
    plan: RoundPlan,
    plan_digest: str,
    exchange: Exchange,
) -> None:
    """Evaluate the plan's model on the holdout and put the report into the outbox.

    A verification plan also names the exported model: the metrics are then the exported model's, computed
    by onnxruntime, beside its agreement with the trained one on the same patients.

    Raises:
        ConsiliumError: E210, E211, the cohort; E509, E804, E805, the exchange; E604, nothing to evaluate.
    """
    cohort = load_cohort(home, config, protocol, "holdout")
    if cohort.patients == 0 or plan.base_model is None:
        raise ConsiliumError("E604", f"{cohort.patients} holdout patients, model {plan.base_model}")
    features, label = cohort.x[:, 0, :], cohort.y[:, 0]
    cell = max(protocol.cohort.minimum_cell, config.policy.minimum_cell)
    agreement: Parity | None = None
    with tempfile.TemporaryDirectory(dir=home.outbox("").parent) as folder:
        weights = Path(folder) / "model.safetensors"
        exchange.get(plan.base_model, weights)
        model = load_model(protocol, weights)
        if plan.kind == "verification":
            if plan.artefact is None:
                raise ConsiliumError("E604", "a verification plan names the exported model")
            exported = Path(folder) / "model.onnx"
            exchange.get(plan.artefact, exported)
            agreement = parity(model, exported, features, protocol.decision_threshold)
            probability, _ = predict(exported, features)
        else:
            with torch.no_grad():
                probability = torch.sigmoid(model(torch.from_numpy(features))).numpy()
    report = EvaluationReport(
        study=protocol.study,
        protocol_hash=protocol.hash,
        plan=plan_digest,
        kind="verification" if plan.kind == "verification" else "evaluation",
        site=config.site,
        model=plan.artefact or plan.base_model,
        cohort=cohort.digest,
        parity=agreement,
        **performance(probability, label.astype(np.int64), features, protocol, cell),
    )
    keep(home, plan_digest, report, None, {})
