"""The gate's proof that it stands: forbidden requests over the server's socket, at start and every minute.

When one is answered by anything but the gate, the middleware is not where it should be, and the server ends.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import secrets
import signal
import ssl
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jwt
import psutil
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from contracts.errors import ConsiliumError
from durable.files import write_json
from plugins.identity import COORDINATOR, EDGE_AUDIENCE
from plugins.wire import REFUSAL, Scope
from tasks.federation import load_federation
from tasks.gate_key import GATE, GATE_AUDIENCE, TASK_AUDIENCE
from tasks.home import CoordinatorHome

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 60.0
START_SECONDS = 300.0  # until the server listens
REQUEST_SECONDS = 30.0
END_SECONDS = 5.0  # between the request to end and the end by force

_SECRET = secrets.token_hex(16)  # known to this process: its own probes are no news for the audit log


def is_probe(scope: Scope) -> bool:
    """Say whether a request is one of this process's own probes, which are refused without a line of log."""
    secret = _SECRET.encode()
    return any(name.lower() == b"user-agent" and value == secret for name, value in scope["headers"])


@dataclass(frozen=True)
class Forbidden:
    """A request that only a missing gate would answer."""

    name: str
    method: str
    path: str
    token: str
    body: Any = None


class NotTheGate(Exception):
    """A forbidden request was answered by something else than the gate."""


def stop_server(reason: str) -> None:
    """End this server: as asked, and by force a moment later."""
    log.critical("gate: %s; the API server ends", reason)
    timer = threading.Timer(END_SECONDS, os._exit, args=(70,))
    timer.daemon = True
    timer.start()
    os.kill(os.getpid(), signal.SIGTERM)


@dataclass
class Probe:
    """Asks for what is forbidden, in a thread of its own.

    Args:
        https: whether the server ends TLS itself.
        stop_server: called with the reason when the gate does not stand.
        ports: where this process listens.
    """

    home: CoordinatorHome
    https: bool = False
    stop_server: Callable[[str], None] = stop_server
    ports: Callable[[], list[tuple[str, int]]] = field(default_factory=lambda: listening)
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; the first pass is noted in `gate.json` once the server listens."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="gate-probe", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End with the server."""
        self._ended.set()

    def _run(self) -> None:
        started = time.monotonic()
        passed = False
        while not self._ended.is_set():
            try:
                if not passed:
                    self._warm()
                self.once()
                passed = True
            except NotTheGate as problem:
                return self._fail(str(problem))
            except OSError as error:  # no answer at all: nothing was let through
                if not passed and time.monotonic() - started > START_SECONDS:
                    return self._fail(f"the server could not be probed: {error}")
                log.debug("gate: not probed: %s", error)
            except Exception as error:
                return self._fail(f"the probe failed: {error!r}")
            self._ended.wait(INTERVAL_SECONDS if passed else 0.2)
        return None

    def _fail(self, reason: str) -> None:
        self.home.gate_state.unlink(missing_ok=True)
        if not self._ended.is_set():
            self.stop_server(reason)

    def _warm(self) -> None:
        """Ask after the health of the execution API.

        It builds the routes of all its versions at its first request (cadwyn 7, `Cadwyn.__call__`), seconds
        in which the server answers nobody: better now than when the first task starts.
        """
        for address in self.ports():
            connection = self._connect(address)
            try:
                connection.request("GET", "/execution/health", headers={"User-Agent": _SECRET})
                connection.getresponse().read(1 << 16)
            except http.client.HTTPException as error:
                raise ConnectionError(f"health: {error!r}") from error
            finally:
                connection.close()

    def once(self) -> None:
        """Send every forbidden request once, and note that all were refused.

        Raises:
            NotTheGate: one was answered by something else.
            OSError: the server does not listen, or does not answer.
        """
        ports = self.ports()
        if not ports:
            raise ConnectionRefusedError("not listening yet")
        for address in ports:
            for request in self.forbidden():
                self._ask(address, request)
        write_json(self.home.gate_state, {"passed": time.time(), "pid": os.getpid()})

    def forbidden(self) -> list[Forbidden]:
        """What nobody may do, each with a token that Airflow without the gate would look at or take."""
        site = self._some_site()
        fetch = f"jobs/fetch/{site}"
        gate = load_pem_private_key(self.home.gate_key.read_bytes(), None)
        api = load_pem_private_key(self.home.api_key.read_bytes(), None)
        unknown = Ed25519PrivateKey.generate()
        edge, variable = "/edge_worker/v1/", "/execution/variables/probe"
        queues = {"queues": [site], "free_concurrency": 0}
        task = {"sub": str(uuid.uuid4()), "scope": "execution"}
        plain = _token(api, COORDINATOR, TASK_AUDIENCE, None, task)
        inner = _token(api, COORDINATOR, GATE_AUDIENCE, None, task)
        passed = _token(gate, GATE, EDGE_AUDIENCE, GATE, {"method": fetch, "site": site})
        return [
            Forbidden("jobs with the gate's own pass", "POST", edge + fetch, passed, queues),
            Forbidden(
                "jobs with an unknown key",
                "POST",
                edge + fetch,
                _token(unknown, site, EDGE_AUDIENCE, site, {"method": fetch}),
                queues,
            ),
            Forbidden("an unknown edge endpoint", "GET", edge + "probe", passed),
            Forbidden("jobs under another spelling", "POST", "/edge_worker/%76%31/" + fetch, passed, queues),
            Forbidden("variables with a task's token", "GET", variable, f"Bearer {plain}"),
            Forbidden("variables with a pass", "GET", variable, f"Bearer {inner}"),
            Forbidden("the user's API with a pass", "GET", "/api/v2/variables", f"Bearer {passed}"),
        ]

    def _some_site(self) -> str:
        try:
            return next(iter(load_federation(self.home).sites), "nobody")
        except ConsiliumError:
            return "nobody"

    def _ask(self, address: tuple[str, int], request: Forbidden) -> None:
        connection = self._connect(address)
        try:
            body = None if request.body is None else json.dumps(request.body)
            headers = {"Authorization": request.token, "User-Agent": _SECRET}
            if body is not None:
                headers["Content-Type"] = "application/json"
            connection.request(request.method, request.path, body, headers)
            response = connection.getresponse()
            status, content = response.status, response.read(1 << 16)
        except http.client.HTTPException as error:
            raise ConnectionError(f"{request.name}: {error!r}") from error
        finally:
            connection.close()
        if status < 400 or content != json.dumps(REFUSAL).encode():
            raise NotTheGate(f"{request.name} was answered with {status}, and not by the gate")

    def _connect(self, address: tuple[str, int]) -> http.client.HTTPConnection:
        if not self.https:
            return http.client.HTTPConnection(*address, timeout=REQUEST_SECONDS)
        context = ssl.create_default_context()
        context.check_hostname = False  # our own socket, by its address
        context.verify_mode = ssl.CERT_NONE
        return http.client.HTTPSConnection(*address, timeout=REQUEST_SECONDS, context=context)


def listening() -> list[tuple[str, int]]:
    """Where this process listens, as addresses to connect to."""
    found = set()
    for connection in psutil.Process().net_connections(kind="tcp"):
        if connection.status == psutil.CONN_LISTEN:
            host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(connection.laddr.ip, connection.laddr.ip)
            found.add((host, connection.laddr.port))
    return sorted(found)


def _token(key: Any, issuer: str, audience: str, kid: str | None, claims: dict[str, Any]) -> str:
    now = int(time.time())
    times = {"iat": now, "nbf": now, "exp": now + 30, "jti": uuid.uuid4().hex}
    if kid is None:
        from airflow.api_fastapi.auth.tokens import key_to_jwk_dict

        kid = str(key_to_jwk_dict(key)["kid"])  # as Airflow names its own key
    return jwt.encode({"iss": issuer, "aud": audience, **times, **claims}, key, "EdDSA", headers={"kid": kid})
