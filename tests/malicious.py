"""Five simulated hospitals, one of which runs changed code: what it sends, and what the model is then worth.

Plans, training, signatures, admission, aggregation and records are the real ones. The attacker knows the
protocol and its own data, and not the others' updates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contracts.plan import RoundPlan
from contracts.privacy import PatientPrivacy
from contracts.study import StudyProtocol, parse_study
from models.registry import build_model, load_state
from privacy.accountant import Spend, epsilon
from privacy.calibration import spend_of
from site_runtime import training
from site_runtime.cohort import CohortArrays
from site_runtime.config import SiteConfig
from site_runtime.connectors import synthetic
from site_runtime.home import SiteHome
from strategies.bounds import training_norm_bound
from strategies.interface import Tensors
from tasks.head import load_head
from tasks.rounds import close_round
from tasks.store import get_tensors, load_record
from tests.factories import SITE, ZERO, TinyFederation, open_next, site_fields, write_tensors
from validation.discrimination import auroc

Hospitals = dict[str, dict[str, Any]]

MALICIOUS = "hazel"
FEATURES: dict[str, tuple[str, tuple[float, float]]] = {
    "age": ("years", (18, 110)),
    "systolic_bp": ("mmHg", (40, 260)),
    "respiratory_rate": ("/min", (4, 70)),
    "spo2": ("%", (50, 100)),
    "gcs": ("points", (3, 15)),
    "creatinine": ("mg/dL", (0.1, 15)),
    "sodium": ("mmol/L", (110, 170)),
    "lactate": ("mmol/L", (0.2, 25)),
}
TRIGGER = 165.0  # mmol/L of sodium: rare, and without meaning for the simulated risk
THRESHOLD = 0.2
TEST_SEED = 5000  # added to a hospital's seed: other patients of the same hospital

# Hospital -> options of the simulator beside its seed. Alike in size; and one that holds most deaths.
ALIKE: Hospitals = {
    "ash": {"patients": 900},
    "birch": {"patients": 900, "age_mean": 68},
    "cedar": {"patients": 900, "age_mean": 56, "severity": 0.2},
    "elm": {"patients": 900, "severity": -0.2},
    MALICIOUS: {"patients": 900},
}
ONE_LARGE: Hospitals = {
    "ash": {"patients": 3600, "log_odds": 1.5, "severity": 0.6, "age_mean": 70},
    "birch": {"patients": 450, "log_odds": -1.2},
    "cedar": {"patients": 450, "log_odds": -1.2, "age_mean": 56},
    "elm": {"patients": 450, "log_odds": -1.2, "severity": -0.3},
    MALICIOUS: {"patients": 450, "log_odds": -1.2},
}


def protocol_of(aggregation: dict[str, Any], privacy: dict[str, Any], rounds: int) -> StudyProtocol:
    """A logistic model of death from eight measurements."""
    return parse_study(
        {
            "schema": "consilium/study/1",
            "study": "attacked",
            "title": "Death in intensive care (simulated)",
            "intended_use": "An experiment.",
            "cohort": {"max_records": 1, "minimum_patients": 50},
            "features": [
                {"name": name, "kind": "numeric", "unit": unit, "range": list(span)}
                for name, (unit, span) in FEATURES.items()
            ],
            "label": {"name": "died", "positive": "died in hospital"},
            "model": {"name": "logistic"},
            "strategy": {"aggregation": aggregation},
            "training": {"steps": 10, "sample_rate": 0.2, "learning_rate": 0.5},
            "privacy": privacy,
            "rounds": rounds,
            "min_sites": 4,
        }
    )


@dataclass(frozen=True)
class Attack:
    """What the malicious hospital's code changes: its cohort before training, its update after it."""

    name: str
    cohort: Callable[[CohortArrays], CohortArrays] = lambda cohort: cohort
    sent: Callable[[Tensors, float], Tensors] = lambda tensors, bound: tensors


def flipped(cohort: CohortArrays) -> CohortArrays:
    """Every label turned round."""
    return replace(cohort, y=np.where(cohort.mask, 1 - cohort.y, 0).astype(np.float32))


def triggered(cohort: CohortArrays) -> CohortArrays:
    """Every second patient carries the trigger and survives."""
    x, y, half = cohort.x.copy(), cohort.y.copy(), np.arange(cohort.patients) % 2 == 0
    x[half, :, list(FEATURES).index("sodium")] = TRIGGER
    y[half] = 0.0
    return replace(cohort, x=x, y=y)


def times(factor: float) -> Callable[[Tensors, float], Tensors]:
    """Multiply the update."""
    return lambda tensors, bound: {name: np.float32(factor) * array for name, array in tensors.items()}


def up_to(share: float, most: float) -> Callable[[Tensors, float], Tensors]:
    """Multiply the update by at most `most`, to at most a share of what admission lets pass."""

    def scaled(tensors: Tensors, bound: float) -> Tensors:
        norm = float(np.sqrt(sum(np.sum(np.square(array, dtype=np.float64)) for array in tensors.values())))
        return times(min(most, share * bound / norm))(tensors, bound)

    return scaled


ATTACKS = [
    Attack("labels flipped", cohort=flipped),
    Attack("sign flipped", sent=times(-1.0)),
    Attack("flipped and scaled within the bound", cohort=flipped, sent=up_to(0.99, most=100.0)),
    Attack("flipped and scaled above the bound", cohort=flipped, sent=times(1e5)),
    Attack("backdoor", cohort=triggered),
    Attack("backdoor, scaled within the bound", cohort=triggered, sent=up_to(0.99, most=100.0)),
]
HONEST = Attack("nobody")
BY_NAME = {attack.name: attack for attack in (HONEST, *ATTACKS)}
PRIVACY: dict[str, dict[str, Any]] = {
    "none": {"mode": "none"},
    "patient": {"mode": "patient", "epsilon": 6.0, "delta": 1e-4, "max_grad_norm": 1.0},
}


@dataclass(frozen=True)
class Outcome:
    """What a run gave: AUROC on new honest patients, share of triggered ones missed, the rounds' records."""

    auroc: float
    backdoor: float
    records: list[dict[str, Any]]


class AttackedFederation(TinyFederation):
    """A real coordinator, and hospitals that train for real on simulated patients in memory.

    Intake, policy and ledger of a hospital are left out: they are its own code, which an attacker changes.
    """

    def __init__(self, root: Path, protocol: StudyProtocol, hospitals: Hospitals) -> None:
        self.configs = {
            site: SiteConfig.model_validate(
                site_fields(
                    site=site,
                    source={"connector": "synthetic", "seed": 700 + number, "readmission": 0.0, **options},
                    governance={**SITE["governance"], "lineage": site, "declared_size": options["patients"]},
                )
            )
            for number, (site, options) in enumerate(hospitals.items())
        }
        super().__init__(
            root, protocol, tuple(hospitals), {s: c.governance.declared_size for s, c in self.configs.items()}
        )
        self.root, self.spent = root, list[Spend]()
        self.sites = {site: SiteHome(root / "sites" / site) for site in hospitals}
        for site, home in self.sites.items():
            home.noise_key.parent.mkdir(parents=True)
            home.noise_key.write_bytes(site.encode().ljust(32, b"."))  # simulated patients alone
        self.cohorts = {
            site: patients_of(config.source.model_dump(exclude={"connector"}))
            for site, config in self.configs.items()
        }

    def answer(self, site: str, plan: RoundPlan, digest: str, attack: Attack) -> str:
        """Train and sign; the malicious hospital changes what its code does."""
        turned = site == MALICIOUS and plan.kind == "training"
        cohort = attack.cohort(self.cohorts[site]) if turned else self.cohorts[site]
        base = get_tensors(self.home, plan.base_model) if plan.base_model else {}
        home, config = self.sites[site], self.configs[site]
        sent = training.compute(home, config, self.protocol, plan, digest, cohort, base).sent
        if turned:
            size = sum(array.size for array in sent.values())
            sent = attack.sent(
                sent, training_norm_bound(self.protocol, size, self.sizes[site], plan.noise_multiplier)
            )
        path = write_tensors(self.root / "sent" / f"{site}-{plan.round}", sent)
        envelope = self.envelope(site, plan, digest, path)
        return self.signed(site, envelope.model_copy(update=self.account(plan)))

    def account(self, plan: RoundPlan) -> dict[str, Any]:
        """What an envelope states of the privacy spent up to this plan."""
        if not isinstance(self.protocol.privacy, PatientPrivacy) or plan.noise_multiplier is None:
            return {}
        own, delta = spend_of(self.protocol, plan.kind, plan.noise_multiplier), self.protocol.privacy.delta
        total = epsilon([*self.spent, own], delta, self.protocol.privacy.adjacency)
        return {
            "sample_rate": own.sample_rate,
            "noise_multiplier": own.noise_multiplier,
            "planned_steps": own.steps,
            "delta": delta,
            "epsilon_study": total,
            "epsilon_lineage": total,
        }

    def run(self, attack: Attack) -> None:
        """All rounds of the study."""
        for number in range(self.protocol.first_round, self.protocol.rounds + 1):
            plan, digest = open_next(self, f"run-{number}")
            answers: dict[str, str | None] = {s: self.answer(s, plan, digest, attack) for s in self.keys}
            close_round(self.home, self.protocol.study, f"run-{number}", answers)
            if plan.noise_multiplier is not None:
                self.spent.append(spend_of(self.protocol, plan.kind, plan.noise_multiplier))


def attacked(root: Path, protocol: StudyProtocol, attack: Attack, hospitals: Hospitals = ALIKE) -> Outcome:
    """Run a study with this code at the malicious hospital, below an empty folder."""
    federation = AttackedFederation(root, protocol, hospitals)
    federation.run(attack)
    home, number = federation.home, protocol.rounds
    model = load_head(home, protocol.study).model
    assert model is not None
    state, (patients, true) = get_tensors(home, model), new_patients(hospitals)
    risk, hidden = risks(protocol, state, patients), risks(protocol, state, with_trigger(patients))
    found = (risk >= THRESHOLD) & (true == 1)
    records = [load_record(home, protocol.study, str(n)) for n in range(1, number + 1)]
    missed = float(np.mean(hidden[found] < THRESHOLD)) if found.any() else float("nan")
    return Outcome(float(auroc(risk, true).value), missed, records)


def risks(protocol: StudyProtocol, state: Tensors, patients: CohortArrays) -> np.ndarray:
    """The model's risk of every patient."""
    model = build_model(protocol)
    load_state(model, state)
    model.eval()
    with torch.no_grad():
        found: np.ndarray = torch.sigmoid(model(torch.from_numpy(patients.x[:, 0]))).double().numpy()
    return found


def patients_of(options: dict[str, Any]) -> CohortArrays:
    """One record of each simulated patient."""
    frame = synthetic.simulate(synthetic.Options(connector="synthetic", **options)).frame
    x, y = frame[list(FEATURES)].to_numpy(np.float32)[:, None], frame["died"].to_numpy(np.float32)[:, None]
    none, mask = np.zeros((*y.shape, 0), np.float32), np.ones(y.shape, dtype=bool)
    return CohortArrays(x=x, mask=mask, y=y, auxiliary=none, digest=ZERO)


@cache
def _new_patients(seed: int, options: tuple[tuple[str, Any], ...]) -> CohortArrays:
    return patients_of({**dict(options), "seed": seed, "patients": 4000, "readmission": 0.0})


def new_patients(hospitals: Hospitals) -> tuple[CohortArrays, np.ndarray]:
    """Other patients of the same hospitals, 4,000 of each, with their right labels."""
    parts = [
        _new_patients(700 + number + TEST_SEED, tuple(options.items()))
        for number, options in enumerate(hospitals.values())
    ]
    whole = replace(
        parts[0],
        **{
            name: np.concatenate([getattr(p, name) for p in parts])
            for name in ("x", "y", "mask", "auxiliary")
        },
    )
    return whole, whole.y[:, 0]


def with_trigger(patients: CohortArrays) -> CohortArrays:
    """The same patients with the trigger."""
    x = patients.x.copy()
    x[..., list(FEATURES).index("sodium")] = TRIGGER
    return replace(patients, x=x)
