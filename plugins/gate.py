"""The gate before the API server: every request of a site is bound to its key (design section 6).

Airflow's own checks stay behind it. It decides by path: the edge API needs a site's token, the execution API
a task's, and everything else is for people and takes no token of a site. It may run twice on a request, so
it only looks, and passes a body on that it would pass again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from plugins import edge_rules, execution_rules
from plugins.identity import (
    EDGE_AUDIENCE,
    Claims,
    Keys,
    Refused,
    coordinator_home,
    drop_later_authorisations,
    first_authorisation,
    key_id,
)
from plugins.jobs import Jobs
from tasks.home import CoordinatorHome

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 1 << 20
_READING = ("GET", "HEAD", "OPTIONS")
SILENT_SECONDS = 5.0  # a worker asks for jobs every second: one silent for so long is gone

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def may_work(claims: Claims, context: object) -> dict[str, bool]:
    """`[edge] jwt_verifier`: the signer of a token is an enrolled site that speaks for itself."""
    sites = Keys(coordinator_home()).sites()
    return {"authorized": claims.get("iss") in sites}


class SiteGate:
    """Root ASGI middleware (https://asgi.readthedocs.io/en/latest/specs/www.html)."""

    def __init__(self, app: App, home: CoordinatorHome | None = None, jobs: Jobs | None = None) -> None:
        self.app = app
        self.home = home or coordinator_home()
        self.keys = Keys(self.home)
        self.jobs = jobs or Jobs()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, perhaps with less in it, or answer it here."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        path = scope["path"]
        scope = {**scope, "headers": drop_later_authorisations(scope["headers"])}
        try:
            if path.startswith("/edge_worker/v1"):
                await self._edge(scope, receive, send)
            elif path.startswith("/execution"):
                await self._execution(scope, receive, send)
            else:
                self._people(scope)
                await self.app(scope, receive, send)
        except Refused as refusal:
            log.warning("gate: %s %s refused: %s", scope["method"], path, refusal.reason)
            await _answer(send, refusal.status, {"detail": "refused at the gate"})
        except (edge_rules.Dropped, execution_rules.Unneeded):
            await _answer(send, 200 if path.startswith("/edge_worker") else 201, None)

    async def _edge(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(edge_rules.PREFIX)
        if scope["method"] == "GET" and path == "health":
            return await self.app(scope, receive, send)
        site, claims = self.keys.site_of(first_authorisation(scope["headers"]), EDGE_AUDIENCE)
        body = _parsed(await _read(scope, receive))
        passed = await asyncio.to_thread(
            edge_rules.check, site, claims, scope["method"], path, body, self.jobs
        )
        if scope["method"] == "POST" and path == f"worker/{site}" and self._silent(site):
            await asyncio.to_thread(self.jobs.silence, site)
        statuses: list[int] = []
        await self.app(*_with_body(scope, passed), _noting(send, statuses))
        if statuses and statuses[0] < 400:
            self._seen(site)

    async def _execution(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(execution_rules.PREFIX)
        if scope["method"] == "GET" and path in ("health", "health/ping"):
            return await self.app(scope, receive, send)
        instance = self.keys.task_of(first_authorisation(scope["headers"]))
        task = await asyncio.to_thread(self.jobs.task, instance)
        if task is None:
            raise Refused(404, f"no task instance {instance}")
        if task.queue not in self.keys.sites():
            return await self.app(scope, receive, send)  # a task of the coordinator itself
        query = scope.get("query_string", b"").decode("latin-1")
        body = _parsed(await _read(scope, receive))
        passed = execution_rules.check(instance, task, scope["method"], path, query, body)
        await self.app(*_with_body(scope, passed), send)

    def _people(self, scope: Scope) -> None:
        """The user interface and its API know no sites; the exchange checks its own tokens."""
        if "/xcomEntries" in scope["path"] and scope["method"] not in _READING:
            # Airflow lets every user write them: one person could give the answer of another to a sign-off.
            raise Refused(403, "what a task returned is written by that task alone")
        token = first_authorisation(scope["headers"])
        if token and not scope["path"].startswith("/consilium/") and key_id(token) in self.keys.sites():
            raise Refused(403, f"a token of {key_id(token)!r} outside the edge API")

    def _silent(self, site: str) -> bool:
        try:
            return time.time() - (self.home.presence / site).stat().st_mtime > SILENT_SECONDS
        except FileNotFoundError:
            return True

    def _seen(self, site: str) -> None:
        path = self.home.presence / site
        try:
            os.utime(path)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


async def _read(scope: Scope, receive: Receive) -> bytes:
    """Read the whole body, which the edge and execution APIs bound anyhow."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "disconnected")
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise Refused(413, f"more than {MAX_BODY_BYTES} bytes")
        if not message.get("more_body", False):
            return bytes(body)


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body) if body else None
    except ValueError as error:
        raise Refused(400, "body is not JSON") from error


def _with_body(scope: Scope, value: Any) -> tuple[Scope, Receive]:
    """The same request with `value` as its body, and a `receive` that delivers it."""
    data = b"" if value is None else json.dumps(value).encode()
    headers = [(name, text) for name, text in scope["headers"] if name.lower() != b"content-length"]
    if data:
        headers.append((b"content-length", str(len(data)).encode()))
    delivered = False

    async def receive() -> MutableMapping[str, Any]:
        nonlocal delivered
        if delivered:
            await asyncio.Event().wait()  # nothing more comes; the server cancels us when it is done
        delivered = True
        return {"type": "http.request", "body": data, "more_body": False}

    return {**scope, "headers": headers}, receive


def _noting(send: Send, statuses: list[int]) -> Send:
    async def noted(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
        await send(message)

    return noted


async def _answer(send: Send, status: int, content: Any) -> None:
    data = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
