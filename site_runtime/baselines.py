"""The baselines that a hospital's holdout is also scored with: what is fetched, run, compared, and left out.

A baseline that is not there or does not fit is left out of the report, and the hospital's own log says why:
the report does not, and the gates that need it cannot be decided.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from contracts.errors import ConsiliumError
from contracts.evaluation import Comparison
from contracts.plan import RoundPlan
from contracts.study import StudyProtocol
from models.interface import ClinicalModel
from models.registry import load_model
from release.session import open_session, predict
from site_runtime.base_model import check_base, read_base
from site_runtime.config import SiteConfig
from site_runtime.egress import write_log
from site_runtime.exchange import Exchange
from site_runtime.home import SiteHome
from validation.baselines import BaselineName, compare
from validation.performance import class_totals_may_leave
from validation.reference import reference_risk

Risks = NDArray[np.float64]


@dataclass(frozen=True)
class Holdout:
    """The holdout patients with the evaluated model's risks: all that a comparison needs."""

    features: NDArray[np.float32]  # [patients, F], raw units, NaN for missing
    label: NDArray[np.int64]  # [patients], 0 or 1
    probability: Risks  # [patients], of the evaluated model
    threshold: float  # locked
    minimum_cell: int  # the larger of the protocol's and the site's own


def comparisons(
    home: SiteHome,
    config: SiteConfig,
    protocol: StudyProtocol,
    plan: RoundPlan,
    exchange: Exchange,
    holdout: Holdout,
) -> list[Comparison]:
    """Return the model beside every planned baseline on the holdout, under the rules of suppression.

    `reference`: the protocol's score. `local`: the hospital's own model, where it trained one. `left_out`:
    the model of the other hospitals alone. `previous` and `first`: earlier releases, run by onnxruntime. A
    hospital that shows no class totals compares nothing, and fetches nothing.

    Raises:
        ConsiliumError: E509, E804, E805, the exchange.
    """
    if not class_totals_may_leave(holdout.label, holdout.minimum_cell):
        return []
    found: list[Comparison] = []
    earlier: list[Risks] = []
    with tempfile.TemporaryDirectory(dir=home.outbox("").parent) as folder:
        for name, risk in _baselines(home, config, protocol, plan, exchange, holdout, Path(folder)):
            comparison = compare(
                name,
                holdout.probability,
                risk,
                holdout.label,
                holdout.threshold,
                holdout.minimum_cell,
                earlier,
            )
            if comparison is None:
                _left_out(home, protocol, name, "it differs from another score on too few patients")
                continue
            found.append(comparison)
            earlier.append(risk)
    return found


def probabilities(model: ClinicalModel, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the model's probability of the positive class, float32 [patients]."""
    with torch.no_grad():
        found: NDArray[np.float32] = torch.sigmoid(model(torch.from_numpy(features))).numpy()
    return found


def _baselines(
    home: SiteHome,
    config: SiteConfig,
    protocol: StudyProtocol,
    plan: RoundPlan,
    exchange: Exchange,
    holdout: Holdout,
    folder: Path,
) -> Iterator[tuple[BaselineName, Risks]]:
    """The baselines' risks; the coordinator's choices come last, so that they cannot crowd out the others."""
    features, planned = holdout.features, protocol.validation
    if planned.reference is not None:
        yield "reference", reference_risk(planned.reference, features, protocol)
    local = home.state(protocol.study) / "local" / f"{protocol.hash}.safetensors"
    if planned.local_model and local.exists():
        yield "local", probabilities(load_model(protocol, local), features).astype(np.float64)
    elif planned.local_model:
        _left_out(home, protocol, "local", "no model of this hospital's own was trained")
    fold = plan.folds.get(config.site)
    if planned.leave_one_site_out is not None and fold is not None:
        weights = folder / "fold.safetensors"
        exchange.get(fold, weights)
        check_base(protocol, plan, read_base(weights))
        yield "left_out", probabilities(load_model(protocol, weights), features).astype(np.float64)
    for name, digest in sorted(plan.baselines.items(), reverse=True):  # previous, then first
        release = folder / f"{name}.onnx"
        exchange.get(digest, release)
        try:
            yield name, release_risk(release, features)
        except ConsiliumError as error:
            _left_out(home, protocol, name, error.detail)


def release_risk(release: Path, features: NDArray[np.float32]) -> Risks:
    """Return the probabilities of an earlier release, float64 [patients].

    Args:
        release: its `model.onnx`.
        features: float32 [patients, F] of this study: the release must read as many.

    Raises:
        ConsiliumError: E604, it is no such model, or answers with no probability.
    """
    try:
        inputs = open_session(release).get_inputs()
        width = inputs[0].shape[-1]
        if len(inputs) != 1 or width != features.shape[1]:
            raise ConsiliumError("E604", f"reads {width} features, the study has {features.shape[1]}")
        risk = predict(release, features)[0].astype(np.float64)
    except ConsiliumError:
        raise
    except Exception as error:  # onnxruntime's own types share no other base
        raise ConsiliumError("E604", f"onnxruntime: {error}") from error
    if risk.shape != (len(features),) or not np.all((risk >= 0) & (risk <= 1)):
        raise ConsiliumError("E604", "its answers are no probabilities, one for each patient")
    return risk


def _left_out(home: SiteHome, protocol: StudyProtocol, name: str, why: str) -> None:
    write_log(home, f"evaluate {protocol.study}: no comparison with {name}: {why}")
