"""Tokens are used once and within their time, bodies are small and quick, and nobody learns why not."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest

from plugins import wire
from plugins.gate import FAILURES_AT_ONCE
from plugins.limits import Buckets, Replays
from tasks.settings import Settings, save_settings
from tests.plugins.gate_harness import ASH_TASK, OWN_TASK, RUN, Gate, state

FETCH = {"queues": ["ash"], "free_concurrency": 4}


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """A gate with sites ash, birch and cedar."""
    return Gate(tmp_path)


def fetch(gate: Gate, token: str) -> int:
    """Ask for jobs of ash."""
    return gate.ask("POST", "/edge_worker/v1/jobs/fetch/ash", token, FETCH)


def test_a_token_is_used_once(gate: Gate) -> None:
    token = gate.edge_token("ash", "jobs/fetch/ash")
    assert fetch(gate, token) == 200
    assert fetch(gate, token) == 403
    assert fetch(gate, f"Bearer {token}") == 403
    assert len(gate.behind.seen) == 1
    assert fetch(gate, gate.edge_token("ash", "jobs/fetch/ash")) == 200


@pytest.mark.parametrize("skew", [-120, -60, 60, 120])
def test_a_clock_two_minutes_off_is_no_hindrance(gate: Gate, skew: int) -> None:
    now = int(time.time()) + skew
    token = gate.edge_token("ash", "jobs/fetch/ash", iat=now, nbf=now, exp=now + 10)
    assert fetch(gate, token) == 200
    assert fetch(gate, token) == 403  # nor does it make a token good for longer than once


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": -200, "iat": -210},  # times are seconds from when the test runs
        {"iat": 200, "exp": 210},
        {"nbf": 200},
        {"exp": 86400},
        {"exp": None},
        {"iat": None},
        {"jti": None},
        {"jti": ""},
        {"jti": "x" * 65},
        {"jti": 7},
        {"aud": ["api", "consilium-exchange"]},
        {"iss": "gate"},
        {"iss": ["ash"]},
    ],
)
def test_a_token_out_of_its_time_or_form_is_refused(gate: Gate, changes: dict[str, Any]) -> None:
    now = int(time.time())
    times = {name: now + changes[name] for name in ("exp", "iat", "nbf") if changes.get(name) is not None}
    changes = changes | times
    if isinstance(changes.get("iss", ""), list) or isinstance(changes.get("jti", ""), int):
        # PyJWT does not sign these: they are written by hand.
        good = gate.edge_token("ash", "jobs/fetch/ash")
        token = _resigned(gate, good, changes)
    else:
        token = gate.edge_token("ash", "jobs/fetch/ash", **changes)
    assert fetch(gate, token) == 403
    assert gate.behind.seen == []


def _resigned(gate: Gate, token: str, changes: dict[str, Any]) -> str:
    claims = jwt.decode(token, options={"verify_signature": False}) | changes
    payload = json.dumps(claims).encode()
    key = gate.pem(gate.federation.keys["ash"])
    return jwt.PyJWS().encode(payload, key, "EdDSA", headers={"kid": "ash"})


@pytest.mark.parametrize("header", [{"kid": "birch"}, {"kid": "x"}, {"jku": "http://x"}, {"crit": ["x"]}])
def test_a_token_with_another_header_is_refused(gate: Gate, header: dict[str, Any]) -> None:
    assert fetch(gate, gate.edge_token("ash", "jobs/fetch/ash", header)) == 403
    assert gate.behind.seen == []


def test_the_pass_of_the_gate_opens_nothing_from_outside(gate: Gate) -> None:
    passed = gate.gate.passes.edge("ash", "jobs/fetch/ash")
    assert fetch(gate, passed) == 403
    assert gate.ask("GET", "/api/v2/dags", f"Bearer {passed}") == 403
    inner = gate.task_token(OWN_TASK, aud="consilium-gate")
    assert gate.ask("GET", "/execution/variables/x", f"Bearer {inner}") == 403
    assert gate.behind.seen == []


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff\xfe",
        b'{"queues": NaN}',
        b"[" * 20_000 + b"]" * 20_000,
        b"9" * 5_000,
        b'{"queues": ["ash"], "free_concurrency": 1e999}',
        b'{"queues": ["ash"], "free_concurrency": true}',
        b'{"queues": ["ash"]}',
        b"null",
        b'"ash"',
    ],
)
def test_a_body_that_is_not_what_the_worker_sends_is_refused(gate: Gate, body: bytes) -> None:
    headers = [(b"authorization", gate.edge_token("ash", "jobs/fetch/ash").encode())]
    assert gate.send("POST", "/edge_worker/v1/jobs/fetch/ash", headers, blocks=[body]) in (400, 403)
    assert gate.behind.seen == []


@pytest.mark.parametrize("declared", [True, False])
def test_a_large_body_is_refused_as_soon_as_it_is_known(gate: Gate, declared: bool) -> None:
    headers = [(b"authorization", gate.edge_token("ash", "worker/ash").encode())]
    if declared:
        headers.append((b"content-length", b"70000"))
    blocks = [b"x" * 40_000, b"x" * 40_000, None]
    assert gate.send("POST", "/edge_worker/v1/worker/ash", headers, blocks=blocks) == 413


def test_a_body_that_makes_no_progress_is_given_up(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(wire, "STALL_SECONDS", 0.05)
    token = (b"authorization", gate.edge_token("ash", "worker/ash").encode())
    assert gate.send("POST", "/edge_worker/v1/worker/ash", [token], blocks=[b"{", None]) == 408
    assert (b"connection", b"close") in gate.answers[0]["headers"]


def test_a_server_that_stood_still_itself_blames_nobody(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its timer is up before it has looked at the body, which has lain there all the time."""
    import asyncio

    monkeypatch.setattr(wire, "IDLE_SECONDS", 0.05)

    async def received() -> bytes:
        async def receive() -> dict[str, Any]:
            await asyncio.sleep(0.06)  # what lies in the socket is read after the timers
            return {"type": "http.request", "body": b"{}", "more_body": False}

        return await wire.read_body({"headers": []}, receive, 10)

    assert asyncio.run(received()) == b"{}"


def test_a_body_that_drips_is_given_up(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def a_second_later() -> float:
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr(wire.time, "monotonic", a_second_later)
    token = (b"authorization", gate.edge_token("ash", "worker/ash").encode())
    assert gate.send("POST", "/edge_worker/v1/worker/ash", [token], blocks=[b"x"] * 1000) == 408
    assert wire.BODY_SECONDS <= now[0] < 2 * wire.BODY_SECONDS


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([(b"x", b"y")] * 65, 431),
        ([(b"x", b"y" * 17_000)], 431),
        ([(b"authorization", b"a" * 5_000)], 431),
        ([(b"content-length", b"2"), (b"Content-Length", b"3")], 400),
        ([(b"content-encoding", b"gzip")], 400),
        ([(b"content-length", b"-1")], 413),
        ([(b"content-length", b"9" * 30)], 413),
    ],
)
def test_headers_of_machines_are_few_and_small(gate: Gate, headers: Any, status: int) -> None:
    token = (b"authorization", gate.edge_token("ash", "jobs/fetch/ash").encode())
    given = headers if headers[0][0] == b"authorization" else [token, *headers]
    assert gate.send("POST", "/edge_worker/v1/jobs/fetch/ash", given, FETCH) == status


def test_airflow_reads_the_gates_headers_not_the_senders(gate: Gate) -> None:
    token = (b"authorization", gate.edge_token("ash", "jobs/fetch/ash").encode())
    more = [(b"x-forwarded-for", b"10.0.0.1"), (b"cookie", b"_token=x"), (b"content-type", b"text/plain")]
    assert gate.send("POST", "/edge_worker/v1/jobs/fetch/ash", [token, *more], FETCH) == 200
    names = {name for name, _ in gate.behind.seen[0][0]["headers"]}
    assert names == {b"authorization", b"content-type", b"content-length"}
    assert gate.behind.header(b"content-type") == [b"application/json"]


@pytest.mark.parametrize(
    ("path", "query"), [("jobs/fetch/ash", "x=1"), ("worker/ash", "method=x"), ("health", "x")]
)
def test_the_worker_sends_no_query(gate: Gate, path: str, query: str) -> None:
    method = "GET" if path == "health" else "POST"
    assert gate.edge("ash", method, path, FETCH, query) == 403


@pytest.mark.parametrize("query", ["include_prior_dates=true", "map_index=-1", "offset=0", "x"])
def test_a_plan_is_read_from_its_own_run_without_options(gate: Gate, query: str) -> None:
    path = f"xcoms/tiny.round/{RUN}/open_round/plan"
    assert gate.task(ASH_TASK, "GET", path) == 200
    assert gate.task(ASH_TASK, "GET", path, query=query) == 403


def test_a_site_that_asks_too_often_is_told_when_to_come_again(tmp_path: Path) -> None:
    first = Gate(tmp_path)
    save_settings(first.home, Settings(requests_per_second=0.001, burst=3))
    limited = first.with_new_gate()
    asked = [fetch(limited, limited.edge_token("ash", "jobs/fetch/ash")) for _ in range(5)]
    assert asked == [200, 200, 200, 429, 429]
    assert (b"retry-after", b"1") in limited.answers[0]["headers"]
    # The stock supervisor comes again after 503 and gives up after 429.
    assert limited.task(ASH_TASK, "PUT", f"task-instances/{ASH_TASK}/heartbeat", {"pid": 1}) == 503
    body = {"queues": ["birch"], "free_concurrency": 4}
    assert limited.edge("birch", "POST", "jobs/fetch/birch", body) == 200  # another site is not touched
    assert limited.task(OWN_TASK, "GET", "variables/x") == 200


def test_a_flood_without_a_key_costs_no_log_and_locks_no_hospital_out(gate: Gate) -> None:
    statuses = {gate.ask("POST", "/edge_worker/v1/jobs/fetch/ash", "x") for _ in range(FAILURES_AT_ONCE + 50)}
    assert statuses == {403, 429}
    assert fetch(gate, gate.edge_token("ash", "jobs/fetch/ash")) == 200  # from the same address
    assert len(gate.audited()) <= FAILURES_AT_ONCE + 5


def test_a_flood_of_a_member_does_not_fill_the_servers_log(
    gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    gate.gate.audit._lines = Buckets(0.0, 20)
    token = gate.edge_token("ash", "jobs/fetch/ash")
    for _ in range(100):
        fetch(gate, token)
    said = [record for record in caplog.records if "of ash refused" in record.getMessage()]
    lines = gate.audited()
    assert len(said) == sum("status" in line for line in lines) == 20
    assert lines[-1]["reason"] == "left_out" and lines[-1]["left_out"] == 79


@pytest.mark.parametrize("pid", ["1e999", "-1e999", "NaN", '"\\ud800"', '"\\udc00\\ud800"', "1" + "0" * 400])
def test_numbers_and_letters_that_fail_behind_the_gate_are_refused(gate: Gate, pid: str) -> None:
    headers = [(b"authorization", f"Bearer {gate.task_token(ASH_TASK)}".encode())]
    body = f'{{"state": "running", "pid": {pid}}}'.encode()
    path = f"/execution/task-instances/{ASH_TASK}/run"
    assert gate.send("PATCH", path, headers, blocks=[body]) == 400
    assert gate.behind.seen == []


def test_letters_beyond_the_first_plane_pass_in_any_spelling() -> None:
    for body in ('"\\ud83e\\ude7a"', '"\U0001fa7a"'):
        assert wire.parsed(body.encode()) == "\U0001fa7a"


def test_every_refusal_reads_the_same(gate: Gate) -> None:
    bodies = set()
    for token in (None, "x", gate.edge_token("ash", "jobs/fetch/birch"), gate.task_token(ASH_TASK)):
        for path in ("/edge_worker/v1/jobs/fetch/birch", "/execution/variables/x", "/execution//x"):
            gate.ask("POST", path, token, FETCH)
            bodies.add(gate.answers[1]["body"])
    gate.task(ASH_TASK, "GET", f"xcoms/tiny.round/{RUN}/birch.train/return_value")
    bodies.add(gate.answers[1]["body"])
    assert bodies == {b'{"detail": "refused at the gate"}'}


def test_a_damaged_registry_lets_nobody_through(gate: Gate) -> None:
    gate.home.federation.write_text("{")
    assert gate.edge("ash", "POST", "worker/ash", state(["ash"])) == 503
    assert gate.task(ASH_TASK, "GET", f"xcoms/tiny.round/{RUN}/open_round/plan") == 503
    assert gate.ask("GET", "/api/v2/dags", f"Bearer {gate.edge_token('ash', 'x')}") == 503
    assert gate.behind.seen == []


def test_a_site_that_is_no_longer_active_is_refused_at_once(gate: Gate) -> None:
    assert gate.edge("ash", "POST", "jobs/fetch/ash", FETCH) == 200
    registry = json.loads(gate.home.federation.read_text())
    registry["members"] = [member for member in registry["members"] if member["site"] != "ash"]
    gate.home.federation.write_text(json.dumps(registry))
    assert gate.edge("ash", "POST", "jobs/fetch/ash", FETCH) == 403
    # Its tasks are not the coordinator's own either.
    assert gate.task(ASH_TASK, "GET", "variables/x") == 403
    assert gate.task(ASH_TASK, "PUT", f"task-instances/{ASH_TASK}/heartbeat", {"pid": 1}) == 403


def test_a_websocket_is_closed(gate: Gate) -> None:
    import asyncio

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(gate.gate({"type": "websocket", "path": "/execution/x"}, None, send))  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]
    assert gate.behind.seen == []


def test_a_bucket_fills_at_its_rate_and_not_beyond_its_size() -> None:
    now = [0.0]
    buckets = Buckets(rate=2.0, burst=3, clock=lambda: now[0])
    assert [buckets.take("a") for _ in range(4)] == [True, True, True, False]
    now[0] = 1.0
    assert [buckets.take("a") for _ in range(3)] == [True, True, False]
    now[0] = 1000.0
    assert sum(buckets.take("a") for _ in range(10)) == 3
    assert buckets.take("b")


def test_a_token_is_remembered_for_as_long_as_it_is_valid_and_no_longer() -> None:
    now = [0.0]
    replays = Replays(clock=lambda: now[0])
    assert replays.first("ash", "1", until=10.0)
    assert replays.first("birch", "1", until=10.0)
    now[0] = 10.0
    assert not replays.first("ash", "1", until=20.0)
    now[0] = 10.1
    assert replays.first("ash", "1", until=20.0)


def test_what_a_stranger_sends_to_the_sign_in_is_bounded_too(gate: Gate) -> None:
    most = [b"x" * (1 << 10)] * ((1 << 10) + 1)
    assert gate.send("POST", "/auth/token", [], blocks=most) == 413
    assert gate.send("POST", "/auth/token", [(b"content-length", b"1048577")], blocks=[b"{"]) == 413
    assert gate.behind.seen == []
    assert gate.send("POST", "/auth/token", [], blocks=[b'{"username": ', b'"operator"}']) == 200
    assert gate.behind.seen[-1][1] == {"username": "operator"}
