"""The gate binds every request to the key that signed it, and lets a site's task do nothing but its task."""

from __future__ import annotations

import asyncio
import json
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest

from contracts.signing import MAX_DOCUMENT_BYTES, SigningKey
from plugins.gate import SiteGate
from plugins.jobs import Task
from tasks.home import CoordinatorHome
from tests.factories import TinyFederation, tiny_study

RUN = "manual__2026-01-01T00:00:00+00:00"
ASH_TASK, ASH_LATER, OWN_TASK = (str(uuid.UUID(int=n)) for n in (1, 2, 3))
SYSTEM = {"airflow_version": "3.3.2", "edge_provider_version": "5.1.0", "concurrency": 4}


class KnownJobs:
    """Jobs without a database: two tasks of site ash and one of the coordinator."""

    def __init__(self) -> None:
        self.silenced: list[str] = []

    def task(self, instance: str) -> Task | None:
        """As `Jobs.task`."""
        return {
            ASH_TASK: Task("tiny.round", RUN, "ash.train", "ash"),
            ASH_LATER: Task("tiny.release", RUN, "ash.evaluate", "ash"),
            OWN_TASK: Task("tiny.round", RUN, "close_round", "coordinator-local"),
        }.get(instance)

    def owner(self, dag: str, task: str, run: str) -> str | None:
        """As `Jobs.owner`."""
        return task.split(".")[0] if "." in task else None

    def silence(self, worker: str) -> None:
        """As `Jobs.silence`."""
        self.silenced.append(worker)


class Behind:
    """What lies behind the gate: remembers what reached it."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.seen: list[tuple[dict[str, Any], Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer every request."""
        body = (await receive())["body"]
        self.seen.append((scope, json.loads(body) if body else None))
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


class Gate:
    """The gate of a tiny federation with keys that the test holds."""

    def __init__(self, root: Path) -> None:
        self.federation = TinyFederation(root, tiny_study())
        self.home: CoordinatorHome = self.federation.home
        self.api_key = SigningKey.generate("coordinator")
        self.api_key.save(self.home.api_key)
        self.jobs, self.behind = KnownJobs(), Behind()
        self.gate = SiteGate(self.behind, self.home, self.jobs)  # type: ignore[arg-type]

    def edge_token(self, site: str, path: str, **changes: Any) -> str:
        """A token as the stock worker of `site` makes it for a path of the edge API."""
        now = int(time.time())
        claims = {"iss": site, "aud": "api", "iat": now, "exp": now + 10, "method": path} | changes
        return jwt.encode(claims, self._pem(self.federation.keys[site]), "EdDSA", headers={"kid": site})

    def task_token(self, instance: str) -> str:
        """A token as the coordinator issues it with a job."""
        now = int(time.time())
        audience = "urn:airflow.apache.org:task"
        claims = {"iss": "coordinator", "aud": audience, "iat": now, "exp": now + 600, "sub": instance}
        return jwt.encode(claims, self._pem(self.api_key), "EdDSA", headers={"kid": "thumbprint"})

    def _pem(self, key: SigningKey) -> bytes:
        path = self.home.root / f".pem-{uuid.uuid4().hex}"
        key.save(path)
        return path.read_bytes()

    def ask(self, method: str, path: str, token: str | None, body: Any = None, query: str = "") -> int:
        """Send a request to the gate and return the status."""
        headers = [] if token is None else [(b"authorization", token.encode())]
        return self.send(method, path, headers, body, query)

    def send(
        self, method: str, path: str, headers: list[tuple[bytes, bytes]], body: Any = None, query: str = ""
    ) -> int:
        """Send a request with these headers and return the status."""
        data = b"" if body is None else json.dumps(body).encode()
        statuses = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": data, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        scope = {"type": "http", "method": method, "path": path, "headers": headers}
        asyncio.run(self.gate(scope | {"query_string": query.encode()}, receive, send))
        return int(statuses[0])

    def edge(self, site: str, method: str, path: str, body: Any = None) -> int:
        """Send a well-signed request of a site's worker."""
        return self.ask(method, f"/edge_worker/v1/{path}", self.edge_token(site, path), body)

    def task(self, instance: str, method: str, path: str, body: Any = None, query: str = "") -> int:
        """Send a request with a task's token."""
        return self.ask(method, f"/execution/{path}", f"Bearer {self.task_token(instance)}", body, query)


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """A gate with sites ash, birch and cedar."""
    return Gate(tmp_path)


def state(queues: list[str], **more: Any) -> dict[str, Any]:
    """Body of a worker's registration or heartbeat."""
    return {"state": "idle", "jobs_active": 0, "queues": queues, "sysinfo": SYSTEM} | more


def test_a_worker_speaks_for_itself_and_its_presence_is_noted(gate: Gate) -> None:
    assert gate.edge("ash", "POST", "worker/ash", state(["ash"])) == 200
    assert gate.edge("ash", "PATCH", "worker/ash", state(["ash"])) == 200
    assert gate.edge("ash", "POST", "jobs/fetch/ash", {"queues": ["ash"], "free_concurrency": 4}) == 200
    assert gate.edge("ash", "PATCH", f"jobs/state/tiny.round/ash.train/{RUN}/1/-1/running") == 200
    assert (gate.home.presence / "ash").exists()
    assert not (gate.home.presence / "birch").exists()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "worker/birch", state(["birch"])),
        ("POST", "worker/ash", state(["ash", "birch"])),
        ("POST", "worker/ash", state(["birch"])),
        ("POST", "worker/ash", {"state": "idle", "sysinfo": SYSTEM}),
        ("POST", "worker/ash", state(["ash"], team_name="others")),
        ("POST", "jobs/fetch/ash", {"queues": ["birch"], "free_concurrency": 4}),
        ("POST", "jobs/fetch/ash", {"queues": None, "free_concurrency": 4}),
        ("POST", "jobs/fetch/birch", {"queues": ["birch"], "free_concurrency": 4}),
        ("PATCH", f"jobs/state/tiny.round/birch.train/{RUN}/1/-1/success", None),
        ("PATCH", f"jobs/state/tiny.round/ash.train/{RUN}/1/-1/queued", None),
        ("PATCH", f"jobs/state/tiny.round/close_round/{RUN}/1/-1/failed", None),
        ("PATCH", "worker/queues/ash", {"new_queues": ["birch"], "remove_queues": []}),
        ("DELETE", "worker/ash", None),
        ("GET", f"logs/logfile_path/tiny.round/ash.train/{RUN}/1/-1", None),
    ],
)
def test_a_worker_cannot_act_beyond_its_own(gate: Gate, method: str, path: str, body: Any) -> None:
    assert gate.edge("ash", method, path, body) == 403
    assert gate.behind.seen == []
    assert not (gate.home.presence / "ash").exists()


@pytest.mark.parametrize(
    "forge",
    [
        lambda gate, path: None,
        lambda gate, path: "not a token",
        lambda gate, path: gate.edge_token("ash", "worker/birch"),
        lambda gate, path: gate.edge_token("ash", path, iss="birch"),
        lambda gate, path: gate.edge_token("ash", path, aud="apache-airflow"),
        lambda gate, path: gate.edge_token("ash", path, exp=int(time.time()) - 1000),
        lambda gate, path: jwt.encode({"iss": "ash", "method": path}, "secret" * 8, headers={"kid": "ash"}),
        lambda gate, path: jwt.encode(
            jwt.decode(gate.edge_token("ash", path), options={"verify_signature": False}),
            gate._pem(gate.federation.keys["birch"]),
            "EdDSA",
            headers={"kid": "ash"},
        ),
        lambda gate, path: gate.task_token(ASH_TASK),
    ],
)
def test_only_the_sites_own_key_opens_the_edge_api(gate: Gate, forge: Callable[[Gate, str], Any]) -> None:
    status = gate.ask("POST", "/edge_worker/v1/worker/ash", forge(gate, "worker/ash"), state(["ash"]))
    assert status in (401, 403)
    assert gate.behind.seen == []


def test_the_first_authorisation_counts_and_no_other_passes(gate: Gate) -> None:
    good = (b"authorization", gate.edge_token("ash", "worker/ash").encode())
    bad = (b"Authorization", gate.edge_token("birch", "worker/birch").encode())
    assert gate.send("POST", "/edge_worker/v1/worker/ash", [good, bad], state(["ash"])) == 200
    passed = [value for name, value in gate.behind.seen[0][0]["headers"] if name.lower() == b"authorization"]
    assert passed == [good[1]]
    assert gate.send("POST", "/edge_worker/v1/worker/ash", [bad, good], state(["ash"])) == 403


def test_free_text_of_a_hospital_does_not_pass(gate: Gate) -> None:
    body = state(["ash"], maintenance_comments="by dr. house")
    body["sysinfo"] = {**SYSTEM, "disk": "/data/records", "python_version": "3" * 900}
    assert gate.edge("ash", "PATCH", "worker/ash", body) == 200
    passed = gate.behind.seen[0][1]
    assert passed["maintenance_comments"] is None
    assert set(passed["sysinfo"]) == {*SYSTEM, "python_version"}
    assert len(passed["sysinfo"]["python_version"]) == 200


def test_a_pushed_log_is_answered_and_thrown_away(gate: Gate) -> None:
    path = f"logs/push/tiny.round/ash.train/{RUN}/1/-1"
    assert gate.edge("ash", "POST", path, {"log_chunk_data": "patient 17", "log_chunk_time": "x"}) == 200
    assert gate.behind.seen == []


def test_a_fresh_worker_takes_over_from_a_silent_one_only(gate: Gate) -> None:
    path = gate.home.presence / "ash"
    path.parent.mkdir(parents=True)
    path.touch()
    gate.behind.status = 409
    assert gate.edge("ash", "POST", "worker/ash", state(["ash"])) == 409
    assert gate.jobs.silenced == []
    os.utime(path, (time.time() - 60, time.time() - 60))
    gate.edge("ash", "POST", "worker/ash", state(["ash"]))
    assert gate.jobs.silenced == ["ash"]
    assert time.time() - path.stat().st_mtime > 50  # an attempt that was refused is no sign of life


def test_a_sites_task_lives_reads_its_plan_and_answers(gate: Gate) -> None:
    me = f"task-instances/{ASH_TASK}"
    start = {"hostname": "pc-17", "unixname": "dr-house", "pid": 7, "start_date": "x", "state": "running"}
    assert gate.task(ASH_TASK, "PATCH", f"{me}/run", start) == 200
    assert gate.behind.seen[-1][1] == {**start, "hostname": "ash", "unixname": "ash"}
    assert gate.task(ASH_TASK, "PUT", f"{me}/heartbeat", {"hostname": "ash", "pid": 7}) == 200
    assert gate.task(ASH_TASK, "GET", f"xcoms/tiny.round/{RUN}/open_round/plan", query="map_index=-1") == 200
    assert gate.task(ASH_TASK, "POST", f"xcoms/tiny.round/{RUN}/ash.train/return_value", "{}") == 200
    assert gate.task(ASH_TASK, "POST", f"xcoms/tiny.round/{RUN}/ash.train/refusal", "{}") == 200
    end = {"state": "success", "end_date": "x", "task_outlets": [], "outlet_events": []}
    assert gate.task(ASH_TASK, "PATCH", f"{me}/state", {**end, "rendered_map_index": "patient 17"}) == 200
    assert gate.behind.seen[-1][1] == end


def test_rendered_arguments_are_thrown_away(gate: Gate) -> None:
    assert gate.task(ASH_TASK, "PUT", f"task-instances/{ASH_TASK}/rtif", {"op_args": "patient 17"}) == 201
    assert gate.behind.seen == []


OUTLET = {"state": "success", "end_date": "x", "task_outlets": [{"name": "a", "uri": "a", "type": "Asset"}]}
EVENT = {
    "state": "success",
    "end_date": "x",
    "outlet_events": [{"dest_asset_key": {"name": "a", "uri": "a"}}],
}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "variables/secret", None),
        ("PUT", "variables/secret", {"value": "1"}),
        ("GET", "connections/database", None),
        ("POST", "dag-runs/birch.release/now", {}),
        ("POST", f"dag-runs/tiny.round/{RUN}/clear", {}),
        ("PATCH", f"task-instances/{OWN_TASK}/state", {"state": "success", "end_date": "x"}),
        ("PATCH", f"task-instances/{ASH_LATER}/run", {"state": "running"}),
        ("PATCH", f"task-instances/{ASH_TASK}/state", OUTLET),
        ("PATCH", f"task-instances/{ASH_TASK}/state", EVENT),
        ("PATCH", f"task-instances/{ASH_TASK}/state", {"state": "deferred"}),
        ("PATCH", f"task-instances/{ASH_TASK}/state", {"state": "skipped", "end_date": "x"}),
        ("PATCH", f"task-instances/{ASH_TASK}/skip-downstream", {"tasks": ["close_round"]}),
        ("GET", f"xcoms/tiny.round/{RUN}/birch.train/return_value", None),
        ("GET", f"xcoms/tiny.round/other/{'open_round'}/plan", None),
        ("GET", f"xcoms/other.round/{RUN}/open_round/plan", None),
        ("GET", f"xcoms/tiny.round/{RUN}/open_round/skipmixin_key", None),
        ("POST", f"xcoms/tiny.round/{RUN}/open_round/plan", "{}"),
        ("POST", f"xcoms/tiny.round/{RUN}/birch.train/return_value", "{}"),
        ("POST", f"xcoms/tiny.round/{RUN}/ash.train/note", "patient 17"),
        ("POST", f"xcoms/tiny.round/{RUN}/ash.train/return_value", {"a": 1}),
        ("POST", f"xcoms/tiny.round/{RUN}/ash.train/return_value", "x" * (MAX_DOCUMENT_BYTES + 1)),
        ("POST", f"hitlDetails/{ASH_TASK}", {}),
        ("PUT", "store/asset/by-name/value", {}),
    ],
)
def test_a_sites_task_can_do_nothing_else(gate: Gate, method: str, path: str, body: Any) -> None:
    assert gate.task(ASH_TASK, method, path, body) == 403
    assert gate.behind.seen == []


def test_the_coordinators_own_tasks_pass_and_unknown_ones_do_not(gate: Gate) -> None:
    assert gate.task(OWN_TASK, "GET", "variables/anything") == 200
    assert gate.task(str(uuid.UUID(int=99)), "GET", "variables/anything") == 404
    assert gate.ask("GET", "/execution/variables/anything", None) == 401


def test_a_site_is_no_user_of_the_interface(gate: Gate) -> None:
    token = gate.edge_token("ash", "worker/ash", aud="apache-airflow", sub="operator", role="admin")
    assert gate.ask("GET", "/api/v2/dags", f"Bearer {token}") == 403
    assert gate.ask("GET", "/api/v2/dags", None) == 200  # Airflow's own check comes behind


@pytest.mark.parametrize(
    ("method", "key"), [("POST", ""), ("PATCH", "/return_value"), ("DELETE", "/return_value"), ("PUT", "/x")]
)
def test_no_person_writes_the_answer_of_another_to_a_sign_off(gate: Gate, method: str, key: str) -> None:
    path = f"/api/v2/dags/tiny.release/dagRuns/{RUN}/taskInstances/approve_quality/xcomEntries{key}"
    forged = {"key": "return_value", "value": {"chosen_options": ["Approve"]}}
    assert gate.ask(method, path, None, forged) == 403
    assert gate.behind.seen == []
    assert gate.ask("GET", path, None) == 200


def test_a_hospital_enrolled_later_is_known_without_a_restart(gate: Gate) -> None:
    from tasks.federation import enrol

    path = "worker/willow"
    key = SigningKey.generate("willow")
    gate.federation.keys["willow"] = key
    assert gate.edge("willow", "POST", path, state(["willow"])) == 403
    card = {"site": "willow", "sign_key": key.public, "edge_key": key.public, "declared_size": 100}
    enrol(gate.home, card)
    assert gate.edge("willow", "POST", path, state(["willow"])) == 200
