"""The dossiers of the shipped studies: what they name exists, and what nobody decided stays open."""

from __future__ import annotations

import ast
import dataclasses
import json
from pathlib import Path

import pytest

import studies
from contracts.canonical import canonical_json
from contracts.study import StudyProtocol, load_study
from release.dossier.assemble import dossier_files
from release.dossier.change_control import change_control
from release.dossier.conformance import asked_identifiers, check_conformance
from release.dossier.pointers import is_open
from release.dossier.risk import risk
from tests.documented import documented, written_before

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = [load_study(path) for path in sorted(Path(studies.__file__).parent.glob("*.yaml"))]


def named_tests(protocol: StudyProtocol) -> list[str]:
    return [c.test for entry in protocol.dossier.risks for c in entry.controls if c.test]


@pytest.mark.parametrize("protocol", SHIPPED, ids=lambda p: p.study)
def test_every_test_that_shows_a_control_exists(protocol: StudyProtocol) -> None:
    for name in named_tests(protocol):
        path, function = name.split("::")
        tree = ast.parse((ROOT / path).read_text())
        assert function in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, name


@pytest.mark.parametrize("protocol", SHIPPED, ids=lambda p: p.study)
def test_every_statement_answers_an_item_and_every_identifier_is_used_once(protocol: StudyProtocol) -> None:
    dossier = protocol.dossier
    assert set(dossier.statements) <= asked_identifiers()
    names = [entry.id for entry in dossier.risks] + [c.id for entry in dossier.risks for c in entry.controls]
    names += [m.id for m in dossier.change_control.modifications] if dossier.change_control else []
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("study", ["heart-disease", "icu-mortality-demo"])
def test_the_demonstrations_say_what_they_are_and_claim_no_more(study: str) -> None:
    protocol = next(p for p in SHIPPED if p.study == study)
    dossier = protocol.dossier
    assert dossier.manufacturer is None and dossier.contact is None
    assert len(dossier.risks) >= 5 and named_tests(protocol)
    facts = dataclasses.replace(documented(), protocol=protocol)
    file = json.loads(risk(facts))
    assert is_open(file["residual_risks"]) and is_open(file["overall_residual_risk"])
    assert is_open(json.loads(change_control(facts))["authorised_by"])


@pytest.mark.parametrize("protocol", SHIPPED, ids=lambda p: p.study)
def test_the_conformance_matrix_of_a_shipped_study_holds(protocol: StudyProtocol, tmp_path: Path) -> None:
    before = written_before(documented(), tmp_path) | {"study.json": canonical_json(protocol)}
    files = {**before, **dossier_files(dataclasses.replace(documented(), protocol=protocol), before)}
    matrix = json.loads(files["conformance.json"])
    assert check_conformance(matrix, files.__getitem__) == []
    written = bool(protocol.dossier.users)
    assert matrix["summary"]["met"] > (60 if written else 25) and matrix["summary"]["open"] > 25
