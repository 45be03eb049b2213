"""The whole dossier with everything and with nothing written: valid both times, and open where it must be."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from contracts.canonical import sha256
from release.dossier.assemble import COMPONENTS, dossier_files
from release.dossier.conformance import check_conformance
from release.facts import ReleaseFacts
from tests.documented import written_before
from tests.release.dossier.materials import silent, spoken

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("make", [spoken, silent])
def test_every_machine_readable_file_is_made_valid_and_counted(
    make: Callable[[], ReleaseFacts], tmp_path: Path
) -> None:
    before = written_before(make(), tmp_path)
    made = dossier_files(make(), before)
    assert made == dossier_files(make(), before)
    assert {path for path, *_ in COMPONENTS} | {"provenance.json"} <= set(made)
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    for path in ("sbom.cdx.json", "vex.cdx.json"):
        assert validator.validate_str(made[path].decode()) is None
    ElementTree.fromstring(made["dossier/chai.xml"])
    subjects = {s["name"]: s["digest"]["sha256"] for s in json.loads(made["provenance.json"])["subject"]}
    files = {**before, **made}
    later = {"provenance.json", "conformance.json"}
    assert subjects == {path: sha256(data) for path, data in files.items() if path not in later}
    assert check_conformance(json.loads(made["conformance.json"]), files.__getitem__) == []


def test_rows_are_met_where_it_was_written_and_open_where_it_was_not(tmp_path: Path) -> None:
    answered = {
        *("cyclonedx.sbom", "iec81001.8"),  # of which the other facts have no package
        *("iec62304.8.1.2", "iec62304.7.1.3", "iec81001.6", "cyclonedx.vex", "cyclonedx.considerations"),
        *("chai.card", "chai.publications"),
    }
    for make, status in ((spoken, "met"), (silent, "open")):
        before = written_before(make(), tmp_path / status)
        rows = json.loads(dossier_files(make(), before)["conformance.json"])["rows"]
        found = {row["id"]: row["status"] for row in rows}
        assert {name: found[name] for name in answered} == dict.fromkeys(answered, status)
        assert found["slsa.provenance"] == "met"


def test_what_makes_the_dossier_and_brings_evidence_imports_nothing_heavy() -> None:
    modules = "sbom, model_card, licences, vex, soup, chai, provenance, vulnerabilities"
    heavy = "{'torch', 'opacus', 'airflow', 'great_expectations', 'dvc', 'matplotlib', 'jinja2', 'cyclonedx'}"
    code = (
        f"import sys; from release.dossier import {modules}; import consilium.evidence; "
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
