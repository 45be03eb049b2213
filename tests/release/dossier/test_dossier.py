"""The dossier: complete, the same from the same facts, and open wherever nobody wrote or showed anything."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from contracts.dossier import Dossier
from contracts.release import Change
from release.dossier import annex_iv, hti1, risk, split_attestation, tripod_ai
from release.dossier.assemble import dossier_files
from release.dossier.conformance import asked_identifiers, check_conformance
from release.dossier.pointers import is_open, resolve
from release.facts import Evidence, ReleaseFacts
from tests.documented import INTAKE, documented, documented_study, full_dossier, written_before
from tests.dossiers import sheet
from tests.factories import ZERO

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a candidate of the documented study holds before its dossier."""
    return written_before(documented(documented_study()), tmp_path_factory.mktemp("candidate"))


def dossier_of(before: dict[str, bytes], facts: ReleaseFacts | None = None) -> dict[str, bytes]:
    facts = facts or documented(documented_study())
    return {**before, **dossier_files(facts, before)}


def rows_of(files: dict[str, bytes]) -> dict[str, dict[str, str]]:
    return {row["id"]: row for row in json.loads(files["conformance.json"])["rows"]}


def with_dossier(**changes: Any) -> ReleaseFacts:
    written = {name: value for name, value in (full_dossier() | changes).items() if value is not None}
    return documented(documented_study(dossier=written))


def test_every_list_of_a_standard_is_complete(before: dict[str, bytes]) -> None:
    files = dossier_of(before)
    attributes = json.loads(files[hti1.FILE])["attributes"]
    by_category = [sum(a["category"] == str(c) for a in attributes) for c in range(1, 10)]
    assert by_category == [4, 4, 2, 4, 2, 4, 5, 4, 2] and len({a["clause"] for a in attributes}) == 31
    items = [item["id"].removeprefix("tripod.") for item in json.loads(files[tripod_ai.FILE])["items"]]
    assert len(set(items)) == 52
    assert {int(item.rstrip("abcdefg")) for item in items} == set(range(1, 28))
    points = [point["id"].split(".")[1:] for point in json.loads(files[annex_iv.FILE])["points"]]
    assert {point[0] for point in points} == {str(n) for n in range(1, 10)}
    assert [p[1] for p in points if p[0] == "1"] == list("abcdefgh")
    assert [p[1] for p in points if p[0] == "2"] == list("abcdefgh")


def test_no_cell_is_empty_and_what_is_met_is_there(before: dict[str, bytes]) -> None:
    files = dossier_of(before)
    document = json.loads(files["conformance.json"])
    assert check_conformance(document, files.__getitem__) == []
    met = [row for row in document["rows"] if row["status"] == "met"]
    assert len(met) > 60 and document["summary"]["met"] == len(met)
    for row in document["rows"]:
        assert all(isinstance(cell, str) and cell.strip() for cell in row.values()), row
    for row in met:
        assert not is_open(resolve(files, row["file"], row["pointer"])), row


def test_the_same_facts_give_the_same_bytes(before: dict[str, bytes]) -> None:
    assert dossier_of(before) == dossier_of(before)


@pytest.mark.parametrize("name", sorted(Dossier.model_fields))
def test_what_a_person_does_not_write_becomes_open_and_nothing_else_changes(
    before: dict[str, bytes], name: str
) -> None:
    full, less = dossier_of(before, with_dossier()), dossier_of(before, with_dossier(**{name: None}))
    assert check_conformance(json.loads(less["conformance.json"]), less.__getitem__) == []
    was, now = rows_of(full), rows_of(less)
    changed = {key for key in was if was[key]["status"] != now[key]["status"]}
    assert {now[key]["status"] for key in changed} <= {"open"}
    assert all(was[key]["status"] == "met" for key in changed)
    assert changed or name == "statements", f"nobody misses {name}"  # the full dossier has no statements


def test_an_empty_dossier_is_open_in_every_human_part_and_says_who_must_write_it(
    before: dict[str, bytes],
) -> None:
    files = dossier_of(before, documented(documented_study(dossier={})))
    assert check_conformance(json.loads(files["conformance.json"]), files.__getitem__) == []
    fields = json.loads(files["dossier/statements.json"])["fields"]
    assert all("To be written by" in value["open"] for value in fields.values())
    use = files["dossier/intended_use.md"].decode()
    assert use.count("**OPEN.**") == 11 and "\n>" in use  # the intended use itself is the protocol's
    for name in ("pccp", "risk", "monitoring"):
        assert b'"open"' in files[f"dossier/{name}.json"]


def test_people_can_neither_begin_a_section_nor_pass_for_facts(before: dict[str, bytes]) -> None:
    forged = "Nurses.\n## Manufacturer\nACME\n\n**OPEN.** no"
    facts = with_dossier(users=forged, manufacturer=None)
    files = dossier_of(before, facts)
    assert is_open(resolve(files, "dossier/intended_use.md", "#manufacturer"))
    users = resolve(files, "dossier/intended_use.md", "#intended-users")
    assert all(line.startswith(">") for line in users.splitlines()) and not is_open(users)


def test_a_statement_answers_its_item_says_that_it_does_not_apply_or_is_listed_as_unknown(
    before: dict[str, bytes],
) -> None:
    statements = {
        "tripod.5b": "Collected from 1981 to 1987.",
        "tripod.6c": "Not applicable: no treatment was given before the examination.",
        "hti1.6.ii": "Not applicable: no external testing is planned for a demonstration.",
        "tripod.99": "A mistyped item.",
    }
    files = dossier_of(before, with_dossier(statements=statements))
    rows = rows_of(files)
    assert rows["tripod.5b"]["status"] == "met"
    assert resolve(files, rows["tripod.5b"]["file"], rows["tripod.5b"]["pointer"]) == statements["tripod.5b"]
    for name in ("tripod.6c", "hti1.6.ii"):
        assert rows[name]["status"] == "not_applicable" and "authors state" in rows[name]["reason"]
    unknown = json.loads(files["dossier/statements.json"])["statements_that_answer_no_item"]
    assert unknown == ["tripod.99"]
    assert check_conformance(json.loads(files["conformance.json"]), files.__getitem__) == []


@pytest.mark.parametrize("said", ["Not applicable:", "not applicable", "Not applicable.", "  "])
def test_a_bare_not_applicable_excuses_nothing(before: dict[str, bytes], said: str) -> None:
    named = ("tripod.5b", "tripod.8a", "hti1.6.ii", "iso14971.8")
    files = dossier_of(before, with_dossier(statements=dict.fromkeys(named, said)))
    assert {rows_of(files)[name]["status"] for name in named} == {"open"}
    assert check_conformance(json.loads(files["conformance.json"]), files.__getitem__) == []


@pytest.mark.parametrize(
    ("tests", "result"),
    [
        ({"tests/test_a.py::test_a": "passed"}, "passed"),
        ({"tests/test_a.py::test_a[one]": "passed", "tests/test_a.py::test_a[two]": "passed"}, "passed"),
        ({"tests/test_a.py::test_a[one]": "passed", "tests/test_a.py::test_a[two]": "failed"}, "failed"),
        ({"tests/test_a.py::test_a": "skipped"}, None),
        ({"tests/test_a.py::test_ab": "passed"}, None),
        ({}, None),
    ],
)
def test_a_control_is_verified_only_by_a_test_that_ran_and_passed(
    before: dict[str, bytes], tests: dict[str, str], result: str | None
) -> None:
    facts = dataclasses.replace(with_dossier(), evidence=Evidence(tests=tests, tests_time=INTAKE))
    files = dossier_of(before, facts)
    shown = resolve(files, risk.FILE, "/risks/0/controls/0/verification")
    assert shown["result"] == result and is_open(shown) == (result != "passed")
    assert rows_of(files)["iso14971.7.2"]["status"] == ("met" if result == "passed" else "open")


def test_the_split_is_attested_only_by_data_sheets_older_than_the_first_plan(
    before: dict[str, bytes],
) -> None:
    facts = documented(documented_study())
    good = json.loads(split_attestation.split_attestation(facts))
    assert not is_open(good["attestation"]) and good["first_plan"]["time"] > INTAKE
    late = documented_late(facts)
    for changed in (
        dataclasses.replace(facts, events=b""),
        dataclasses.replace(facts, data_sheets={"ash": facts.data_sheets["ash"]}),
        late,
    ):
        found = json.loads(split_attestation.split_attestation(changed))
        assert is_open(found["attestation"])
        assert rows_of(dossier_of(before, changed))["tripod.12a"]["status"] == "open"


def documented_late(facts: ReleaseFacts) -> ReleaseFacts:
    """The same study with one data sheet that is younger than the first plan."""
    from contracts.signing import to_text

    late = sheet(facts.protocol, "birch", "2025-12-24T00:00:00Z")
    data = [
        d.model_copy(update={"data_sheet": late.digest}) if d.site == "birch" else d
        for d in facts.lineage.data
    ]
    return dataclasses.replace(
        facts,
        data_sheets={**facts.data_sheets, "birch": to_text(late)},
        lineage=facts.lineage.model_copy(update={"data": data}),
    )


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (Change(level="first"), "met"),
        (Change(level="patch", since="1.0.0", changed=["weights"], modification="M1"), "met"),
        (Change(level="patch", since="1.0.0", changed=["weights"]), "open"),
        (Change(level="minor", since="1.0.0", changed=["weights", "sites"], modification="M1"), "open"),
    ],
)
def test_a_release_is_inside_the_change_control_plan_or_open(
    before: dict[str, bytes], change: Change, status: str
) -> None:
    rows = rows_of(dossier_of(before, dataclasses.replace(with_dossier(), change=change)))
    assert rows["pccp.release"]["status"] == status == rows["annex_iv.6"]["status"]


def test_a_modification_without_one_part_opens_that_part_alone(before: dict[str, bytes]) -> None:
    plan = full_dossier()["change_control"]
    bare = {key: value for key, value in plan["modifications"][0].items() if key != "update_procedure"}
    rows = rows_of(dossier_of(before, with_dossier(change_control=plan | {"modifications": [bare]})))
    assert (
        rows["pccp.update_procedure"]["status"] == "open" and "M1" in rows["pccp.update_procedure"]["reason"]
    )
    assert rows["pccp.retraining"]["status"] == "met"


@pytest.mark.parametrize(
    ("scanned", "status"), [("2025-12-31T00:00:00Z", "met"), ("2025-12-01T00:00:00Z", "open"), (None, "open")]
)
def test_only_a_scan_of_the_last_thirty_days_counts(
    before: dict[str, bytes], scanned: str | None, status: str
) -> None:
    evidence = Evidence(scan={"vulnerabilities": []} if scanned else None, scan_time=scanned)
    facts = dataclasses.replace(with_dossier(), evidence=evidence)
    held = {**before, "vex.cdx.json": b'{"bomFormat": "CycloneDX"}'}
    rows = rows_of(dossier_of(held, facts))
    assert rows["iec62304.7.1.3"]["status"] == status == rows["iec81001.6"]["status"]


def test_a_hospital_that_did_not_verify_leaves_the_approvals_open(before: dict[str, bytes]) -> None:
    facts = with_dossier()
    silent = dataclasses.replace(facts, verification=facts.verification[:1])
    rows = rows_of(dossier_of(before, silent))
    assert rows["nist.govern"]["status"] == "open" and "birch" in rows["nist.govern"]["reason"]


def test_privacy_is_said_as_the_statement_says_it(before: dict[str, bytes]) -> None:
    facts = documented(documented_study())
    stated = {"mode": "patient", "epsilon": 2.34567, "delta": 1e-4}
    private = {**before, "dp_statement.json": json.dumps(stated).encode()}
    text = dossier_files(facts, private)["dossier/model_description.md"].decode()
    assert "epsilon at most 2.346 at delta 0.0001" in text and "without differential privacy" not in text
    unstated = {**before, "dp_statement.json": json.dumps(stated | {"epsilon": None}).encode()}
    made = dossier_files(facts, unstated)
    assert is_open(resolve({**unstated, **made}, "dossier/model_description.md", "#privacy"))


def test_every_identifier_that_is_asked_for_can_be_written(before: dict[str, bytes]) -> None:
    everything = {name: f"Stated for {name}." for name in asked_identifiers()}
    files = dossier_of(before, with_dossier(statements=everything))
    assert json.loads(files["dossier/statements.json"])["statements_that_answer_no_item"] == []
    left = {name for name, row in rows_of(files).items() if row["status"] == "open"}
    assert left <= {
        # What no statement replaces: files of the release run, and a second hospital's AUROC.
        *("iec62304.8.1.2", "iec62304.7.1.3", "iec81001.6", "iec81001.8"),
        *("cyclonedx.sbom", "cyclonedx.vex", "slsa.provenance", "chai.card"),
    }


def test_the_dossier_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'opacus', 'airflow', 'great_expectations', 'dvc', 'matplotlib', 'jinja2'}"
    code = f"import sys, release.dossier.assemble; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_policy_and_data_of_every_hospital_are_named(before: dict[str, bytes]) -> None:
    files = dossier_of(before)
    for hospital in json.loads(files["dossier/governance.json"])["hospitals"]:
        assert len(hospital["policy"]) == len(ZERO) and hospital["data_sheet_for_this_protocol"]
    table = files["dossier/model_description.md"].decode()
    assert "| ash |" in table and "| birch |" in table
