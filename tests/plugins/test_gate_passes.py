"""Airflow's own verifiers take what the gate has signed, and nothing that did not pass it."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jwt
import pytest

from plugins.passes import may_work
from tasks.gate_key import GATE_AUDIENCE, TASK_AUDIENCE, gate_key
from tests.plugins.gate_harness import ASH_TASK, OWN_TASK, Gate

FETCH = {"queues": ["ash"], "free_concurrency": 4}
PATH = "jobs/fetch/ash"


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """A gate with sites ash, birch and cedar."""
    return Gate(tmp_path)


@pytest.fixture
def edge_api(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], bool]:
    """Airflow's edge API with the coordinator's settings: whether it takes a token for a path."""
    from consilium.airflow_home import coordinator_settings

    for name, value in coordinator_settings(gate.home, 1, 60, 3)["edge"].items():
        monkeypatch.setenv(f"AIRFLOW__EDGE__{name.upper()}", str(value))
    from airflow.providers.edge3.worker_api import auth

    cached: Any = (auth._oidc_enabled, auth._oidc_authenticator, auth.jwt_validator)
    for function in cached:
        function.cache_clear()

    def takes(path: str, token: str) -> bool:
        try:
            asyncio.run(auth.jwt_token_authorization(path, token))
        except auth.HTTPException:
            return False
        return True

    return takes


@pytest.fixture
def execution_api(gate: Gate) -> Callable[[str], dict[str, Any] | None]:
    """Airflow's execution API with the coordinator's settings: the claims of a token that it takes."""
    from airflow.api_fastapi.auth.tokens import JWKS, JWTValidator
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key: Any = load_pem_private_key(gate.home.api_key.read_bytes(), None)
    validator = JWTValidator(
        jwks=JWKS.from_private_key((key, "thumbprint")),
        issuer="coordinator",
        audience=[GATE_AUDIENCE],
        algorithm="EdDSA",
        leeway=10,
        required_claims=frozenset({"aud", "exp", "iat", "iss"}),
    )

    def takes(token: str) -> dict[str, Any] | None:
        try:
            return asyncio.run(validator.avalidated_claims(token.removeprefix("Bearer ")))
        except jwt.PyJWTError:
            return None

    return takes


def test_the_edge_api_takes_what_passed_the_gate_and_not_what_the_hospital_signed(
    gate: Gate, edge_api: Callable[[str, str], bool]
) -> None:
    token = gate.edge_token("ash", PATH)
    assert not edge_api(PATH, token)
    assert gate.ask("POST", f"/edge_worker/v1/{PATH}", token, FETCH) == 200
    (passed,) = gate.behind.header(b"authorization")
    assert edge_api(PATH, passed.decode())
    assert not edge_api("jobs/fetch/birch", passed.decode())


def test_a_hospital_cannot_write_a_pass(gate: Gate, edge_api: Callable[[str, str], bool]) -> None:
    claims = {"iss": "gate", "site": "ash"}
    assert not edge_api(PATH, gate.edge_token("ash", PATH, {"kid": "gate"}, **claims))
    assert not edge_api(PATH, gate.edge_token("ash", PATH, **claims))


def test_a_pass_names_site_and_request() -> None:
    context = SimpleNamespace(method=PATH)
    good = {"iss": "gate", "site": "ash", "method": PATH}
    assert may_work(good, context) == {"authorized": True}
    for changes in ({"iss": "ash"}, {"site": None}, {"method": "worker/ash"}):
        assert may_work(good | changes, context) == {"authorized": False}


@pytest.mark.parametrize("instance", [ASH_TASK, OWN_TASK])
def test_the_execution_api_takes_a_task_that_passed_the_gate_and_not_its_own_token(
    gate: Gate, execution_api: Callable[[str], dict[str, Any] | None], instance: str
) -> None:
    token = gate.task_token(instance, scope="workload", extra=7)
    assert execution_api(token) is None
    start = {"state": "running", "pid": 1}
    assert gate.ask("PATCH", f"/execution/task-instances/{instance}/run", f"Bearer {token}", start) == 200
    (passed,) = gate.behind.header(b"authorization")
    claims = execution_api(passed.decode())
    assert claims is not None
    assert (claims["sub"], claims["scope"], claims["extra"]) == (instance, "workload", 7)


def test_a_new_token_comes_back_as_one_that_needs_the_gate(
    gate: Gate, execution_api: Callable[[str], dict[str, Any] | None]
) -> None:
    from airflow.api_fastapi.auth.tokens import JWTGenerator

    generator = JWTGenerator(
        private_key=gate.home.api_key.read_bytes(),
        valid_for=60,
        audience=GATE_AUDIENCE,
        issuer="coordinator",
        kid="thumbprint",
    )
    fresh = generator.generate({"sub": ASH_TASK, "scope": "execution"})
    assert execution_api(fresh) is not None
    gate.behind.headers = [(b"refreshed-api-token", fresh.encode()), (b"x-other", b"1")]
    beat = f"task-instances/{ASH_TASK}/heartbeat"
    assert gate.task(ASH_TASK, "PUT", beat, {"pid": 1}) == 200
    headers = dict(gate.answers[0]["headers"])
    held = headers[b"refreshed-api-token"].decode()
    assert headers[b"x-other"] == b"1"
    assert execution_api(held) is None
    assert jwt.decode(held, options={"verify_signature": False})["aud"] == TASK_AUDIENCE
    gate.behind.headers = []
    assert gate.ask("PUT", f"/execution/{beat}", f"Bearer {held}", {"pid": 1}) == 200


def test_the_key_is_drawn_once_and_only_its_public_half_is_published(gate: Gate) -> None:
    first = gate_key(gate.home)
    assert gate_key(gate.home).public == first.public
    assert stat.S_IMODE(gate.home.gate_key.stat().st_mode) == 0o600
    (published,) = json.loads(gate.home.gate_jwks.read_text())["keys"]
    assert (published["kid"], published["x"]) == ("gate", first.public)
    assert "d" not in published
