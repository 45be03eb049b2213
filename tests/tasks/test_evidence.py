"""What people bring to the next release: read whole or refused, dated, and never half-written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from consilium.release import app
from contracts.errors import ConsiliumError
from contracts.regulatory import RegulatoryStatement
from contracts.release import INVESTIGATIONAL
from contracts.signing import SigningKey, open_signed
from release.dossier.risk import result_of
from release.dossier.vulnerabilities import findings, purl, verdict
from release.facts import Component, Evidence
from tasks.evidence import add_scan, add_tests, add_vex, load_evidence
from tasks.head import now, register_study
from tasks.home import CoordinatorHome
from tasks.regulatory import load_regulatory, protocol_of, state_status
from tests.factories import tiny_study

MADE = "2026-01-31T12:00:00Z"
AUDIT = {
    "dependencies": [
        {
            "name": "Flask_Thing",
            "version": "0.5+x",
            "vulns": [
                {"id": "PYSEC-1", "fix_versions": ["1.0"], "aliases": ["CVE-1"], "description": "Bad."},
            ],
        },
        {"name": "clean", "version": "2", "vulns": []},
        {"name": "local", "skip_reason": "not on PyPI"},
    ],
    "fixes": [],
}


def home_in(folder: Path) -> CoordinatorHome:
    home = CoordinatorHome(folder / "coordinator")
    home.root.mkdir(parents=True)
    return home


def junit(*cases: str, timestamp: str | None = "2026-01-31T13:00:00+01:00") -> bytes:
    """A JUnit report of these testcases."""
    when = f' timestamp="{timestamp}"' if timestamp else ""
    return f"<testsuites><testsuite name='pytest'{when}>{''.join(cases)}</testsuite></testsuites>".encode()


def case(name: str, inside: str = "", classname: str = "tests.a.test_b") -> str:
    return f'<testcase classname="{classname}" name="{name}">{inside}</testcase>'


def cyclonedx(*vulnerabilities: dict[str, Any], **fields: Any) -> bytes:
    body = {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1}
    return json.dumps(body | {"vulnerabilities": list(vulnerabilities)} | fields).encode()


STATEMENT = {"id": "CVE-1", "analysis": {"state": "not_affected", "detail": "Not called."}}


def test_pytests_own_report_gives_the_identifiers_that_a_study_names(tmp_path: Path) -> None:
    home, report = home_in(tmp_path), tmp_path / "report.xml"
    folder = tmp_path / "project" / "tests" / "deep"
    folder.mkdir(parents=True)
    (folder / "test_real.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('x', ['<!DOCTYPE', 'a[1]', 'b.c/d'])\n"
        "def test_many(x): pass\n"
        "class TestGroup:\n    def test_in(self): assert 0, '<!DOCTYPE'\n"
        "@pytest.mark.skip\ndef test_skipped(): pass\n"
        "@pytest.fixture\ndef broken():\n    yield\n    raise OSError\n"
        "def test_torn_down_badly(broken): pass\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
        "tests",
    ]
    subprocess.run(command, cwd=tmp_path / "project", capture_output=True, check=False)
    add_tests(home, report.read_bytes())
    evidence, file = load_evidence(home), "tests/deep/test_real.py"
    assert {name for name in evidence.tests if "many" in name} == {
        f"{file}::test_many[{x}]" for x in ("<!DOCTYPE", "a[1]", "b.c/d")
    }
    assert result_of(f"{file}::test_many", evidence) == "passed"
    assert result_of(f"{file}::TestGroup::test_in", evidence) == "failed"
    assert result_of(f"{file}::test_skipped", evidence) is None
    assert result_of(f"{file}::test_torn_down_badly", evidence) == "failed"


def test_reports_are_taken_together_with_the_worst_result_and_the_oldest_date(tmp_path: Path) -> None:
    home = home_in(tmp_path)
    first = junit(case("test_x"), case("test_y", "<failure/>"), case("test_z", "<skipped/>"))
    second = junit(
        case("test_x", "<error/>"), case("test_y"), case("test_z"), timestamp="2026-01-30T12:00:00Z"
    )
    add_tests(home, first, second)
    evidence = load_evidence(home)
    assert evidence.tests_time == "2026-01-30T12:00:00Z"
    names = {name.rpartition("::")[2]: result for name, result in evidence.tests.items()}
    assert names == {"test_x": "failed", "test_y": "failed", "test_z": "passed"}
    add_tests(home, first)
    assert load_evidence(home).tests_time == MADE  # replaced, and in UTC


BOMB = b"<!DOCTYPE x [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;'>]>" + junit(case("&b;"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html/>",
        b"<testsuites/>",
        junit(),
        junit(case("test_x"))[:-5],
        junit(case("")),
        junit(case("test_x"), timestamp=None),
        junit(case("test_x"), timestamp="yesterday"),
        junit(case("test_x"), timestamp="2999-01-01T00:00:00Z"),
        BOMB,
        BOMB.decode().encode("utf-16"),
        b"<!DOCTYPE x SYSTEM 'file:///etc/passwd'>" + junit(case("test_x")),
    ],
)
def test_what_is_no_report_of_tests_is_refused(tmp_path: Path, data: bytes) -> None:
    home = home_in(tmp_path)
    add_tests(home, junit(case("test_x")))
    refused(home, lambda: add_tests(home, junit(case("test_y")), data))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"dependencies": [{"name": "a"}]}',
        b'{"dependencies": "a"}',
        b'{"dependencies": [1]}',
        cyclonedx(),  # lists nothing that was scanned
        cyclonedx(STATEMENT, specVersion="1.7"),
        cyclonedx(STATEMENT, specVersion=None),
        cyclonedx({"id": 1}),
        cyclonedx({"description": "Nameless."}),
        cyclonedx(STATEMENT, unknown=1),
        cyclonedx({"id": "CVE-1", "ratings": [{"score": float("nan")}]}),
        cyclonedx({"id": "CVE-1", "cwes": [2**60]}),
        b"[" * 100_000,
    ],
)
def test_what_is_no_scan_is_refused(tmp_path: Path, data: bytes) -> None:
    home = home_in(tmp_path)
    add_scan(home, json.dumps(AUDIT).encode(), MADE)
    refused(home, lambda: add_scan(home, data, MADE))


@pytest.mark.parametrize(
    "data",
    [
        json.dumps(AUDIT).encode(),
        cyclonedx(),
        cyclonedx({"id": "CVE-1"}),
        cyclonedx({"analysis": {"state": "not_affected"}}),
        cyclonedx({"id": "CVE-1", "analysis": {"detail": "No state."}}),
        cyclonedx({"id": "CVE-1", "analysis": {"state": "harmless"}}),
    ],
)
def test_what_is_no_vex_is_refused(tmp_path: Path, data: bytes) -> None:
    home = home_in(tmp_path)
    add_vex(home, cyclonedx(STATEMENT))
    refused(home, lambda: add_vex(home, data))


def refused(home: CoordinatorHome, bring: Callable[[], object]) -> None:
    """Check that something is refused with E715 and that what was there before is there still."""
    before = {path: path.read_bytes() for path in home.evidence.rglob("*")}
    with pytest.raises(ConsiliumError) as error:
        bring()
    assert error.value.number == "E715"
    assert {path: path.read_bytes() for path in home.evidence.rglob("*")} == before != {}


def test_a_pip_audit_report_becomes_a_scan_that_rates_nothing_and_omits_what_was_skipped(
    tmp_path: Path,
) -> None:
    home = home_in(tmp_path)
    refused_without_date = pytest.raises(ConsiliumError, match="no date")
    with refused_without_date:
        add_scan(home, json.dumps(AUDIT).encode())
    add_scan(home, json.dumps(AUDIT).encode(), MADE)
    evidence = load_evidence(home)
    (found,) = findings(evidence)
    assert found.names == {"PYSEC-1", "CVE-1"} and found.severity == "unrated"
    assert found.component == purl("flask-thing", "0.5+x") and evidence.scan_time == MADE
    assert verdict(evidence, MADE).passed is None
    add_vex(home, cyclonedx(STATEMENT))  # by the alias
    assert verdict(load_evidence(home), MADE).passed is True
    missing = verdict(load_evidence(home), MADE, [Component("local", "1", runtime=True)])
    assert missing.passed is None and "local" in missing.detail


def test_a_scans_own_date_counts_before_the_one_that_is_said(tmp_path: Path) -> None:
    home = home_in(tmp_path)
    metadata = {"timestamp": "2026-01-01T01:00:00+01:00"}
    add_scan(home, cyclonedx(STATEMENT, metadata=metadata), MADE)
    assert load_evidence(home).scan_time == "2026-01-01T00:00:00Z"


def test_nothing_brought_is_empty_and_a_changed_file_is_refused(tmp_path: Path) -> None:
    home = home_in(tmp_path)
    assert load_evidence(home) == Evidence()
    add_tests(home, junit(case("test_x", "<failure/>")))
    path = home.evidence / "tests.json"
    for changed in (b"{}", path.read_bytes().replace(b"failed", b"splendid"), b""):
        path.write_bytes(changed)
        with pytest.raises(ConsiliumError) as error:
            load_evidence(home)
        assert error.value.number == "E715"


@pytest.mark.slow
def test_the_commands_bring_and_show_and_refuse_with_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = home_in(tmp_path)
    monkeypatch.setenv("CONSILIUM_HOME", str(tmp_path))
    report, audit, vex = (tmp_path / name for name in ("tests.xml", "audit.json", "vex.json"))
    report.write_bytes(junit(case("test_x"), case("test_y", "<failure/>")))
    audit.write_text(json.dumps(AUDIT))
    vex.write_bytes(cyclonedx(STATEMENT))
    run = CliRunner().invoke
    assert json.loads(run(app, ["evidence", "tests", str(report), "--json"]).stdout)["failed"] == 1
    refusal = run(app, ["evidence", "scan", str(audit), "--json"])
    assert refusal.exit_code == 1 and json.loads(refusal.stdout)["error"]["number"] == "E715"
    assert run(app, ["evidence", "scan", str(audit), "--made", MADE]).exit_code == 0
    assert run(app, ["evidence", "vex", str(vex)]).exit_code == 0
    shown = json.loads(run(app, ["evidence", "show", "--json"]).stdout)
    assert shown["tests"] == {"failed": 1, "passed": 1} and shown["scan_time"] == MADE
    assert shown["statements"] == 1 and run(app, ["evidence", "show"]).exit_code == 0
    assert load_evidence(home).tests_time == MADE
    audit.write_text(json.dumps({"dependencies": [{"name": "numpy", "version": "0", "vulns": []}]}))
    assert run(app, ["evidence", "scan", str(audit), "--made", now()]).exit_code == 0
    found = json.loads(run(app, ["evidence", "show", "--json"]).stdout)["vulnerabilities"]
    assert found["passed"] is None and "does not cover" in found["detail"]  # as the gate will say


def statement(protocol: Any, **changes: Any) -> RegulatoryStatement:
    fields = {
        "product": protocol.product_name, "protocol_hash": protocol.hash, "status": "cleared, K000000",
        "basis": "FDA: K000000", "name": "R. Test", "role": "regulatory affairs", "time": MADE,
    }  # fmt: skip
    return RegulatoryStatement.model_validate(fields | changes)


def test_a_release_is_investigational_until_a_person_signs_another_status(tmp_path: Path) -> None:
    home, study, key = home_in(tmp_path), tiny_study(), SigningKey.generate("R. Test")
    register_study(home, study)
    assert load_regulatory(home, study) == (INVESTIGATIONAL, None)
    state_status(home, study, statement(study), key)
    status, text = load_regulatory(home, study)
    assert status == "cleared, K000000" and text is not None
    assert open_signed(text, RegulatoryStatement, "R. Test", key.public).basis == "FDA: K000000"
    # Another intended use is another protocol, of which nobody stated anything.
    assert load_regulatory(home, tiny_study(intended_use="Other.")) == (INVESTIGATIONAL, None)
    state_status(home, study, statement(study, status=INVESTIGATIONAL, basis="Withdrawn."), key)
    assert load_regulatory(home, study)[0] == INVESTIGATIONAL


def test_a_changed_statement_or_one_about_another_protocol_is_refused(tmp_path: Path) -> None:
    home, study, key = home_in(tmp_path), tiny_study(), SigningKey.generate("R. Test")
    other = tiny_study(intended_use="Other.")
    for said in (statement(other), statement(study, status=" "), statement(study, basis="")):
        with pytest.raises(ConsiliumError, match="E715"):
            state_status(home, study, said, key)
    text = state_status(home, study, statement(study), key)
    (path,) = (home.evidence / "regulatory").iterdir()
    path.write_text(text.replace("K000000", "K000001"))
    with pytest.raises(ConsiliumError, match="E803"):
        load_regulatory(home, study)
    path.write_text(state_status(home, other, statement(other), key))
    with pytest.raises(ConsiliumError, match="E715"):
        load_regulatory(home, study)


def test_the_command_signs_with_the_persons_key_for_the_registered_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, study, key = home_in(tmp_path), tiny_study(), SigningKey.generate("R. Test")
    monkeypatch.setenv("CONSILIUM_HOME", str(tmp_path))
    key.save(tmp_path / "person.pem")
    command = ["regulatory", "tiny", "--status", "cleared", "--authority", "FDA", "--reference", "K000000"]
    command += ["--name", "R. Test", "--key", str(tmp_path / "person.pem"), "--json"]
    assert CliRunner().invoke(app, command).exit_code == 2  # nobody's role is made up
    command += ["--role", "regulatory affairs"]
    refusal = CliRunner().invoke(app, command)
    assert json.loads(refusal.stdout)["error"]["number"] == "E715"  # no such study
    register_study(home, study)
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and json.loads(done.stdout)["key"] == key.public, done.output
    status, text = load_regulatory(home, protocol_of(home, "tiny"))
    assert status == "cleared" and "FDA: K000000" in str(text)
