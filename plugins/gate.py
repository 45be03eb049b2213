"""The gate before the API server: every request of a site is bound to its key (docs/gate.md).

It decides by path: the edge API needs a site's token, the execution API a task's, and everything else is for
people and takes no token of a site. An endpoint that it does not know is refused. What it lets through it
signs anew (`plugins.passes`): Airflow behind it takes nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from plugins import edge_rules, exchange_rules, execution_rules
from plugins.audit import Audit, Visit
from plugins.deadlines import Deadlines
from plugins.endpoint import find
from plugins.identity import EDGE_AUDIENCE, Keys, coordinator_home, key_id
from plugins.jobs import Jobs
from plugins.limits import Buckets
from plugins.overdue import Overdue
from plugins.passes import Passes
from plugins.paths import family, folded
from plugins.probe import Probe, is_probe
from plugins.refused import Refused, Thrown
from plugins.room import Room
from plugins.wire import (
    App,
    Message,
    Receive,
    Scope,
    Send,
    answer,
    check_headers,
    delivering,
    drop_later_authorisations,
    first_authorisation,
    parsed,
    read_body,
    refuse,
    with_body,
    with_token,
)
from tasks.gate_key import GATE
from tasks.home import LOCAL_QUEUE, CoordinatorHome
from tasks.settings import load_settings

log = logging.getLogger(__name__)

SILENT_SECONDS = 5.0  # a worker asks for jobs every second: one silent for so long is gone
# Of failed sign-ins of one address. It saves the log, not the check: hospitals behind one address share it.
FAILURES_PER_SECOND, FAILURES_AT_ONCE = 5.0, 100
PEOPLE_BYTES = 1 << 20  # of a body from the user interface or a user's program
_READING = ("GET", "HEAD", "OPTIONS")
_REFRESHED = b"refreshed-api-token"

_MARK = "consilium.gate"
_PASSED = object()  # no request can bring it: the middleware may run twice on one


@dataclass
class _Outcome:
    """What Airflow answered, kept until it can be sent: a sender that reads slowly holds no place."""

    status: int = 0
    length: int = 0
    kept: list[Message] = field(default_factory=list)

    async def keep(self, message: Message) -> None:
        self.kept.append(message)


class SiteGate:
    """Root ASGI middleware (https://asgi.readthedocs.io/en/latest/specs/www.html)."""

    def __init__(
        self,
        app: App,
        home: CoordinatorHome | None = None,
        jobs: Jobs | None = None,
        probe: Callable[[CoordinatorHome], Probe] | None = None,
    ) -> None:
        self.app = app
        self.home = home or coordinator_home()
        settings = load_settings(self.home)
        self.keys = Keys(self.home)
        self.passes = Passes(self.home)
        self.jobs = jobs or Jobs()
        self.deadlines = Deadlines(self.home, self.jobs)
        self.audit = Audit(self.home.audit)
        self.sites = Buckets(settings.requests_per_second, settings.burst)
        limits = settings.exchange
        self.transfers = Buckets(limits.requests_per_second, limits.burst)
        self.failures = Buckets(FAILURES_PER_SECOND, FAILURES_AT_ONCE)
        self.room = Room()
        self.probe = probe(self.home) if probe else None
        self.overdue = Overdue(self.deadlines)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, perhaps with less in it, or answer it here."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, self._living(send))
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})  # nobody here speaks it
        if scope.get(_MARK) is _PASSED:
            return await self.app(scope, receive, send)
        scope = {**scope, _MARK: _PASSED}
        visit = Visit(scope["method"], (scope.get("client") or ("unknown",))[0])
        outcome = _Outcome()
        try:
            await self._route(visit, scope, receive, _noting(send, outcome))
        except Refused as refusal:
            await self._refuse(visit, refusal, scope, send)
        except Thrown as thrown:
            await answer(send, thrown.status, None)
        else:
            if visit.audited or (visit.site != "unknown" and outcome.status >= 400):
                reason = "accepted" if outcome.status < 400 else visit.behind
                self.audit.record(visit, outcome.status, reason)

    async def _route(self, visit: Visit, scope: Scope, receive: Receive, send: Send) -> None:
        where = family(scope)
        if where == "people":
            return await self._people(visit, scope, receive, send)
        check_headers(scope["headers"])
        if where == "exchange":
            return await self._exchange(visit, scope, receive, send)
        handle = self._edge if where == "edge" else self._execution
        return await handle(visit, scope, receive, send)

    async def _edge(self, visit: Visit, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"].removeprefix(edge_rules.PREFIX)
        visit.path = f"{edge_rules.PREFIX}*"
        if method == "GET" and path == "health" and not scope.get("query_string"):
            return await self.app(scope, receive, send)
        site, claims = self.keys.verified(first_authorisation(scope["headers"]), EDGE_AUDIENCE)
        visit.site = site
        if not self.sites.take(site):
            raise Refused(429, "rate")
        self.keys.once(site, claims)
        endpoint, match = find(edge_rules.ENDPOINTS, method, path) or (None, None)
        if endpoint is None or match is None:
            raise Refused(403, "unknown_endpoint", path[:100])
        visit.path = edge_rules.PREFIX + endpoint.template
        if scope.get("query_string"):
            raise Refused(403, "query")
        # The stock worker signs the path into its token; with a trusted key set Airflow does not look at it.
        if claims.get("method") != path:
            raise Refused(403, "other_request", repr(claims.get("method"))[:100])
        if endpoint.name == "log":
            await read_body(scope, receive, edge_rules.LOG_BYTES)
            raise Thrown(200)
        body = await read_body(scope, receive, edge_rules.MAX_BODY_BYTES)
        visit.received = len(body)
        value, outcome = parsed(body), _Outcome()
        async with self.room.place(site):
            passed = await asyncio.to_thread(edge_rules.check, site, endpoint, match, value, self.jobs)
            visit.subject = site
            if endpoint.name == "state":
                visit.subject = f"{match['dag']}/{match['task']} {match['state']}"
            if endpoint.name == "register" and self._silent(site):
                await asyncio.to_thread(self.jobs.silence, site)
            pass_token = self.passes.edge(site, path)
            await self.app(*with_body(scope, passed, pass_token), _noting(outcome.keep, outcome))
        await _deliver(outcome, send)
        if 0 < outcome.status < 400:
            self._seen(site)
        # A worker asks every second; only a job that it was given is news ("null" has 4 bytes).
        visit.audited = endpoint.audited and (endpoint.name != "fetch" or outcome.length > 4)

    async def _execution(self, visit: Visit, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"].removeprefix(execution_rules.PREFIX)
        visit.path = f"{execution_rules.PREFIX}*"
        if method == "GET" and path in ("health", "health/ping") and not scope.get("query_string"):
            return await self.app(scope, receive, send)
        token = first_authorisation(scope["headers"])
        instance, claims = self.keys.task_of(token)
        assert token is not None
        task = await asyncio.to_thread(self.jobs.task, instance)
        if task is None:
            raise Refused(403, "unknown_task", instance[:40])
        pass_token = self.passes.task(token, claims)
        send = self._refreshing(send)
        outcome = _Outcome()
        if task.queue == LOCAL_QUEUE:
            async with self.room.place(LOCAL_QUEUE):
                await self.app(with_token(scope, pass_token), receive, outcome.keep)
            return await _deliver(outcome, send)
        if task.queue not in self.keys.sites():
            raise Refused(403, "not_active", task.queue)
        visit.site = task.queue
        if not self.sites.take(task.queue):
            raise Refused(503, "rate")  # the stock supervisor tries again after 503 only
        endpoint, match = find(execution_rules.ENDPOINTS, method, path) or (None, None)
        if endpoint is None or match is None:
            raise Refused(403, "unknown_endpoint", path[:100])
        visit.path = execution_rules.PREFIX + endpoint.template
        visit.subject = f"{task.dag}/{task.task}"
        if scope.get("query_string"):
            raise Refused(403, "query")
        body = await read_body(scope, receive, execution_rules.MAX_BODY_BYTES)
        visit.received = len(body)
        asked = (instance, task, endpoint, match, parsed(body), self.jobs)
        async with self.room.place(task.queue):
            passed = await asyncio.to_thread(execution_rules.check, *asked)
            if endpoint.name == "state":
                visit.subject += f" {passed['state']}"
            else:
                await asyncio.to_thread(self.deadlines.check, instance, task, endpoint.name)
            await self.app(*with_body(scope, passed, pass_token), outcome.keep)
        await _deliver(outcome, send)
        visit.audited = endpoint.audited

    async def _exchange(self, visit: Visit, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on who sends it, verified: the exchange knows nobody but by the gate's word."""
        method, path = scope["method"], scope["path"].removeprefix(exchange_rules.PREFIX)
        visit.path = f"{exchange_rules.PREFIX}*"
        site, claims = self.keys.verified(first_authorisation(scope["headers"]), exchange_rules.AUDIENCE)
        visit.site = site
        if not self.transfers.take(site):
            raise Refused(429, "rate")
        self.keys.once(site, claims)
        endpoint, _ = find(exchange_rules.ENDPOINTS, method, path) or (None, None)
        if endpoint is None:
            raise Refused(403, "unknown_endpoint", path[:100])
        if claims.get("method") != method or claims.get("path") != scope["path"]:
            raise Refused(403, "other_request", f"{claims.get('method')!r} {claims.get('path')!r}"[:100])
        visit.path = exchange_rules.PREFIX + endpoint.template
        visit.behind, visit.audited = "exchange", endpoint.audited
        outcome = _Outcome()
        await self.app({**scope, exchange_rules.SENDER: (site, claims)}, receive, _noting(send, outcome))
        if outcome.status < 400:  # only then it names what the coordinator knows, and no text of the sender
            visit.subject = path

    async def _people(self, visit: Visit, scope: Scope, receive: Receive, send: Send) -> None:
        """The user interface and its API know no sites."""
        scope["headers"] = drop_later_authorisations(scope["headers"])
        if "/xcomentries" in folded(scope) and scope["method"] not in _READING:
            # Airflow lets every user write them: one person could give the answer of another to a sign-off.
            visit.path = "/api/v2/xcomEntries"
            raise Refused(403, "user_xcom")
        kid = key_id(first_authorisation(scope["headers"]) or "")
        if kid is not None and (kid == GATE or kid in self.keys.sites()):
            visit.path = "/api/*"
            raise Refused(403, "site_as_user", repr(kid))
        # Anybody may send to the sign-in: what nobody has looked at yet is bounded as a hospital's body is.
        body = await read_body(scope, receive, PEOPLE_BYTES)
        await self.app(scope, delivering(body, receive), send)

    async def _refuse(self, visit: Visit, refusal: Refused, scope: Scope, send: Send) -> None:
        status = refusal.status
        if visit.site == "unknown" and not self.failures.take(visit.address):
            status = 429
        elif not is_probe(scope) and self.audit.record(visit, status, refusal.code):
            # No more than what is audited: the server's own log has no other bound.
            log.warning("gate: %s %s of %s refused: %s", visit.method[:16], visit.path, visit.site, refusal)
        await refuse(send, status)

    def _refreshing(self, send: Send) -> Send:
        """Turn a new token that Airflow gives to a task back into one that opens nothing but the gate."""

        async def refreshed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    (name, self.passes.returned(value) if name.lower() == _REFRESHED else value)
                    for name, value in message.get("headers", [])
                ]
            await send(message)

        return refreshed

    def _living(self, send: Send) -> Send:
        async def noted(message: Message) -> None:
            await send(message)
            if message["type"] == "lifespan.startup.complete" and self.probe is not None:
                self.probe.start()
                self.overdue.start()
            elif message["type"] == "lifespan.shutdown.complete":
                self.overdue.stop()
                if self.probe is not None:
                    self.probe.stop()
                self.audit.close()

        return noted

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


async def _deliver(outcome: _Outcome, send: Send) -> None:
    for message in outcome.kept:
        await send(message)


def _noting(send: Send, outcome: _Outcome) -> Send:
    async def noted(message: Message) -> None:
        if message["type"] == "http.response.start":
            outcome.status = message["status"]
            for name, value in message.get("headers", []):
                if name.lower() == b"content-length":
                    outcome.length = int(value)
        await send(message)

    return noted
