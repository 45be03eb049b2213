"""Evaluation on the hospital's own holdout: scores are computed, reduced to estimates, and stay."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from contracts.canonical import sha256
from contracts.errors import ConsiliumError
from contracts.evaluation import EvaluationReport, HoldoutDiagnostics, Parity, one_bit
from contracts.plan import RoundPlan
from contracts.signing import SigningKey
from contracts.study import PatientPrivacy, StudyProtocol, threshold_of
from durable.files import locked, write_atomic
from models.registry import load_model
from privacy.accountant import epsilon
from privacy.excerpt import read_excerpt
from privacy.ledger import Ledger
from release.export import parity
from release.session import predict
from site_runtime.cohort import load_cohort
from site_runtime.config import SiteConfig
from site_runtime.consent import now
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
        ConsiliumError: E210, E211, the cohort; E509, E804, E805, the exchange; E604, nothing to evaluate;
            E605, another model, cohort or threshold was evaluated for this study before; E426, the plan's
            threshold is not a locked one.
    """
    cohort = load_cohort(home, config, protocol, "holdout")
    if cohort.patients == 0 or plan.base_model is None:
        raise ConsiliumError("E604", f"{cohort.patients} holdout patients, model {plan.base_model}")
    threshold = threshold_of(protocol, plan.decision_threshold)
    remember_evaluation(home, protocol, plan, cohort.digest)
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
            agreement = one_bit(parity(model, exported, features, threshold))
            probability, _ = predict(exported, features)
        else:
            with torch.no_grad():
                probability = torch.sigmoid(model(torch.from_numpy(features))).numpy()
    spent, excerpt = account(home, config, protocol, plan.kind)
    report = EvaluationReport(
        study=protocol.study,
        protocol_hash=protocol.hash,
        plan=plan_digest,
        kind="verification" if plan.kind == "verification" else "evaluation",
        site=config.site,
        created=now(),
        model=plan.artefact or plan.base_model,
        cohort=cohort.digest,
        parity=agreement,
        diagnostics=diagnostics(features, label, protocol) if plan.kind == "evaluation" else None,
        **spent,
        **performance(probability, label.astype(np.int64), features, protocol, cell, threshold),
    )
    keep(home, plan_digest, report, None, {}, excerpt)


def diagnostics(
    features: NDArray[np.float32], label: NDArray[np.float32], protocol: StudyProtocol
) -> HoldoutDiagnostics:
    """What must hold of the holdout before anybody may see how well the model does; one bit each."""
    planned, events = protocol.validation.diagnostics, float(label.sum())
    low, high = protocol.label.prevalence
    allowed = np.array([f.max_missing for f in protocol.features])
    return HoldoutDiagnostics(
        enough_events=min(events, len(label) - events) >= planned.minimum_events,
        prevalence=low <= events / len(label) <= high,
        missingness=bool((np.isnan(features).mean(axis=0) <= allowed).all()),
    )


def remember_evaluation(home: SiteHome, protocol: StudyProtocol, plan: RoundPlan, cohort: str) -> None:
    """Answer for one final model, one threshold and one export per study version, on one frozen cohort.

    Every metric is an exact function of the holdout: whoever could ask for model after model would learn of
    single patients what suppression hides.

    Raises:
        ConsiliumError: E605.
    """
    path = home.state(protocol.study) / "evaluated.json"
    with locked(path.with_suffix(".lock")):
        known = json.loads(path.read_bytes()) if path.exists() else {}
        asked = {"model": plan.base_model, "cohort": cohort, "threshold": plan.decision_threshold}
        first = known.setdefault(protocol.hash, dict(asked))
        if plan.kind == "verification":
            first.setdefault("artefact", plan.artefact)
        asked["artefact"] = plan.artefact
        if any(
            first[name] != asked[name] for name in first if plan.kind == "verification" or name != "artefact"
        ):
            raise ConsiliumError("E605", f"asked for {asked}, answered for {first}")
        write_atomic(path, json.dumps(known, sort_keys=True).encode())


def account(
    home: SiteHome, config: SiteConfig, protocol: StudyProtocol, kind: str
) -> tuple[dict[str, float | str], bytes | None]:
    """What this site's ledger says of the study now, reservations without an update included.

    Returns:
        the report's fields; and with an evaluation the ledger's excerpt, from which anybody can compose them
        anew. None where nothing was ever spent.
    """
    lineage, privacy = config.governance.lineage, protocol.privacy
    if not isinstance(privacy, PatientPrivacy) or not home.ledger(lineage).exists():
        return {}, None
    key = SigningKey.load(config.site, home.signing_key)
    ledger = Ledger(home.ledger(lineage), config.site, lineage, key)
    excerpt = ledger.excerpt(protocol.study)
    found = read_excerpt(excerpt, key.public)
    fields: dict[str, float | str] = {
        "epsilon_study": epsilon(found.study_spends, privacy.delta, privacy.adjacency),
        "epsilon_lineage": epsilon(found.spends, privacy.delta, privacy.adjacency),
        "ledger_head": found.head,
    }
    if kind != "evaluation":
        return fields, None
    return fields | {"ledger": sha256(excerpt)}, excerpt
