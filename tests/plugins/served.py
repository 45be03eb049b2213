"""The exchange on a port of loopback, and a link to it that breaks."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI

from contracts.plan import RosterEntry, RoundPlan
from contracts.signing import SigningKey
from contracts.version import CODE_VERSION
from plugins.exchange import exchange_app
from plugins.gate import SiteGate
from site_runtime.exchange import HttpExchange
from tasks.exchange import DirectoryExchange
from tasks.head import advance, load_head, now
from tasks.store import save_plan
from tests.factories import TinyFederation, tiny_study, write_tensors


class Served:
    """A federation with its exchange on a port of loopback; cedar is enrolled but on no roster."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.federation = TinyFederation(root, tiny_study())
        self.home = self.federation.home
        self.store = DirectoryExchange(self.home.exchange)
        self.base = self.store.put(write_tensors(root / "base", {"w": np.zeros(4, np.float32)}))
        self.plan = self.make_plan()
        self.port = 0
        self.gate: SiteGate | None = None  # while it is served

    @property
    def url(self) -> str:
        """Where the exchange is."""
        return f"http://127.0.0.1:{self.port}"

    def make_plan(self, **changes: Any) -> str:
        """Sign a plan for ash and birch, and make it the head's."""
        protocol = self.federation.protocol
        roster = [RosterEntry(site=s, data_sheet="0" * 64, declared_size=100) for s in ("ash", "birch")]
        fields: dict[str, Any] = {
            "study": protocol.study,
            "protocol_hash": protocol.hash,
            "kind": "training",
            "round": 1,
            "rounds": 2,
            "base_model": self.base,
            "roster": roster,
            "code_versions": [CODE_VERSION],
            "deadline_seconds": 30,
            "created": now(),
        }
        digest = save_plan(self.home, RoundPlan.model_validate(fields | changes))
        advance(self.home, load_head(self.home, protocol.study), plan=digest)
        return digest

    def site(self, site: str, port: int | None = None) -> HttpExchange:
        """The exchange as this site sees it."""
        path = self.root / f"{site}.pem"
        if not path.exists():
            self.federation.keys[site].save(path)
        return HttpExchange(f"http://127.0.0.1:{port or self.port}", site, path)

    def update(self, value: float = 1.0) -> Path:
        """A file to send."""
        return write_tensors(self.root / f"update-{value}", {"w": np.full(4, value, np.float32)})

    def large(self, name: str = "large", size: int = 5_000_001) -> Path:
        """A file to send that takes several pieces."""
        path = self.root / name
        path.write_bytes(np.random.default_rng(list(name.encode())).bytes(size))
        return path


@contextlib.contextmanager
def serving(served: Served) -> Iterator[Served]:
    """Serve the exchange behind the gate by uvicorn, as Airflow's API server does."""
    root = FastAPI()
    root.mount("/consilium", exchange_app(served.home))
    if not served.home.api_key.exists():
        SigningKey.generate("coordinator").save(served.home.api_key)
    served.gate = SiteGate(root, served.home)
    server = uvicorn.Server(uvicorn.Config(served.gate, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    served.port = server.servers[0].sockets[0].getsockname()[1]
    yield served
    server.should_exit = True
    thread.join()


class FlappingLink:
    """A relay to a port that cuts every connection after so many bytes in one direction."""

    def __init__(self, port: int, cut_after: int) -> None:
        self.to, self.cut_after = port, cut_after
        self.carried = 0  # bytes in both directions, all connections together
        self.cuts = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self.to))
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._relay, args=(source, sink), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        left = self.cut_after
        with contextlib.suppress(OSError):
            while left > 0 and (data := source.recv(min(65536, left))):
                sink.sendall(data)
                left -= len(data)
                self.carried += len(data)
        self.cuts += left <= 0
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()
