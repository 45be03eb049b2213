"""A hospital that turned attacks a running federation: nothing succeeds, and honest rounds go on meanwhile.

The same attacks against the same database without the gate show that they are real.
"""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from consilium.airflow_home import base_url, coordinator_environment
from consilium.platform import Platform
from consilium.processes import wait_until
from consilium.rest import AirflowRefused
from tasks.federation import load_federation
from tasks.gate_key import TASK_AUDIENCE
from tasks.store import load_record
from tests.live.attacks import ATTACKS, Attack
from tests.live.conftest import free_port
from tests.live.driver import head, intake, start, wait, wait_finished
from tests.live.rogue import EXECUTION, ROGUE, VICTIM, Reply, Rogue

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parents[2]
STUDY = "heart-besieged"
START_SECONDS = 120.0
BEHIND = ("airflow", "exchange")  # who refuses what the gate lets through


@pytest.fixture(scope="module")
def rogue(platform: Platform) -> Rogue:
    """One of the hospitals of a study whose rounds go on; the coordinator has a secret."""
    airflow = platform.airflow
    secret = {"connection_id": "secret", "conn_type": "http", "password": "secret"}
    airflow._call("POST", "/variables", json={"key": "secret", "value": "secret"})
    airflow._call("POST", "/connections", json=secret)
    intake(platform, STUDY)
    run = start(platform, STUDY)
    dag = f"{STUDY}.round"
    wait("a round", lambda: airflow.run(dag, run).state == "success", 120)
    rows = airflow._call("GET", f"/dags/{dag}/dagRuns/{run}/taskInstances", params={"limit": 100})
    instances = {row["task_id"]: row["id"] for row in rows["task_instances"]}
    plan = load_record(platform.coordinator, STUDY, "1")["plan"]
    update = (platform.coordinator.study(STUDY) / "received" / plan / VICTIM).read_text()
    since = datetime.now(UTC).isoformat(timespec="milliseconds")
    return Rogue(platform, platform.url, dag, run, instances, update, since)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_no_attack_succeeds(rogue: Rogue, attack: Attack) -> None:
    reply = attack.send(rogue)
    assert reply.status >= 400, attack.means
    assert reply.by_the_gate or attack.elsewhere, (reply, attack.means)


def test_no_person_writes_what_a_hospital_answered(rogue: Rogue) -> None:
    path = f"/dags/{rogue.dag}/dagRuns/{rogue.run}/taskInstances/{VICTIM}.train/xcomEntries"
    with pytest.raises(AirflowRefused, match="403"):
        rogue.platform.airflow._call("POST", path, json={"key": "note", "value": "x"})


def test_pushed_logs_and_arguments_are_thrown_away(rogue: Rogue) -> None:
    chunk = {"log_chunk_time": "2026-01-01T00:00:00Z", "log_chunk_data": "patient 17"}
    for site in (ROGUE, VICTIM):
        path = f"logs/push/{rogue.dag}/{site}.train/{rogue.run}/1/-1"
        assert rogue.edge("POST", path, chunk).status == 200
    assert rogue.task("PUT", rogue.instance("rtif"), {"op_args": "patient 17"}).status == 201
    path = rogue.platform.coordinator.airflow / "airflow.db"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        assert database.execute("select count(*) from edge_logs").fetchone() == (0,)
        rendered = "select count(*) from rendered_task_instance_fields where task_id = ?"
        assert database.execute(rendered, (f"{ROGUE}.train",)).fetchone() == (0,)


def test_the_honest_study_goes_on_and_the_audit_log_names_the_attempts(rogue: Rogue) -> None:
    platform = rogue.platform
    wait_finished(platform, STUDY)
    assert head(platform, STUDY).round == 20
    for number in range(1, 21):
        record = load_record(platform.coordinator, STUDY, str(number))
        assert record["admitted"] == sorted(platform.sites)
    files = platform.coordinator.audit.glob("gate-*.jsonl")
    lines = [json.loads(line) for path in sorted(files) for line in path.read_text().splitlines()]
    lines = [line for line in lines if line["time"] >= rogue.since]  # other tests kill honest workers
    refused = [line for line in lines if line["status"] >= 400 and line["reason"] not in BEHIND]
    assert {line["site"] for line in refused} <= {ROGUE, "unknown"}
    assert len(refused) >= len(ATTACKS) - 5
    assert {
        *("other_worker", "other_queue", "other_job", "other_task", "other_xcom", "job_state", "task_state"),
        *("no_token", "unknown_key", "token_invalid", "token_form", "token_expired", "token_early"),
        *("token_lifetime", "replayed", "other_request", "path_form", "query", "unknown_endpoint", "outlet"),
        *("body_size", "body_slow", "body_form", "body_coding", "header_size", "header_twice", "task_over"),
        *("site_as_user", "user_xcom"),
    } <= {line["reason"] for line in refused}
    accepted = {(line["site"], line["path"]) for line in lines if line["reason"] == "accepted"}
    assert {
        (site, f"{EXECUTION}xcoms/{{dag}}/{{run}}/{{task}}/{{key}}") for site in platform.sites
    } <= accepted


Edit = Callable[[configparser.RawConfigParser], None]


@contextlib.contextmanager
def api_server(
    platform: Platform, folder: Path, edit: Edit = lambda cfg: None, **environment: str | None
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A second API server on the platform's database, with changed settings, at an address of its own."""
    parser = configparser.RawConfigParser()
    parser.read(platform.coordinator.airflow / "airflow.cfg")
    port = free_port()
    parser.set("api", "port", str(port))
    parser.set("api", "base_url", base_url(port))
    edit(parser)
    folder.mkdir()
    with open(folder / "airflow.cfg", "w") as file:
        parser.write(file)
    given = coordinator_environment(platform.coordinator) | {"AIRFLOW_HOME": str(folder)} | environment
    kept = {name: value for name, value in given.items() if value is not None}
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "airflow", "api-server"],
            env=kept,
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process, base_url(port)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(url: str) -> bool:
    """Whether a server answers at all."""
    try:
        return httpx.get(f"{url}/api/v2/monitor/health", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def without_gate(platform: Platform) -> Edit:
    """Stock settings with the hospitals' keys, as they were before there was a gate."""
    jwks = platform.home / "sites.jwks.json"
    keys = [
        {
            "kty": "OKP",
            "crv": "Ed25519",
            "alg": "EdDSA",
            "use": "sig",
            "kid": member.site,
            "x": member.edge_key,
        }
        for member in load_federation(platform.coordinator).members
    ]
    jwks.write_text(json.dumps({"keys": keys}))

    def edit(parser: configparser.RawConfigParser) -> None:
        parser.set("edge", "trusted_jwks_url", str(jwks))
        parser.set("edge", "jwt_verifier", "airflow.providers.edge3.worker_api.auth._default_jwt_verifier")
        parser.remove_option("edge", "jwt_issuer")
        parser.remove_section("execution_api")

    return edit


def test_without_the_gate_attacks_succeed(rogue: Rogue, tmp_path: Path) -> None:
    platform = rogue.platform
    server = api_server(platform, tmp_path / "stock", without_gate(platform), CONSILIUM_HOME=None)
    with server as (_, url):
        wait("the stock server", lambda: answers(url), START_SECONDS)
        open_to_all = Rogue(platform, url, rogue.dag, rogue.run, rogue.instances, rogue.update)
        replies: dict[str, Reply] = {
            attack.name: attack.send(open_to_all) for attack in ATTACKS if attack.stock
        }
    failed = {name: reply for name, reply in replies.items() if reply.status >= 300}
    assert not failed
    assert len(replies) >= 30


def test_without_the_plugin_airflow_itself_refuses_every_hospital_and_task(
    rogue: Rogue, tmp_path: Path
) -> None:
    """The same settings, the gate not loaded: what an honest hospital may do is refused too."""
    platform = rogue.platform
    with api_server(platform, tmp_path / "unplugged", CONSILIUM_HOME=None) as (_, url):
        wait("the server", lambda: answers(url), START_SECONDS)
        unplugged = Rogue(platform, url, rogue.dag, rogue.run, rogue.instances, rogue.update)
        replies = {attack.name: attack.send(unplugged) for attack in ATTACKS if attack.stock}
        honest = [unplugged.fetch(), unplugged.task("GET", rogue.xcom("open_round", "plan"))]
    described = replies.pop("the API's description")
    assert described.status == 200  # public text of Airflow's own
    assert {reply.status for reply in replies.values()} <= {403, 404, 422}
    assert not any(reply.by_the_gate for reply in replies.values())
    assert [reply.status for reply in honest] == [403, 403]


def broken(folder: Path, lines: str) -> str:
    """A copy of the plugin whose gate ends with these lines; return what goes before PYTHONPATH."""
    shutil.copytree(ROOT / "plugins", folder / "plugins", ignore=shutil.ignore_patterns("__pycache__"))
    with open(folder / "plugins" / "gate.py", "a") as file:
        file.write(f"\n\n{lines}\n")
    return os.pathsep.join([str(folder), str(ROOT)])


def test_a_gate_that_fails_at_import_ends_the_server(platform: Platform, tmp_path: Path) -> None:
    path = broken(tmp_path / "shim", "raise RuntimeError('broken')")
    with api_server(platform, tmp_path / "home", PYTHONPATH=path) as (process, url):
        assert wait_until(lambda: process.poll() is not None, START_SECONDS)
        assert process.returncode != 0
        assert not answers(url)
    assert "no gate, no server" in (tmp_path / "home" / "log").read_text()


OPEN = """
async def _open(self, scope, receive, send):
    living = scope["type"] == "lifespan"
    await self.app(scope, receive, self._living(send) if living else send)


SiteGate.__call__ = _open
"""


def test_a_gate_that_lets_through_is_found_by_its_own_probe(platform: Platform, tmp_path: Path) -> None:
    path = broken(tmp_path / "shim", OPEN)
    with api_server(platform, tmp_path / "home", PYTHONPATH=path) as (process, url):
        assert wait_until(lambda: process.poll() is not None, START_SECONDS)
        assert not answers(url)
    assert "and not by the gate" in (tmp_path / "home" / "log").read_text()


def test_another_setting_ends_the_server(platform: Platform, tmp_path: Path) -> None:
    open_audience = {"AIRFLOW__EXECUTION_API__JWT_AUDIENCE": TASK_AUDIENCE}
    with api_server(platform, tmp_path / "home", **open_audience) as (process, url):
        assert wait_until(lambda: process.poll() is not None, START_SECONDS)
        assert not answers(url)
    assert "E816" in (tmp_path / "home" / "log").read_text()
