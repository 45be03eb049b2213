"""Facts with packages, a scan and VEX statements: with every human text, and with none."""

from __future__ import annotations

import dataclasses
from typing import Any

from contracts.evaluation import EvaluationReport
from contracts.release import RoundLineage
from release.dossier.vulnerabilities import purl
from release.facts import Component, Evidence, ReleaseFacts
from tests.documented import documented, documented_study, full_dossier
from tests.factories import ZERO, tiny_study

SCANNED = "2025-12-20T00:00:00Z"  # twelve days before the facts were gathered
COMPONENTS = (
    Component("consilium", "0.2.0", "Apache-2.0", True, ("onnxruntime", "numpy")),
    Component("onnxruntime", "1.32.0", "MIT License", True, ("numpy", "flatbuffers")),
    Component("numpy", "2.4.0", "BSD-3-Clause AND 0BSD AND MIT", True),
    Component("flatbuffers", "25.1", "Apache 2.0", True),
    Component("torch", "2.13.0+cpu", "BSD-3-Clause", False, ("mystery_pkg",)),
    Component("mystery-pkg", "1", "Licence of our own", False),
    Component("silent", "3.0", "", False),
)
TORCH, ORT = purl("torch", "2.13.0+cpu"), purl("onnxruntime", "1.32.0")


def scanned(
    *vulnerabilities: dict[str, Any], components: tuple[Component, ...] = COMPONENTS
) -> dict[str, Any]:
    """A scan of these components."""
    parts = [
        {
            "type": "library", "bom-ref": f"ref-{n}", "name": c.name, "version": c.version,
            "purl": purl(c.name, c.version),
        }
        for n, c in enumerate(components)
    ]  # fmt: skip
    return {
        "bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "components": parts,
        "vulnerabilities": list(vulnerabilities),
    }  # fmt: skip


def vulnerability(name: str, *refs: str, score: float | None = 9.8, **fields: Any) -> dict[str, Any]:
    """An entry of a scan."""
    rated = {"ratings": [{"score": score, "method": "CVSSv31"}]} if score is not None else {}
    return {"id": name, "affects": [{"ref": ref} for ref in refs], **rated, **fields}


def analysed(name: str, state: str, *refs: str, detail: str = "The code is never called.") -> dict[str, Any]:
    """VEX statements with one entry."""
    entry: dict[str, Any] = {"id": name, "analysis": {"state": state, "detail": detail}}
    if refs:
        entry["affects"] = [{"ref": ref} for ref in refs]
    return {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "vulnerabilities": [entry]}


def brought(scan: dict[str, Any] | None = None, vex: dict[str, Any] | None = None) -> Evidence:
    """Evidence of a scan that is twelve days old."""
    return Evidence(
        tests={"tests/test_a.py::test_a": "passed"},
        tests_time=SCANNED,
        scan=scan if scan is not None else scanned(),
        scan_time=SCANNED,
        vex=vex,
    )


def spoken() -> ReleaseFacts:
    """Facts in which a person wrote everything that there is to write."""
    written = full_dossier() | {"statements": {"chai.publications": "None <yet> & \x07counting."}}
    protocol = documented_study(dossier=written)
    scan = scanned(
        vulnerability("CVE-2026-1", "ref-4", description="Bad."),
        vulnerability("CVE-2026-2", "ref-1", score=5),
    )
    rounds = [
        RoundLineage(
            round=n, kind="training", plan=ZERO, model=ZERO, updates={"ash": ZERO, "birch": "1" * 64}
        )
        for n in range(3)
    ]
    facts = documented(protocol, components=COMPONENTS)
    lineage = facts.lineage.model_copy(update={"rounds": rounds, "code_commit": "c" * 40})
    vex = analysed("CVE-2026-1", "not_affected", TORCH)
    return dataclasses.replace(facts, lineage=lineage, evidence=brought(scan, vex))


def silent() -> ReleaseFacts:
    """Facts in which nobody wrote or brought anything."""
    facts = documented(tiny_study(dossier={}), data_sheets={}, events=b"", evidence=Evidence())
    empty = facts.lineage.model_copy(update={"data": [], "rounds": []})
    return dataclasses.replace(facts, lineage=empty)


def withheld(facts: ReleaseFacts) -> ReleaseFacts:
    """The same facts with every hospital under the minimum cell."""
    from validation.pooling import metrics_tree

    hidden: list[EvaluationReport] = [r for r in facts.evaluation if r.suppressed]
    return dataclasses.replace(facts, evaluation=hidden, metrics=metrics_tree(hidden))
