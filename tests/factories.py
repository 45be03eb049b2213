"""Tiny protocols, sites and updates that every test shares."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from contracts.datasheet import DataSheet
from contracts.plan import RoundPlan
from contracts.signing import SigningKey, to_text
from contracts.study import StudyProtocol, parse_study
from contracts.update import UpdateEnvelope
from contracts.version import CODE_VERSION
from tasks.federation import enrol
from tasks.head import now, register_study
from tasks.home import CoordinatorHome
from tasks.store import save_sheet

ZERO = "0" * 64

STUDY: dict[str, Any] = {
    "schema": "consilium/study/1",
    "study": "tiny",
    "title": "Tiny",
    "intended_use": "Tests.",
    "cohort": {"max_records": 2, "minimum_patients": 10, "minimum_cell": 3},
    "features": [
        {"name": "age", "kind": "numeric", "unit": "years", "range": [0, 100]},
        {"name": "lactate", "kind": "numeric", "unit": "mmol/L", "range": [0, 20]},
        {"name": "sex", "kind": "categorical", "levels": [0, 1]},
    ],
    "label": {"name": "died", "positive": "died in hospital"},
    "subgroups": [{"name": "sex", "feature": "sex"}],
    "model": {"name": "logistic"},
    "training": {"steps": 3, "sample_rate": 0.2, "learning_rate": 0.5},
    "privacy": {"mode": "none"},
    "rounds": 2,
    "min_sites": 2,
    "deadline_seconds": 30,
}


def study_fields(**changes: Any) -> dict[str, Any]:
    """The fields of the tiny study with some of them replaced."""
    return {**copy.deepcopy(STUDY), **changes}


def tiny_study(**changes: Any) -> StudyProtocol:
    """The tiny study with some fields replaced."""
    return parse_study(study_fields(**changes))


class TinyFederation:
    """A coordinator's home with enrolled sites whose keys the test holds, and admitted data sheets."""

    def __init__(self, root: Path, protocol: StudyProtocol, sites: tuple[str, ...] = ("ash", "birch", "cedar")):
        self.home = CoordinatorHome(root / "coordinator")
        self.protocol = protocol
        self.keys = {site: SigningKey.generate(site) for site in sites}
        for site, key in self.keys.items():
            card = {"site": site, "sign_key": key.public, "edge_key": key.public, "declared_size": 100}
            enrol(self.home, card)
        register_study(self.home, protocol)
        for site in sites:
            save_sheet(self.home, protocol.study, site, self.sheet(site))

    def sheet(self, site: str, **changes: Any) -> str:
        """A signed data sheet of a site."""
        fields = {
            "study": self.protocol.study,
            "protocol_hash": self.protocol.hash,
            "site": site,
            "connector": "csv",
            "cohort": ZERO,
            "data_version": "a" * 40,
            "declared_size": 100,
            "holdout": "keyed",
            "checks": [],
            "accepted": True,
            "policy": ZERO,
            "code_version": CODE_VERSION,
            "created": now(),
        }
        return to_text(self.keys[site].sign(DataSheet.model_validate(fields | changes)))

    def envelope(
        self, site: str, plan: RoundPlan, plan_digest: str, path: Path, **changes: Any
    ) -> UpdateEnvelope:
        """An honest envelope for tensors that lie at `path` and in the exchange."""
        from tasks.exchange import DirectoryExchange

        entry = plan.entry(site)
        fields = {
            "study": plan.study,
            "protocol_hash": plan.protocol_hash,
            "plan": plan_digest,
            "round": plan.round,
            "site": site,
            "base_model": plan.base_model,
            "tensors": DirectoryExchange(self.home.exchange).put(path),
            "tensor_bytes": path.stat().st_size,
            "planned_steps": self.protocol.training.steps,
            "data_sheet": entry.data_sheet if entry else ZERO,
            "cohort": ZERO,
            "policy": ZERO,
            "code_version": CODE_VERSION,
        }
        return UpdateEnvelope.model_validate(fields | changes)

    def signed(self, site: str, envelope: UpdateEnvelope) -> str:
        """The string that a site's task would return."""
        return to_text(self.keys[site].sign(envelope))


def write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """Write a safetensors file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path
