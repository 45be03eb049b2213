"""Facts of a release in which every part of the validation page has something to show."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts.evaluation import Comparison, EvaluationReport, HoldoutDiagnostics, Parity
from contracts.release import Change
from contracts.study import StudyProtocol
from release.facts import ReleaseFacts
from tests.dossiers import CREATED, event_log, lineage_of, sheets_of, tiny_facts
from tests.factories import ZERO, tiny_study
from validation.baselines import BaselineName, compare
from validation.gates import judge
from validation.performance import evaluate
from validation.pooling import metrics_tree

HOSPITALS = {"alder": 900, "birch": 620, "cedar": 340, "rowan": 1400, "hazel": 40}  # hazel is withheld
CELL = 10
WEAKER: dict[BaselineName, float] = {
    "local": 0.55,
    "reference": 1.3,
    "first": 0.25,
    "left_out": 0.3,
}  # logit noise
GATES: list[dict[str, Any]] = [
    {"metric": "auroc", "bound": "lower", "at_least": 0.7},
    {"metric": "auroc", "scope": "site", "at_least": 0.7},
    {"metric": "calibration_slope", "at_least": 0.7, "at_most": 1.4},
    {"metric": "observed_expected", "scope": "site", "at_least": 0.8, "at_most": 1.25},
    {"metric": "net_benefit", "bound": "lower", "at_least": 0.0},
    {"metric": "subgroup_gap", "subgroup": "sex", "at_most": 0.1},
    {"metric": "difference", "against": "local", "bound": "lower", "at_least": 0.0},
    {"metric": "non_inferiority", "against": "first", "margin": 0.03},
]
DOSSIER: dict[str, Any] = {
    "patients": "Adults in intensive care for at least 24 hours.",
    "users": "Intensive care physicians and nurses.",
    "setting": "Intensive care units with a laboratory that measures lactate.",
    "use_of_output": "A reason to look at a patient again; never the only reason for a treatment.",
    "out_of_scope": "Children, pregnancy, cardiac surgery, and any decision to limit treatment.",
    "limitations": [
        "Four of five hospitals are teaching hospitals.",
        "Patients transferred in within 24 hours are rare in training.",
    ],
    "bias": "Fewer women than men were admitted at every hospital; the gap between the sexes is shown above.",
}
REFERENCE = {
    "name": "the Tiny score",
    "source": "Tester et al., Journal of Tests 1 (2020)",
    "intercept": -2.0,
    "terms": [{"feature": "lactate", "coefficient": 0.2}],
}


def full_study(**changes: Any) -> StudyProtocol:
    """A study that plans everything: comparisons, a decision curve, gates of every kind, a dossier."""
    fields: dict[str, Any] = {
        "title": "Death in hospital from the first day in intensive care",
        "intended_use": "Research only. Estimates the risk of death in hospital for adults.",
        "cohort": {"minimum_cell": CELL, "description": "Adults with a stay of 24 hours or more."},
        "subgroups": [
            {"name": "sex", "feature": "sex"},
            {"name": "age_band", "feature": "age", "edges": [50, 70]},
        ],
        "decision_threshold": 0.3,
        "gates": GATES,
        "validation": {
            "net_benefit": {"low": 0.05, "high": 0.6},
            "reference": REFERENCE,
            "local_model": True,
            "leave_one_site_out": 10,
        },
        "sign_off": {"roles": ["clinician", "quality"]},
        "dossier": DOSSIER,
    }
    return tiny_study(**{**fields, **changes})


def full_facts(
    hospitals: dict[str, int] | None = None, study: StudyProtocol | None = None, **changes: Any
) -> ReleaseFacts:
    """Facts of five hospitals: hazel under the minimum cell, rowan with risks that are too low."""
    study = study or full_study()
    hospitals = hospitals or HOSPITALS
    draw = np.random.default_rng(7)
    reports = [_report(site, n, study, draw) for site, n in hospitals.items()]
    sheets = sheets_of(study, tuple(hospitals))
    parity = Parity(max_abs_difference=1e-5, decisions_flipped=0, tolerance=1e-5)
    fields: dict[str, Any] = {
        "protocol": study,
        "evaluation": reports,
        "metrics": metrics_tree(reports),
        "gates": judge(study, reports, dict.fromkeys(hospitals), earlier_releases=1),
        "verification": [r.model_copy(update={"kind": "verification", "parity": parity}) for r in reports],
        "version": "1.1.0",
        "change": Change(level="minor", since="1.0.0", changed=["data", "weights"], modification="m1"),
        "triggered_by": "operator",
        "diagnostics": {
            r.site: HoldoutDiagnostics(enough_events=not r.suppressed, prevalence=True, missingness=True)
            for r in reports
        },
        "data_sheets": sheets,
        "lineage": lineage_of(sheets),
        "events": event_log(tuple(hospitals)),
    }
    base = tiny_facts(study)
    return ReleaseFacts(**{**base.__dict__, **fields, **changes})


def _report(site: str, n: int, study: StudyProtocol, draw: np.random.Generator) -> EvaluationReport:
    """An evaluation whose every number is computed from simulated patients."""
    age, lactate, sex = draw.uniform(30, 90, n), draw.gamma(2.0, 1.5, n).clip(0, 20), draw.integers(0, 2, n)
    x = np.column_stack([age, lactate, sex])
    signal = 0.05 * (age - 62) + 0.55 * (lactate - 3) - 1.2
    y = (draw.random(n) < _expit(signal + draw.normal(0, 0.8, n))).astype(np.int64)
    p = _expit(signal * (0.7 if site == "cedar" else 0.9) - (0.9 if site == "rowan" else 0.0))
    fields = evaluate(p, y, x, study, CELL)
    comparisons: list[Comparison] = []
    others: list[NDArray[np.float64]] = []
    for name, spread in WEAKER.items():
        other = _expit(signal + draw.normal(0, spread, n))
        found = compare(name, p, other, y, study.decision_threshold, CELL, others)
        comparisons += [found] if found else []
        others += [other] if found else []
    return EvaluationReport(
        study=study.study, protocol_hash=study.hash, plan=ZERO, kind="evaluation", site=site, model=ZERO,
        cohort=ZERO, created=CREATED, comparisons=comparisons, **fields,
    )  # fmt: skip


def _expit(z: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-z))
