"""Facts as a finished study leaves them: the tiny release with data sheets, lineage, events and evidence."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from contracts.canonical import digest
from contracts.dossier import Dossier
from contracts.release import RoundLineage
from contracts.study import StudyProtocol
from release.events import GENESIS, Event
from release.facts import Evidence, ReleaseFacts
from tests.dossiers import lineage_of, sheets_of, tiny_facts, tiny_onnx
from tests.factories import tiny_study

INTAKE, OPENED = "2025-12-01T08:00:00Z", "2025-12-01T09:00:00Z"
PLAN = digest({"plan": 0})


def documented(protocol: StudyProtocol | None = None, **changes: Any) -> ReleaseFacts:
    """The facts of two hospitals with everything that a release run gathers; `changes` replace facts."""
    facts = tiny_facts(protocol)
    sheets = sheets_of(facts.protocol, tuple(facts.sites), INTAKE)
    rounds = [RoundLineage(round=n, kind="training", plan=digest({"plan": n}), updates={}) for n in range(2)]
    event = Event(n=1, time=OPENED, event="round_opened", key=PLAN, details={}, previous=GENESIS)
    found: dict[str, Any] = {
        "data_sheets": sheets,
        "lineage": lineage_of(sheets).model_copy(update={"rounds": rounds}),
        "events": event.line + b"\n",
        "evidence": Evidence(tests={"tests/test_a.py::test_a": "passed"}, tests_time=OPENED),
        "triggered_by": "operator",
    }
    return dataclasses.replace(facts, **{**found, **changes})


def full_dossier() -> dict[str, Any]:
    """A dossier in which a person wrote every field."""
    text = {
        name: f"What a person wrote about {name}."
        for name, declared in Dossier.model_fields.items()
        if declared.default is None and name not in ("change_control", "monitoring")
    }
    test = "tests/test_a.py::test_a"
    return text | {
        "limitations": ["A first limit.", "A second limit."],
        "risks": [
            {
                "id": "R1", "hazard": "A hazard.", "sequence": "A sequence.", "harm": "A harm.",
                "severity": 4, "probability": 3,
                "controls": [{"id": "C1", "description": "A control.", "kind": "design", "test": test}],
                "residual_severity": 4, "residual_probability": 1, "accepted_by": "Dr Test",
            }
        ],
        "change_control": {
            "authorised_by": "An authority",
            "modifications": [
                {
                    "id": "M1", "title": "New weights", "changes": ["weights"], "description": "Weights.",
                    "data_management": "Data.", "retraining": "Training.", "performance_evaluation": "Gates.",
                    "update_procedure": "Update.", "impact": "Impact.",
                }
            ],
        },
        "monitoring": {
            "responsible": "A person", "interval_days": 30, "measures": ["alerts"], "triggers": ["drift"],
            "reporting": "To the authority.",
        },
    }  # fmt: skip


def written_before(facts: ReleaseFacts, folder: Path) -> dict[str, bytes]:
    """The files of a candidate of these facts that are no part of the dossier, by path."""
    from release.directory import write_candidate

    folder.mkdir(parents=True, exist_ok=True)
    write_candidate(folder / "candidate", facts, tiny_onnx(folder / "model.onnx"))
    root = folder / "candidate"
    paths = {p.relative_to(root).as_posix(): p for p in sorted(root.rglob("*")) if p.is_file()}
    return {
        path: file.read_bytes()
        for path, file in paths.items()
        if not path.startswith(("dossier/", "manifest", "conformance", "provenance", "sbom", "vex", "soup"))
    }


def documented_study(**changes: Any) -> StudyProtocol:
    """The tiny study with a full dossier and a gate on a subgroup."""
    gates = [
        {"metric": "auroc", "at_least": 0.5},
        {"metric": "subgroup_gap", "subgroup": "sex", "at_most": 0.9},
    ]
    cohort = {"description": "Adults.", "max_records": 2, "minimum_patients": 10, "minimum_cell": 3}
    return tiny_study(**{"dossier": full_dossier(), "gates": gates, "cohort": cohort} | changes)
