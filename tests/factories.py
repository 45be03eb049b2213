"""Tiny protocols, sites and updates that every test shares."""

from __future__ import annotations

import copy
import csv
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save_file

from consilium.simulation import Simulation
from contracts.datasheet import DataSheet
from contracts.plan import RoundPlan
from contracts.signing import SigningKey, to_text
from contracts.study import StudyProtocol, parse_study
from contracts.update import UpdateEnvelope
from contracts.version import CODE_VERSION
from site_runtime.enrol import enrol_site
from site_runtime.home import SiteHome
from tasks.federation import enrol
from tasks.head import now, register_study
from tasks.home import CoordinatorHome
from tasks.store import save_sheet
from tests.worlds import copied_world

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

    def __init__(
        self,
        root: Path,
        protocol: StudyProtocol,
        sites: tuple[str, ...] = ("ash", "birch", "cedar"),
        sizes: dict[str, int] | None = None,
    ):
        self.home = CoordinatorHome(root / "coordinator")
        self.protocol = protocol
        self.keys = {site: SigningKey.generate(site) for site in sites}
        self.sizes = dict.fromkeys(sites, 100) if sizes is None else sizes
        for site, key in self.keys.items():
            card = {"site": site, "sign_key": key.public, "edge_key": key.public}
            enrol(self.home, card | {"declared_size": self.sizes[site]})
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
            "declared_size": self.sizes.get(site, 100),  # one that is not enrolled may ask as well
            "holdout": "keyed",
            "checks": [],
            "accepted": True,
            "policy": ZERO,
            "code_version": CODE_VERSION,
            "created": now(),
        }
        return to_text(self.keys[site].sign(DataSheet.model_validate(fields | changes)))

    def envelope(self, site: str, plan: RoundPlan, plan_digest: str, path: Path) -> UpdateEnvelope:
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
        return UpdateEnvelope.model_validate(fields)

    def signed(self, site: str, envelope: UpdateEnvelope) -> str:
        """The string that a site's task would return."""
        return to_text(self.keys[site].sign(envelope))


def write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """Write a safetensors file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


# A hospital that permits everything a tiny study may ask for.
POLICY: dict[str, Any] = {
    "irb": {
        "protocol": "simulated data, no patients",
        "approved": "2020-01-01",
        "expires": "2099-12-31",
        "scope": "any",
    },
    "dua": {
        "purposes": ["training", "evaluation"],
        "permitted_outputs": ["updates", "sums", "evaluation", "ledger"],
        "expires": "2099-12-31",
    },
    "dpia": {"reference": "none needed: simulated data", "date": "2020-01-01"},
    "minimum_cohort": 1,
    "minimum_cell": 3,
    "exact_updates": True,
    "models": "any",
    "strategies": "any",
    "aggregation": "any",
}

SITE: dict[str, Any] = {
    "site": "ash",
    "source": {"connector": "csv", "path": "data.csv", "patient": "patient", "record": "record"},
    "governance": {
        "institution": "Ash Hospital",
        "contact": "data@ash.example",
        "lineage": "ash",
        "declared_size": 90,
        "approved_by": "a test",
    },
    "policy": POLICY,
}


def site_fields(**changes: Any) -> dict[str, Any]:
    """The fields of a tiny `site.yaml` with some of them replaced."""
    return {**copy.deepcopy(SITE), **changes}


def tiny_rows(patients: int = 120) -> list[dict[str, Any]]:
    """Rows of the tiny study's CSV: every third patient has two records, every third died."""
    rows = []
    for i in range(patients):
        for record in range(2 if i % 3 == 0 else 1):
            rows.append(
                {
                    "patient": f"p{i}",
                    "record": record,
                    "age": 40 + i % 50,
                    "lactate": "" if i % 7 == 0 else f"{1 + i % 5 + record / 10:.1f}",
                    "sex": i % 2,
                    "died": int(i % 3 == 1),
                }
            )
    return rows


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows under the header of the first."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_site(folder: Path, rows: list[dict[str, Any]] | None = None, **changes: Any) -> Path:
    """Write `site.yaml` with `data.csv` beside it and return the former's path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "data.csv", tiny_rows() if rows is None else rows)
    (folder / "site.yaml").write_text(yaml.safe_dump(site_fields(**changes)))
    return folder / "site.yaml"


def enrolled_site(root: Path, rows: list[dict[str, Any]] | None = None, **changes: Any) -> SiteHome:
    """The home of a tiny site that was enrolled with a coordinator nobody holds the key of."""
    home = SiteHome(root / "sites" / "ash")
    enrol_site(home, write_site(root / "source", rows, **changes), SigningKey.generate("coordinator").public)
    return home


def open_next(
    federation: TinyFederation, run_id: str, present: set[str] | None = None
) -> tuple[RoundPlan, str]:
    """Open the study's next round with every site there, and return its plan and the plan's digest."""
    from contracts.signing import parse_signed
    from tasks.rounds import open_round

    there = set(federation.keys) if present is None else present
    opened = open_round(federation.home, federation.protocol.study, run_id, there)
    assert opened.plan is not None, opened.reason
    signed = parse_signed(opened.plan)
    return RoundPlan.model_validate(signed.document), signed.digest


def honest_tensors(federation: TinyFederation, plan: RoundPlan, site: str) -> dict[str, np.ndarray]:
    """An update of the right form: sums for a statistics plan, a small change of parameters for training."""
    from strategies.normalisation import statistics_shapes
    from tasks.store import get_tensors

    draw = np.random.default_rng([plan.round, *site.encode()])
    if plan.kind == "statistics":
        size = statistics_shapes(federation.protocol)["sums"][0]
        return {"sums": np.concatenate([[90.0], draw.uniform(1, 30, size - 1)]).astype(np.float32)}
    if plan.kind == "histogram":
        return {"histogram": np.repeat(draw.integers(0, 3, 10), 10).astype(np.float32)}
    assert plan.base_model is not None
    model = get_tensors(federation.home, plan.base_model)
    return {
        name: draw.normal(0, 0.01, array.shape).astype(np.float32)
        for name, array in model.items()
        if name.startswith("network.")
    }


def honest_answer(federation: TinyFederation, plan: RoundPlan, digest: str, site: str, folder: Path) -> str:
    """The signed string of a site that does its part."""
    path = write_tensors(folder / f"{site}-{plan.round}", honest_tensors(federation, plan, site))
    return federation.signed(site, federation.envelope(site, plan, digest, path))


PRIVACY = {"mode": "patient", "epsilon": 3.0, "delta": 1e-3, "max_grad_norm": 1.0}


def private_study(**changes: Any) -> StudyProtocol:
    """The tiny study with patient-level privacy."""
    return tiny_study(**({"privacy": PRIVACY} | changes))


def fix_holdouts(simulation: Simulation) -> None:
    """Give every site a split key that follows from its name, so that no run has too few events to test."""
    for name, home in simulation.sites.items():
        home.split_key.write_bytes(hashlib.sha256(name.encode()).digest())


def tiny_simulation(
    root: Path, protocol: StudyProtocol, rows: list[dict[str, Any]] | None = None, **changes: Any
) -> Simulation:
    """Two real sites and a real coordinator below `root`, after intake; changes are to both `site.yaml`."""
    from consilium.simulation import prepare, run_intake

    def made(folder: Path, protocol: StudyProtocol) -> Simulation:
        for site in ("ash", "birch"):
            governance = {**SITE["governance"], "lineage": site}
            fields = {"site": site, "governance": governance} | changes
            write_site(folder / "federation" / site, rows, **fields)
        simulation = prepare(folder, protocol, folder / "federation")
        fix_holdouts(simulation)
        record = run_intake(simulation, lambda text: None)
        assert record["admitted"] == ["ash", "birch"], record
        return simulation

    return copied_world(root, made, protocol, rows=rows, changes=changes)


def opened_plan(simulation: Simulation, run_id: str = "run") -> str:
    """Open the simulation's next round and return its signed plan."""
    from tasks.rounds import open_round

    opened = open_round(simulation.coordinator, simulation.protocol.study, run_id, set(simulation.sites))
    assert opened.plan is not None, opened.reason
    return opened.plan
