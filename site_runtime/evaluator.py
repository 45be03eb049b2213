"""Evaluation on the hospital's own holdout: scores are computed, reduced to estimates, and stay."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts.canonical import sha256
from contracts.errors import ConsiliumError
from contracts.evaluation import EvaluationReport, HoldoutDiagnostics, Parity, one_bit
from contracts.plan import RoundPlan
from contracts.privacy import PatientPrivacy
from contracts.signing import SigningKey
from contracts.study import StudyProtocol, threshold_of
from durable.files import locked, write_atomic
from models.registry import load_model
from privacy.accountant import epsilon
from privacy.excerpt import read_excerpt
from privacy.ledger import Ledger
from release.export import parity
from site_runtime.base_model import check_base, read_base
from site_runtime.baselines import Holdout, comparisons, probabilities
from site_runtime.cohort import load_cohort
from site_runtime.config import SiteConfig
from site_runtime.decisions import now
from site_runtime.exchange import Exchange
from site_runtime.home import SiteHome
from site_runtime.local import local_path
from site_runtime.outbox import keep
from validation.performance import evaluate as performance
from validation.performance import nothing


def make_report(
    home: SiteHome,
    config: SiteConfig,
    protocol: StudyProtocol,
    plan: RoundPlan,
    plan_digest: str,
    exchange: Exchange,
) -> None:
    """Evaluate the plan's model on the holdout and put the report into the outbox.

    A verification plan also names the exported model: the answer is whether it agrees with the trained one on
    the same patients, one bit. No metric leaves with it: it is not sealed, so whoever asked for it before the
    diagnostics were checked would see the performance; and two models that agree within the tolerance may
    still rank patients differently, which would single patients out.

    Raises:
        ConsiliumError: E210, E211, the cohort; E509, E804, E805, the exchange; E604, nothing to evaluate;
            E605, another model, cohort, threshold or baseline was evaluated for this study before; E426, the
            plan's threshold is not a locked one.
    """
    cohort = load_cohort(home, config, protocol, "holdout")
    if cohort.patients == 0 or plan.base_model is None:
        raise ConsiliumError("E604", f"{cohort.patients} holdout patients, model {plan.base_model}")
    threshold = threshold_of(protocol, plan.decision_threshold)
    remember_evaluation(home, protocol, plan, cohort.digest, config.site)
    features, label = cohort.x[:, 0, :], cohort.y[:, 0]
    cell = max(protocol.cohort.minimum_cell, config.policy.minimum_cell)
    agreement: Parity | None = None
    with tempfile.TemporaryDirectory(dir=home.outbox("").parent) as folder:
        weights = Path(folder) / "model.safetensors"
        exchange.get(plan.base_model, weights)
        check_base(protocol, plan, read_base(weights))
        model = load_model(protocol, weights)
        if plan.kind == "verification":
            if plan.artefact is None:
                raise ConsiliumError("E604", "a verification plan names the exported model")
            exported = Path(folder) / "model.onnx"
            exchange.get(plan.artefact, exported)
            agreement = one_bit(parity(model, exported, features, threshold))
    shown = nothing()
    if plan.kind == "evaluation":
        probability = probabilities(model, features)
        shown = performance(probability, label.astype(np.int64), features, protocol, cell, threshold)
        holdout = Holdout(features, label.astype(np.int64), probability.astype(np.float64), threshold, cell)
        shown["comparisons"] = comparisons(home, config, protocol, plan, exchange, holdout)
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
        diagnostics=diagnostics(features, label, protocol, cell) if plan.kind == "evaluation" else None,
        **spent,
        **shown,
    )
    keep(home, plan_digest, report, None, {}, excerpt)


def diagnostics(
    features: NDArray[np.float32],
    label: NDArray[np.float32],
    protocol: StudyProtocol,
    minimum_cell: int,
) -> HoldoutDiagnostics:
    """What must hold of the holdout before anybody may see how well the model does; one bit each.

    What the bits give away, though the report stays sealed: whether each class has `minimum_events` (or the
    minimum cell, if that is more, so that a protocol cannot ask whether there is any event at all);
    whether the prevalence lies in the declared range, of a holdout that has enough, so that the events are
    known to be above or below a number that is not under the cell; and whether some feature is missing more
    often than declared, of the features and not of the outcomes. Of a holdout without enough events the other
    bits are False whatever it holds: nobody asks for them there. The frozen cohort gives the same bits to
    every plan.

    Args:
        features: float32 [patients, F], NaN for missing.
        label: float32 [patients], 0 or 1; at least one patient.
        protocol: what was declared.
        minimum_cell: the larger of the protocol's and the site's own.
    """
    planned, events = protocol.validation.diagnostics, float(label.sum())
    low, high = protocol.label.prevalence
    allowed = np.array([f.max_missing for f in protocol.features])
    enough = min(events, len(label) - events) >= max(planned.minimum_events, minimum_cell)
    return HoldoutDiagnostics(
        enough_events=enough,
        prevalence=enough and low <= events / len(label) <= high,
        missingness=enough and bool((np.isnan(features).mean(axis=0) <= allowed).all()),
    )


def remember_evaluation(
    home: SiteHome, protocol: StudyProtocol, plan: RoundPlan, cohort: str, site: str
) -> None:
    """Answer for one model, threshold, export, set of baselines, fold and local model per version and cohort.

    Every metric is an exact function of the holdout: whoever could ask for model after model, or for one
    crafted "previous" model after another, would learn of single patients what suppression hides. The
    hospital's own model counts too: without privacy the coordinator may plan the local exchange again from
    another state, as often as it likes, and each time another model would be compared.

    Raises:
        ConsiliumError: E605.
    """
    path = home.state(protocol.study) / "evaluated.json"
    asked: dict[str, Any] = {
        "model": plan.base_model,
        "cohort": cohort,
        "threshold": plan.decision_threshold,
    }
    if plan.kind == "verification":
        once: dict[str, Any] = {"artefact": plan.artefact}
    else:
        local = local_path(home, protocol)
        own = sha256(local.read_bytes()) if local.exists() else None
        once = {"baselines": dict(plan.baselines), "fold": plan.folds.get(site), "local": own}
    with locked(path.with_suffix(".lock")):
        known = json.loads(path.read_bytes()) if path.exists() else {}
        first = known.setdefault(protocol.hash, dict(asked))
        for name, value in once.items():
            first.setdefault(name, value)
        asked |= once
        if any(first[name] != value for name, value in asked.items()):
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
