"""A gate with keys that the test holds, before an application that remembers what reached it."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jwt

from contracts.signing import SigningKey
from plugins.gate import SiteGate
from plugins.jobs import Life, Task
from tasks.home import LOCAL_QUEUE, CoordinatorHome
from tests.factories import TinyFederation, tiny_study

RUN = "manual__2026-01-01T00:00:00+00:00"
ASH_TASK, ASH_LATER, OWN_TASK, ASH_INTAKE = (str(uuid.UUID(int=n)) for n in (1, 2, 3, 4))
SYSTEM = {"airflow_version": "3.3.2", "edge_provider_version": "5.1.0", "concurrency": 4}


class KnownJobs:
    """Jobs without a database: two tasks of site ash and one of the coordinator."""

    def __init__(self) -> None:
        self.silenced: list[str] = []
        self.lives: dict[str, Life | None] = {}
        self.over: set[str] = set()  # tasks whose jobs lie there still

    def task(self, instance: str) -> Task | None:
        """As `Jobs.task`."""
        return {
            ASH_TASK: Task("tiny.round", RUN, "ash.train", "ash"),
            ASH_LATER: Task("tiny.release", RUN, "ash.evaluate", "ash"),
            ASH_INTAKE: Task("tiny.intake", RUN, "ash.intake", "ash"),
            OWN_TASK: Task("tiny.round", RUN, "close_round", LOCAL_QUEUE),
        }.get(instance)

    def life(self, instance: str) -> Life | None:
        """As `Jobs.life`: running since now, unless the test says otherwise."""
        return self.lives.get(instance, Life("running", time.time()))

    def owner(self, dag: str, task: str, run: str) -> str | None:
        """As `Jobs.owner`."""
        return task.split(".")[0] if "." in task and run == RUN else None

    def at_work(self, dag: str, task: str, run: str, attempt: int, index: int) -> bool:
        """As `Jobs.at_work`: the first attempt, until the test says that the task is over."""
        return attempt == 1 and index == -1 and task not in self.over

    def silence(self, worker: str) -> None:
        """As `Jobs.silence`."""
        self.silenced.append(worker)


class Behind:
    """What lies behind the gate: remembers what reached it."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.headers: list[tuple[bytes, bytes]] = []
        self.seen: list[tuple[dict[str, Any], Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer every request."""
        body = (await receive())["body"]
        self.seen.append((scope, json.loads(body) if body else None))
        await send({"type": "http.response.start", "status": self.status, "headers": [*self.headers]})
        await send({"type": "http.response.body", "body": b"{}"})

    def header(self, name: bytes) -> list[bytes]:
        """Values of a header of the last request that reached it."""
        return [value for key, value in self.seen[-1][0]["headers"] if key.lower() == name]


class Gate:
    """The gate of a tiny federation with keys that the test holds."""

    def __init__(self, root: Path) -> None:
        self.federation = TinyFederation(root, tiny_study())
        self.home: CoordinatorHome = self.federation.home
        self.api_key = SigningKey.generate("coordinator")
        self.api_key.save(self.home.api_key)
        self.jobs, self.behind = KnownJobs(), Behind()
        self.gate = SiteGate(self.behind, self.home, self.jobs)  # type: ignore[arg-type]
        self.answers: list[dict[str, Any]] = []

    def with_new_gate(self) -> Gate:
        """The same after a restart of the API server."""
        self.gate = SiteGate(self.behind, self.home, self.jobs)  # type: ignore[arg-type]
        return self

    def edge_token(
        self, site: str, path: str, /, header: dict[str, Any] | None = None, **changes: Any
    ) -> str:
        """A token as the stock worker of `site` makes it for a path of the edge API."""
        now = int(time.time())
        claims = {"jti": uuid.uuid4().hex, "iss": site, "aud": "api", "iat": now, "nbf": now, "exp": now + 10}
        claims |= {"method": path} | changes
        claims = {name: value for name, value in claims.items() if value is not None}
        key = self.pem(self.federation.keys[site])
        return jwt.encode(claims, key, "EdDSA", headers={"kid": site} | (header or {}))

    def task_token(self, instance: str, **changes: Any) -> str:
        """A token as the coordinator issues it with a job."""
        now = int(time.time())
        audience = "urn:airflow.apache.org:task"
        claims = {"iss": "coordinator", "aud": audience, "iat": now, "exp": now + 600, "sub": instance}
        return jwt.encode(claims | changes, self.pem(self.api_key), "EdDSA", headers={"kid": "thumbprint"})

    def pem(self, key: SigningKey) -> bytes:
        """The private key as PEM."""
        path = self.home.root / f".pem-{uuid.uuid4().hex}"
        key.save(path)
        return path.read_bytes()

    def ask(
        self, method: str, path: str, token: str | None, body: Any = None, query: str = "", **more: Any
    ) -> int:
        """Send a request to the gate and return the status."""
        headers = [] if token is None else [(b"authorization", token.encode())]
        return self.send(method, path, headers, body, query, **more)

    def send(
        self,
        method: str,
        path: str,
        headers: list[tuple[bytes, bytes]],
        body: Any = None,
        query: str = "",
        blocks: Iterable[bytes | None] | None = None,
        **scope: Any,
    ) -> int:
        """Send a request with these headers and return the status.

        Args:
            blocks: the body in parts instead; after None nothing more comes.
        """
        self.answers = asyncio.run(self.sent(method, path, headers, body, query, blocks, **scope))
        return int(self.answers[0]["status"])

    async def sent(
        self,
        method: str,
        path: str,
        headers: list[tuple[bytes, bytes]],
        body: Any = None,
        query: str = "",
        blocks: Iterable[bytes | None] | None = None,
        reading: asyncio.Event | None = None,
        **scope: Any,
    ) -> list[dict[str, Any]]:
        """Send a request and return the answer's messages; for a test that sends several at once.

        Args:
            reading: the sender reads the answer when this is set.
        """
        parts = list(blocks) if blocks is not None else [b"" if body is None else json.dumps(body).encode()]
        answers: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if parts[0] is None:
                await asyncio.Event().wait()
            part = parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(parts)}

        async def send(message: Any) -> None:
            if reading is not None:
                await reading.wait()
            answers.append(message)

        request = {"type": "http", "method": method, "path": path, "headers": headers}
        request |= {"query_string": query.encode(), "client": ("192.0.2.1", 1)} | scope
        await self.gate(request, receive, send)
        return answers

    def edge(self, site: str, method: str, path: str, body: Any = None, query: str = "") -> int:
        """Send a well-signed request of a site's worker."""
        return self.ask(method, f"/edge_worker/v1/{path}", self.edge_token(site, path), body, query)

    def task(self, instance: str, method: str, path: str, body: Any = None, query: str = "") -> int:
        """Send a request with a task's token."""
        return self.ask(method, f"/execution/{path}", f"Bearer {self.task_token(instance)}", body, query)

    def audited(self) -> list[dict[str, Any]]:
        """The lines of the audit log."""
        self.gate.audit.close()
        files = sorted(self.home.audit.glob("*"))
        return [json.loads(line) for path in files for line in path.read_text().splitlines()]


def state(queues: list[str], **more: Any) -> dict[str, Any]:
    """Body of a worker's registration or heartbeat."""
    return {"state": "idle", "jobs_active": 0, "queues": queues, "sysinfo": SYSTEM} | more
