"""The gate stands before the real API server, and behind it Airflow holds what the settings promise."""

from __future__ import annotations

import sqlite3
import time
import uuid

import httpx
import jwt
import pytest

from consilium.platform import Platform
from tests.live.driver import intake

pytestmark = pytest.mark.live


def edge_token(platform: Platform, site: str, method: str, audience: str = "api") -> str:
    """A token as the worker of `site` signs it."""
    now = int(time.time())
    claims = {"iss": site, "aud": audience, "iat": now, "nbf": now, "exp": now + 10, "method": method}
    claims |= {"jti": uuid.uuid4().hex, "sub": "operator", "role": "admin"}
    return jwt.encode(claims, platform.site(site).edge_key.read_bytes(), "EdDSA", headers={"kid": site})


def ask(platform: Platform, method: str, path: str, token: str | None, body: object = None) -> httpx.Response:
    """Send a request to the running API server."""
    headers = {} if token is None else {"Authorization": token}
    with httpx.Client(base_url=platform.url, trust_env=False) as client:
        return client.request(method, path, headers=headers, json=body)


def test_the_gate_is_mounted(platform: Platform) -> None:
    for path in ("/edge_worker/v1/jobs/fetch/va", "/execution/variables/x"):
        answer = ask(platform, "POST", path, None)
        assert answer.status_code == 401
        assert answer.json() == {"detail": "refused at the gate"}


def test_a_hospital_can_fetch_its_own_jobs_only(platform: Platform) -> None:
    def fetch(worker: str, queue: str) -> int:
        token = edge_token(platform, "va", f"jobs/fetch/{worker}")
        # No free slot: the real worker keeps its jobs.
        body = {"queues": [queue], "free_concurrency": 0, "supports_task_instance_uuid": True}
        return ask(platform, "POST", f"/edge_worker/v1/jobs/fetch/{worker}", token, body).status_code

    assert fetch("va", "va") == 200
    assert fetch("cleveland", "cleveland") == 403
    assert fetch("va", "cleveland") == 403


@pytest.mark.parametrize("audience", ["api", "apache-airflow", "urn:airflow.apache.org:task"])
def test_a_hospitals_key_opens_nothing_else(platform: Platform, audience: str) -> None:
    for path in ("/api/v2/dags", "/api/v2/variables", "/execution/variables/x", "/edge_worker/ui/worker"):
        token = edge_token(platform, "va", path, audience)
        for header in (token, f"Bearer {token}"):
            assert ask(platform, "GET", path, header).status_code in (401, 403)


def test_airflow_keeps_no_log_no_argument_and_no_host_of_a_hospital(platform: Platform) -> None:
    intake(platform, "heart-queued")
    path = platform.coordinator.airflow / "airflow.db"
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)

    def count(query: str) -> int:
        return int(database.execute(query).fetchone()[0])

    sites = ", ".join(f"'{site}'" for site in platform.sites)
    assert count("select count(*) from edge_logs") == 0
    assert count("select count(*) from rendered_task_instance_fields where task_id like '%.%'") == 0
    ran = f"select count(*) from task_instance where queue in ({sites}) and pid is not null"
    assert count(ran) >= len(platform.sites)
    assert count(f"{ran} and (hostname != queue or unixname != queue)") == 0
    names = {row[0] for row in database.execute("select worker_name from edge_worker")}
    assert names == set(platform.sites)
    database.close()
