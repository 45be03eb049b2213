"""What one hospital sends at once neither stalls the server nor keeps the others waiting."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from sqlalchemy.pool import QueuePool

from plugins.room import PLACES, PLACES_EACH
from tests.plugins.gate_harness import ASH_TASK, OWN_TASK, Gate


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """A gate with sites ash, birch and cedar."""
    return Gate(tmp_path)


async def fetch(gate: Gate, site: str, **more: Any) -> int:
    """Ask for a job, as a worker does every second."""
    headers = [(b"authorization", gate.edge_token(site, f"jobs/fetch/{site}").encode())]
    body = {"queues": [site], "free_concurrency": 4}
    answers = await gate.sent("POST", f"/edge_worker/v1/jobs/fetch/{site}", headers, body, **more)
    return int(answers[0]["status"])


async def own(gate: Gate) -> int:
    """A request of the coordinator's own task."""
    headers = [(b"authorization", f"Bearer {gate.task_token(OWN_TASK)}".encode())]
    return int((await gate.sent("GET", "/execution/variables/x", headers))[0]["status"])


class Pooled:
    """As Airflow's endpoints: a connection is taken in one call of its threads and given back in another.

    The pool has Airflow's size; its time is 2 seconds, not 30.
    """

    def __init__(self) -> None:
        def connect() -> sqlite3.Connection:
            return sqlite3.connect(":memory:", check_same_thread=False)

        self.pool = QueuePool(connect, pool_size=5, max_overflow=10, timeout=2.0)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer every request."""
        await receive()
        connection = await anyio.to_thread.run_sync(self.pool.connect)
        await anyio.to_thread.run_sync(time.sleep, 0.001)
        await anyio.to_thread.run_sync(connection.close)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


def test_a_hospital_that_sends_all_it_may_at_once_stalls_nobody(gate: Gate) -> None:
    gate.gate.app = Pooled()

    async def storm() -> tuple[Counter[int], list[int]]:
        flood = [asyncio.create_task(fetch(gate, "ash")) for _ in range(180)]
        await asyncio.sleep(0)
        others = await asyncio.gather(fetch(gate, "birch"), own(gate))
        waiting = sum(not request.done() for request in flood)
        assert waiting > 90  # they did not stand in ash's line
        return Counter(await asyncio.gather(*flood)), others

    assert asyncio.run(storm()) == (Counter({200: 180}), [200, 200])


class Held:
    """Works on every request until it is told to answer, and knows how many it works on."""

    def __init__(self) -> None:
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.go_on = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer every request, when it may."""
        who = scope["path"].rpartition("/")[2]
        for name in (who, "all"):
            self.now[name] += 1
            self.most[name] = max(self.most[name], self.now[name])
        await self.go_on.wait()
        self.now.subtract([who, "all"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


def test_no_hospital_has_more_than_its_share_and_all_together_not_too_many(gate: Gate) -> None:
    async def storm() -> Held:
        gate.gate.app = held = Held()
        sites = ("ash", "birch", "cedar")
        requests = [asyncio.create_task(fetch(gate, site)) for _ in range(20) for site in sites]
        requests += [asyncio.create_task(own(gate)) for _ in range(20)]
        while held.now["all"] < PLACES:
            await asyncio.sleep(0.01)
        held.go_on.set()
        assert set(await asyncio.gather(*requests)) == {200}
        return held

    most = asyncio.run(storm()).most
    assert most.pop("all") == PLACES
    assert set(most.values()) == {PLACES_EACH}


def test_an_answer_that_nobody_reads_holds_no_place(gate: Gate) -> None:
    """A link that is dead in one direction, or a hospital that does so on purpose."""

    async def storm() -> None:
        reading = asyncio.Event()
        unread = [asyncio.create_task(fetch(gate, "ash", reading=reading)) for _ in range(20)]
        while len(gate.behind.seen) < 20:
            await asyncio.sleep(0.01)
        headers = [(b"authorization", f"Bearer {gate.task_token(ASH_TASK)}".encode())]
        beat = f"/execution/task-instances/{ASH_TASK}/heartbeat"
        assert (await gate.sent("PUT", beat, headers, {"pid": 1}))[0]["status"] == 200
        reading.set()
        assert set(await asyncio.gather(*unread)) == {200}

    asyncio.run(asyncio.wait_for(storm(), 30))
