"""The audit log names every refusal and every change, and nothing that a hospital or a stranger wrote."""

from __future__ import annotations

import json
import stat
from datetime import date
from pathlib import Path
from typing import Any

import jwt
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from plugins import audit
from plugins.audit import Audit, Visit
from plugins.exchange import exchange_app
from plugins.gate import FAILURES_AT_ONCE
from plugins.limits import Buckets
from tests.plugins.gate_harness import ASH_TASK, RUN, Gate, state


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """A gate with sites ash, birch and cedar."""
    return Gate(tmp_path)


def test_refusals_and_changes_are_recorded_and_signs_of_life_are_not(gate: Gate) -> None:
    gate.edge("ash", "POST", "worker/ash", state(["ash"]))
    gate.edge("ash", "PATCH", "worker/ash", state(["ash"]))
    gate.edge("ash", "POST", "jobs/fetch/ash", {"queues": ["ash"], "free_concurrency": 1})
    gate.edge("ash", "POST", "worker/birch", state(["birch"]))
    gate.task(ASH_TASK, "PUT", f"task-instances/{ASH_TASK}/heartbeat", {"pid": 1})
    gate.task(ASH_TASK, "PATCH", f"task-instances/{ASH_TASK}/state", {"state": "failed", "end_date": "x"})
    gate.task(ASH_TASK, "GET", "variables/secret")
    gate.ask("GET", "/execution/variables/secret", None)
    lines = gate.audited()
    assert [(line["site"], line["path"], line["status"], line["reason"]) for line in lines] == [
        ("ash", "/edge_worker/v1/worker/{worker}", 200, "accepted"),
        ("ash", "/edge_worker/v1/worker/{worker}", 403, "other_worker"),
        ("ash", "/execution/task-instances/{id}/state", 200, "accepted"),
        ("ash", "/execution/*", 403, "unknown_endpoint"),
        ("unknown", "/execution/*", 401, "no_token"),
    ]
    assert lines[2]["subject"] == "tiny.round/ash.train failed"
    assert lines[0]["bytes"] > 0
    assert lines[0]["address"] == "192.0.2.1"


def test_what_airflow_refused_is_recorded_too(gate: Gate) -> None:
    gate.behind.status = 409
    gate.edge("ash", "PATCH", f"jobs/state/tiny.round/ash.train/{RUN}/1/-1/running")
    assert [(line["status"], line["reason"]) for line in gate.audited()] == [(409, "airflow")]


def exchange_token(gate: Gate, site: str, method: str, where: str) -> str:
    """A token as a site signs it for one request to the exchange."""
    return gate.edge_token(site, method, aud="consilium-exchange", path=where)


UPLOAD = f"/consilium/plans/{'a' * 64}/blobs/{'b' * 64}"


@pytest.mark.parametrize(("status", "reason"), [(409, "exchange"), (201, "accepted")])
def test_what_the_exchange_answered_is_recorded_by_its_own_name(gate: Gate, status: int, reason: str) -> None:
    gate.behind.status = status
    gate.ask("PUT", UPLOAD, f"Bearer {exchange_token(gate, 'ash', 'PUT', UPLOAD)}")
    found = [(line["site"], line["status"], line["reason"]) for line in gate.audited()]
    assert found == [("ash", status, reason)]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", UPLOAD),
        ("DELETE", UPLOAD),
        ("GET", "/consilium/blobs/patient-17"),
        ("GET", "/consilium/what-a-stranger-writes"),
    ],
)
def test_no_line_is_in_the_name_of_a_hospital_that_did_not_sign(gate: Gate, method: str, path: str) -> None:
    """A line with its name is a reason to call it, and to revoke its key."""
    forged = jwt.encode({"iss": "ash"}, "x" * 32, "HS256", headers={"kid": "ash"})
    others = exchange_token(gate, "ash", method, path).rpartition(".")[0] + ".AAAA"
    for token in (forged, others, gate.edge_token("ash", path)):
        assert gate.ask(method, path, f"Bearer {token}") == 403
    lines = gate.audited()
    assert {line["site"] for line in lines} == {"unknown"}
    assert {line["path"] for line in lines} == {"/consilium/*"} and not any(
        "subject" in line for line in lines
    )
    assert gate.behind.seen == []


def test_strangers_at_the_exchange_are_counted_like_all_others(gate: Gate) -> None:
    statuses = [gate.ask("GET", f"/consilium/blobs/{'a' * 64}", "x") for _ in range(FAILURES_AT_ONCE + 20)]
    assert 429 in statuses and gate.behind.seen == []


def test_the_exchange_believes_the_gate_alone(gate: Gate) -> None:
    """Were the gate left out, nobody could read or write there."""
    where = f"/consilium/blobs/{'a' * 64}"
    root = FastAPI()
    root.mount("/consilium", exchange_app(gate.home))
    token = f"Bearer {exchange_token(gate, 'ash', 'GET', where)}"
    assert TestClient(root).get(where, headers={"Authorization": token}).status_code == 403


def test_no_token_no_body_and_no_text_of_the_sender_is_in_it(gate: Gate) -> None:
    token = gate.edge_token("birch", "worker/ash")
    evil = 'x"}\n{"site": "cedar", "reason": "accepted'
    gate.ask("POST", "/edge_worker/v1/worker/ash", token, {"queues": ["patient 17"], "state": evil})
    gate.ask(f"GET{evil}", f"/execution/{evil}", f"Bearer {gate.task_token(ASH_TASK)}")
    gate.ask("GET", "/execution/" + evil, token)
    lines = gate.audited()
    assert len(lines) == 3
    text = json.dumps(lines)
    assert token not in text
    assert "patient 17" not in text
    assert "cedar" not in text


def test_a_path_and_a_method_of_the_senders_choice_are_not_in_it_either(gate: Gate) -> None:
    """Whether a hospital or a stranger sends them, accepted or refused."""
    name = "JohnDoe-1957-HIV"
    gate.edge("ash", "POST", f"worker/{name}", state(["ash"]))
    gate.edge("ash", "PATCH", f"jobs/state/{name}/birch.train/{RUN}/1/-1/running")
    for status in (200, 403, 404, 405, 422):
        gate.behind.status = status
        gate.ask("GET", f"/consilium/{name}", "x")
        gate.ask(name, "/consilium/x", f"Bearer {gate.edge_token('ash', 'x')}")
    lines = gate.audited()
    assert len(lines) >= 10 and name not in json.dumps(lines)


def test_a_change_names_what_the_coordinator_knows(gate: Gate) -> None:
    gate.edge("ash", "POST", "worker/ash", state(["ash"]))
    gate.edge("ash", "PATCH", f"jobs/state/tiny.round/ash.train/{RUN}/1/-1/running")
    gate.ask("PUT", UPLOAD, f"Bearer {exchange_token(gate, 'ash', 'PUT', UPLOAD)}")
    expected = ["ash", "tiny.round/ash.train running", UPLOAD.removeprefix("/consilium/")]
    assert [line["subject"] for line in gate.audited()] == expected


def test_the_file_is_the_coordinators_alone_and_of_the_day(tmp_path: Path) -> None:
    log = Audit(tmp_path / "audit")
    log.record(Visit("GET", "192.0.2.1"), 403, "unknown_endpoint")
    log.close()
    (path,) = (tmp_path / "audit").glob("gate-????-??-??.jsonl")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_flood_is_counted_not_written(tmp_path: Path) -> None:
    log = Audit(tmp_path)
    for _ in range(audit.LINES_AT_ONCE + 100):
        log.record(Visit("GET", "192.0.2.1", site="ash"), 403, "rate")
    log.record(Visit("GET", "192.0.2.1", site="birch"), 403, "rate")
    log._lines.rate = 1e9
    log.record(Visit("GET", "192.0.2.1", site="ash"), 403, "rate")
    log.close()
    lines = [json.loads(line) for path in tmp_path.glob("gate-*") for line in path.read_text().splitlines()]
    written = [line for line in lines if line["site"] == "ash"]
    assert len(lines) == len(written) + 1
    assert len(written) + sum(line.get("left_out", 0) for line in written) == audit.LINES_AT_ONCE + 101
    assert len(written) < audit.LINES_AT_ONCE + 101


def lines_in(folder: Path) -> list[dict[str, Any]]:
    """Every line of a folder, oldest first."""
    paths = sorted(folder.glob("gate-*"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def test_days_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "KEEP_DAYS", 2)
    for day in ("2020-01-01", "2020-01-02", "2020-01-03"):
        (tmp_path / f"gate-{day}.jsonl").write_text("{}\n")
    log = Audit(tmp_path)
    log.record(Visit("GET", "192.0.2.1"), 403, "unknown_endpoint")
    log.close()
    names = sorted(path.name for path in tmp_path.glob("gate-*"))
    assert names[0] == "gate-2020-01-02.jsonl" and len(names) == 3  # the new day beside the two kept


@pytest.mark.parametrize("who", ["ash", audit.UNKNOWN])
def test_who_floods_uses_up_an_allowance_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    """From however many addresses: it is said once, counted, and others and changes are still recorded."""
    for name in ("SITE_DAY_BYTES", "STRANGERS_DAY_BYTES"):
        monkeypatch.setattr(audit, name, 10_000)
    monkeypatch.setattr(audit, "LINES_AT_ONCE", 10**6)
    log = Audit(tmp_path, _lines=Buckets(1e9, 10**6))
    for n in range(500):
        log.record(Visit("GET", f"192.0.2.{n % 250}", site=who), 403, "other_job")
    log.record(Visit("PATCH", "192.0.2.1", site=who), 200, "accepted")
    log.record(Visit("GET", "192.0.2.9", site="birch"), 403, "other_job")
    log.close()
    lines = lines_in(tmp_path)
    assert [line["reason"] for line in lines if line["site"] == "birch"] == ["other_job"]
    of = [line for line in lines if line["site"] == who]
    assert [line["reason"] for line in of].count("full") == 1 and of[-1]["reason"] == "accepted"
    refused = sum(line["reason"] == "other_job" for line in of)
    assert refused + sum(line.get("left_out", 0) for line in of) == 500
    assert sum(len(json.dumps(line)) for line in of) < 10_000


def test_the_next_day_begins_with_what_was_left_out_and_a_new_allowance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "SITE_DAY_BYTES", 1000)
    day = date(2026, 1, 1)
    log = Audit(tmp_path, today=lambda: day)
    for _ in range(50):
        log.record(Visit("GET", "192.0.2.1", site="ash"), 403, "other_job")
    day = date(2026, 1, 2)
    assert log.record(Visit("GET", "192.0.2.1", site="birch"), 403, "other_job")
    assert log.record(Visit("GET", "192.0.2.1", site="ash"), 403, "other_job")
    log.close()
    lines = lines_in(tmp_path)
    assert [line["reason"] for line in lines[-3:]] == ["left_out", "other_job", "other_job"]
    written = sum(line["reason"] == "other_job" and line["site"] == "ash" for line in lines)
    assert written + sum(line.get("left_out", 0) for line in lines) == 51


def test_a_folder_that_cannot_be_written_fails_no_request(gate: Gate) -> None:
    gate.home.audit.write_text("a file in its place")
    assert gate.edge("ash", "POST", "worker/ash", state(["ash"])) == 200
    assert gate.edge("ash", "POST", "worker/birch", state(["birch"])) == 403
