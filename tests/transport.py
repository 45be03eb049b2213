"""Real servers on loopback for tests of transport: an upstream that says what reached it, and nginx."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from consilium.nginx import command
from consilium.processes import wait_until

WITH_NGINX = pytest.mark.skipif(
    shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin") is None,
    reason="no program nginx: `make debian`",
)


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Upstream:
    """An ASGI server that answers with what reached it, and counts the bytes of bodies as they come."""

    port: int
    requests: list[dict[str, Any]] = field(default_factory=list)
    received: int = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Read everything, then answer with JSON."""
        if scope["type"] != "http":
            return
        while True:
            message = await receive()
            self.received += len(message.get("body", b""))
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                break
        seen = {
            "method": scope["method"],
            "target": scope["raw_path"].decode("latin-1"),
            "query": scope["query_string"].decode("latin-1"),
            "headers": [[n.decode(), v.decode("latin-1")] for n, v in scope["headers"]],
        }
        self.requests.append(seen)
        body = json.dumps(seen).encode()
        headers = [(b"content-length", str(len(body)).encode()), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@contextlib.contextmanager
def upstream(**options: Any) -> Iterator[Upstream]:
    """Serve an `Upstream` in a thread; `options` are uvicorn's, such as a certificate."""
    app = Upstream(free_port())
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            **{"host": "127.0.0.1", "port": app.port, "log_level": "critical", "lifespan": "off", **options},
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert wait_until(lambda: server.started, 20)
        yield app
    finally:
        server.should_exit = True
        thread.join(20)


@contextlib.contextmanager
def nginx(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run the nginx of a folder until it listens at `port` of loopback."""
    with open(folder / "error.log", "wb") as log:
        process = subprocess.Popen(command(folder), stdout=log, stderr=log)
    try:
        assert wait_until(lambda: process.poll() is not None or _listens(port), 20)
        assert process.poll() is None, (folder / "error.log").read_text()
        yield process
    finally:
        process.terminate()
        process.wait(20)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def trusting(ca: Path, certificate: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """A client's context that trusts `ca` alone, and shows a certificate if it has one."""
    context = ssl.create_default_context(cafile=ca)
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


@contextlib.contextmanager
def connection(port: int, context: ssl.SSLContext, host: str = "localhost") -> Iterator[ssl.SSLSocket]:
    """A TLS connection to loopback, over which a test says what no HTTP client would."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname=host) as tls,
    ):
        yield tls


def answer(tls: ssl.SSLSocket) -> tuple[int, bytes]:
    """Read until the server closes; return status and everything after the header."""
    data = bytearray()
    with contextlib.suppress(ssl.SSLEOFError, ConnectionError):
        while block := tls.recv(1 << 16):
            data += block
    head, _, body = bytes(data).partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, body


def say(port: int, context: ssl.SSLContext, request: bytes) -> tuple[int, bytes]:
    """Send bytes, and return the answer; 0 when the server closed without one."""
    with connection(port, context) as tls:
        tls.sendall(request)
        return answer(tls)
