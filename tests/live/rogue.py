"""A hospital that turned: it has its own keys and tokens, an HTTP client, and the will to do harm."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import time
import uuid
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from consilium.platform import Platform
from contracts.canonical import sha256
from site_runtime.exchange import HttpExchange
from tasks.federation import load_federation
from tasks.gate_key import TASK_AUDIENCE

ROGUE, VICTIM = "va", "cleveland"
EDGE = "/edge_worker/v1/"
EXECUTION = "/execution/"


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    body: bytes

    @property
    def by_the_gate(self) -> bool:
        """Whether the gate itself refused."""
        return self.status >= 400 and self.body == b'{"detail": "refused at the gate"}'


@dataclass
class Rogue:
    """One of the platform's hospitals, against a server.

    Attributes:
        run: a finished run of the victim's and the rogue's study.
        instances: ids of task instances of that run, by task.
        update: digest of what the victim sent in that run.
        since: when it turned, as the audit log writes times.
    """

    platform: Platform
    url: str
    dag: str
    run: str
    instances: dict[str, str] = field(default_factory=dict)
    update: str = ""
    since: str = ""

    def key(self, site: str = ROGUE) -> bytes:
        """The rogue's own key; of another hospital only where a test plays that hospital."""
        return self.platform.site(site).edge_key.read_bytes()

    def token(self, method: str, header: dict[str, Any] | None = None, **changes: Any) -> str:
        """A token as the rogue's stock worker makes it, with changes."""
        now = int(time.time())
        claims = {
            "jti": uuid.uuid4().hex,
            "iss": ROGUE,
            "aud": "api",
            "iat": now,
            "nbf": now,
            "exp": now + 10,
        }
        claims |= {"method": method} | changes
        claims = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(claims, self.key(), "EdDSA", headers={"kid": ROGUE} | (header or {}))

    def task_token(self, task: str = f"{ROGUE}.train") -> str:
        """The token that came to the rogue with its job: issued by the coordinator for this one task."""
        key: Any = load_pem_private_key(self.platform.coordinator.api_key.read_bytes(), None)
        now = int(time.time())
        claims = {
            "iss": "coordinator",
            "aud": TASK_AUDIENCE,
            "sub": self.instances[task],
            "scope": "execution",
        }
        claims |= {"iat": now, "nbf": now, "exp": now + 600}
        from airflow.api_fastapi.auth.tokens import key_to_jwk_dict

        return jwt.encode(claims, key, "EdDSA", headers={"kid": key_to_jwk_dict(key)["kid"]})

    def forged_task_token(self) -> str:
        """A task's token that the rogue signed itself."""
        claims = jwt.decode(self.task_token(f"{VICTIM}.train"), options={"verify_signature": False})
        return jwt.encode(claims, self.key(), "EdDSA", headers={"kid": ROGUE})

    def with_secret(self, algorithm: str) -> str:
        """A token "signed" without a key, or with the public key as a shared secret."""
        claims = jwt.decode(self.token("jobs/fetch/" + VICTIM), options={"verify_signature": False})
        if algorithm == "none":
            return jwt.encode(claims | {"iss": VICTIM}, None, "none", headers={"kid": VICTIM})
        public = load_federation(self.platform.coordinator).member(VICTIM).edge_key
        secret = base64.urlsafe_b64decode(public + "=") * 2
        return jwt.encode(claims | {"iss": VICTIM}, secret, algorithm, headers={"kid": VICTIM})

    def as_stranger(self, method: str) -> str:
        """A token in the rogue's name by a key that nobody knows."""
        claims = jwt.decode(self.token(method), options={"verify_signature": False})
        return jwt.encode(claims, Ed25519PrivateKey.generate(), "EdDSA", headers={"kid": ROGUE})

    def ask(
        self,
        method: str,
        path: str,
        token: str | None = None,
        body: Any = None,
        headers: list[tuple[str, str]] | None = None,
        raw: bytes | None = None,
    ) -> Reply:
        """Send a request exactly as written: no client tidies the path."""
        where = urlsplit(self.url)
        connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
        data = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            if token is not None:
                connection.putheader("Authorization", token)
            if data:
                connection.putheader("Content-Type", "application/json")
            if data or method not in ("GET", "HEAD"):
                connection.putheader("Content-Length", str(len(data)))
            for name, value in headers or []:
                connection.putheader(name, value)
            connection.endheaders(data)
            response = connection.getresponse()
            return Reply(response.status, response.read(1 << 20))
        finally:
            connection.close()

    def edge(self, method: str, path: str, body: Any = None, **changes: Any) -> Reply:
        """A well-signed request of the rogue's worker."""
        return self.ask(method, EDGE + path, self.token(path, **changes), body)

    def task(self, method: str, path: str, body: Any = None, task: str = f"{ROGUE}.train") -> Reply:
        """A request with the token of the rogue's task."""
        return self.ask(method, EXECUTION + path, f"Bearer {self.task_token(task)}", body)

    def fetch(self, worker: str = ROGUE, queues: Any = None, **changes: Any) -> Reply:
        """Ask for jobs; with no slot free, so that an honest worker loses none."""
        body = {"queues": [worker] if queues is None else queues, "free_concurrency": 0}
        body["supports_task_instance_uuid"] = True
        return self.edge("POST", f"jobs/fetch/{worker}", body, **changes)

    def slow(self) -> Reply:
        """Begin a body and send no more of it."""
        where = urlsplit(self.url)
        with socket.create_connection((where.hostname, where.port), timeout=60) as wire:
            head = f"POST {EDGE}worker/{ROGUE} HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n"
            wire.sendall(f"{head}Authorization: {self.token(f'worker/{ROGUE}')}\r\n\r\n{{".encode())
            response = http.client.HTTPResponse(wire)
            response.begin()
            return Reply(response.status, response.read())

    def blob(self, digest: str) -> Reply:
        """Ask the exchange for what lies under a digest."""
        path = f"/consilium/blobs/{digest}"
        edge_key = self.platform.site(ROGUE).edge_key
        header = HttpExchange(self.url, ROGUE, edge_key)._authorisation("GET", path, sha256(b""), 0)
        return self.ask("GET", path, header["Authorization"])

    def xcom(self, task: str, key: str) -> str:
        """Path of an XCom of the run."""
        return f"xcoms/{self.dag}/{self.run}/{task}/{key}"

    def instance(self, what: str, task: str = f"{ROGUE}.train") -> str:
        """Path of a task instance."""
        return f"task-instances/{self.instances[task]}/{what}"
