"""What passed the gate carries the gate's own token, and Airflow takes no other.

A site's token is verified at the gate alone; behind it Airflow's edge API trusts the gate's key, and its
execution API an audience that only the gate writes. So a request that did not pass the gate, for whatever
reason, is refused by stock Airflow itself, and an enrolled, rotated or revoked site needs no restart.
"""

from __future__ import annotations

import time
import uuid
from typing import Any, Protocol

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from plugins.identity import COORDINATOR, EDGE_AUDIENCE, Claims
from tasks.gate_key import GATE, GATE_AUDIENCE, TASK_AUDIENCE, gate_key
from tasks.home import CoordinatorHome

PASS_SECONDS = 30  # lifetime of a pass: it is used at once, in the same process


class _Context(Protocol):
    method: str


def may_work(claims: Claims, context: _Context) -> dict[str, bool]:
    """`[edge] jwt_verifier`: the gate let through this very request, in the name of a site."""
    same = claims.get("iss") == GATE and claims.get("method") == context.method
    return {"authorized": same and isinstance(claims.get("site"), str)}


class Passes:
    """Signs anew what the gate lets through, and turns Airflow's new tokens back into ones for tasks."""

    def __init__(self, home: CoordinatorHome) -> None:
        gate_key(home)
        self._gate = _private(home.gate_key.read_bytes())
        self._api = _private(home.api_key.read_bytes())

    def edge(self, site: str, path: str) -> str:
        """The token of a request of `site` to a path of the edge API (after its prefix)."""
        now = int(time.time())
        claims = {
            "iss": GATE,
            "aud": EDGE_AUDIENCE,
            "iat": now,
            "exp": now + PASS_SECONDS,
            "jti": uuid.uuid4().hex,
            "site": site,
            "method": path,
        }
        return jwt.encode(claims, self._gate, "EdDSA", headers={"kid": GATE})

    def task(self, token: str, claims: Claims) -> str:
        """The token of a task, verified already, for the execution API."""
        return f"Bearer {self._again(token, claims, GATE_AUDIENCE)}"

    def returned(self, header: bytes) -> bytes:
        """A token that the execution API gives to a task, as the task may hold it."""
        token = header.decode()
        claims: dict[str, Any] = jwt.decode(
            token, self._api.public_key(), ["EdDSA"], audience=GATE_AUDIENCE, issuer=COORDINATOR
        )
        return self._again(token, claims, TASK_AUDIENCE).encode()

    def _again(self, token: str, claims: Claims, audience: str) -> str:
        kid = jwt.get_unverified_header(token).get("kid")
        return jwt.encode({**claims, "aud": audience}, self._api, "EdDSA", headers={"kid": kid})


def _private(pem: bytes) -> Ed25519PrivateKey:
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"a key of the gate is {type(key).__name__}, expected Ed25519")
    return key
