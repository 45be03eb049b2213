"""The API server asks itself for what is forbidden, and ends when anything but the gate answers."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from consilium.processes import wait_until
from plugins.gate import SiteGate
from plugins.probe import NotTheGate, Probe
from tests.plugins.gate_harness import Gate


@contextmanager
def served(app: Any) -> Iterator[int]:
    """An application on a port of loopback, in this process."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert wait_until(lambda: server.started, 10)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(timeout=10)


def answering(status: int, body: bytes = b"{}") -> Any:
    """An application that answers everything alike."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while scope["type"] == "lifespan":
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return app


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """A gate with sites ash, birch and cedar."""
    return Gate(tmp_path)


def behind(gate: Gate, app: Any, **more: Any) -> SiteGate:
    """The gate before an application."""
    return SiteGate(app, gate.home, gate.jobs, **more)  # type: ignore[arg-type]


def test_a_gate_that_stands_is_noted_and_its_probes_are_no_news(gate: Gate) -> None:
    before = behind(gate, answering(200))
    with served(before) as port:
        Probe(gate.home, ports=lambda: [("127.0.0.1", port)]).once()
    state = json.loads(gate.home.gate_state.read_text())
    assert state["pid"] == os.getpid()
    assert time.time() - state["passed"] < 60
    before.audit.close()
    assert not gate.home.audit.exists()


@pytest.mark.parametrize(
    ("status", "body"), [(200, b"{}"), (403, b"{}"), (404, b"not found"), (500, b""), (200, b"gate")]
)
def test_any_other_answer_is_not_the_gates(gate: Gate, status: int, body: bytes) -> None:
    with served(answering(status, body)) as port, pytest.raises(NotTheGate):
        Probe(gate.home, ports=lambda: [("127.0.0.1", port)]).once()
    assert not gate.home.gate_state.exists()


def test_one_way_round_the_gate_is_enough(gate: Gate) -> None:
    """Each forbidden request is needed: a server that lets this one through is found by it alone."""
    names = {request.name for request in Probe(gate.home).forbidden()}
    for number in range(len(names)):
        count = iter(range(1000))

        def leaking(number: int = number, count: Iterator[int] = count) -> Any:
            before, after = behind(gate, answering(200)), answering(200)

            async def app(scope: Any, receive: Any, send: Any) -> None:
                open_now = scope["type"] == "http" and next(count) == number
                await (after if open_now else before)(scope, receive, send)

            return app

        with served(leaking()) as port, pytest.raises(NotTheGate):
            Probe(gate.home, ports=lambda port=port: [("127.0.0.1", port)]).once()  # type: ignore[misc]


def probed(gate: Gate, app: Callable[[Probe], Any]) -> list[str]:
    """Why the server was asked to end, within ten seconds of its start."""
    reasons: list[str] = []
    found = threading.Event()

    def stop(reason: str) -> None:
        reasons.append(reason)
        found.set()

    ports: list[tuple[str, int]] = []
    probe = Probe(gate.home, stop_server=stop, ports=lambda: ports)
    with served(app(probe)) as port:
        ports.append(("127.0.0.1", port))
        assert wait_until(lambda: found.is_set() or gate.home.gate_state.exists(), 10)
        probe.stop()
    return reasons


def test_the_probe_starts_with_the_server_and_passes(gate: Gate) -> None:
    assert probed(gate, lambda probe: behind(gate, answering(200), probe=lambda home: probe)) == []
    assert gate.home.gate_state.exists()


def test_a_server_that_answers_is_ended(gate: Gate) -> None:

    def open_server(probe: Probe) -> Any:
        probe.start()
        return answering(200)

    (reason,) = probed(gate, open_server)
    assert "answered with 200" in reason
    assert not gate.home.gate_state.exists()
