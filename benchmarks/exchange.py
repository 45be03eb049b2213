"""The exchange over loopback: a blob up and down, beside a bare HTTP copy of the same file in the same run.

Run: .venv/bin/python benchmarks/exchange.py [--bytes 1000000000] [--folder .]

Server and client are processes of their own. Ours hashes everything on both sides, writes to disk and syncs,
and holds tokens to a signed plan; the reference is `http.server` sending the file to a client that only
writes it down (no hash, no sync). What the disk alone takes for the same bytes is printed beside it: no
transfer that ends on disk is faster. Then an upload of which half is there goes on. Goals: 300 MB/s each way,
memory that does not grow with the blob.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import multiprocessing
import os
import resource
import shutil
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROUNDS = 3


class Quiet(http.server.SimpleHTTPRequestHandler):
    """The reference server."""

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def serve(root: Path, size: int, pipe: Any) -> None:
    """The server's process: both servers; then report its memory."""
    from tasks.exchange import file_digest
    from tests.plugins.served import Served, serving

    with serving(Served(root)) as served:
        blob = root / "blob"
        with open(blob, "wb") as file:
            draw = np.random.default_rng(0)
            for _ in range(0, size, 1 << 20):
                file.write(draw.bytes(1 << 20))
        model = served.store.put(blob)
        served.plan = served.make_plan(base_model=model)
        with open(blob, "r+b") as file:
            file.write(b"another content")
        digest = file_digest(blob)
        bare = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Quiet, directory=str(root))
        )
        threading.Thread(target=bare.serve_forever, daemon=True).start()
        before = memory()
        pipe.send((served.site("ash"), bare.server_address[1], served.plan, model))
        receipt = served.home.study("tiny") / "received" / served.plan / "ash"
        while (half := pipe.recv()) != "end":  # forget the update, so that the next is a transfer again
            if half == "cpu":
                pipe.send(time.process_time())
                continue
            receipt.unlink(missing_ok=True)
            served.store.path_of(digest).unlink(missing_ok=True)
            if half:
                beginning = served.store.partial / served.plan / "ash" / digest
                beginning.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(blob, beginning)
                os.truncate(beginning, size // 2)
            pipe.send("done")
        pipe.send(memory() - before)
        bare.shutdown()


def memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def bare_copy(url: str, target: Path) -> None:
    """The reference client."""
    with urllib.request.urlopen(url) as response, open(target, "wb") as file:
        while block := response.read(1 << 20):
            file.write(block)


def disk_alone(blob: Path, target: Path) -> None:
    """Write the same bytes to the disk."""
    with open(blob, "rb") as source, open(target, "wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
        os.fsync(file.fileno())


def cost_of(here: Any, call: Callable[..., Any], *arguments: Any) -> tuple[float, float]:
    """Wall seconds of a call, and CPU seconds of the busier of the two processes."""
    os.sync()  # or what the transfer before left in memory would be written at this one's cost
    here.send("cpu")
    server, client, started = here.recv(), time.process_time(), time.perf_counter()
    call(*arguments)
    wall = time.perf_counter() - started
    here.send("cpu")
    return wall, max(here.recv() - server, time.process_time() - client)


def main() -> None:
    """Copy, download and upload in turn."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bytes", type=int, default=1_000_000_000)
    parser.add_argument("--folder", type=Path, help="Where to write; a temporary folder by default.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        here, there = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=serve, args=(Path(folder) / "server", arguments.bytes, there)
        )
        (Path(folder) / "server").mkdir()
        process.start()
        exchange, bare, plan, model = here.recv()
        target, blob = Path(folder) / "got", Path(folder) / "server" / "blob"
        try:
            size, before = blob.stat().st_size, memory()
            times: dict[str, list[tuple[float, float]]] = {
                "disk alone": [],
                "bare HTTP copy": [],
                "get": [],
                "put": [],
                "put, half there": [],
            }
            for _ in range(ROUNDS):
                times["disk alone"].append(cost_of(here, disk_alone, blob, target))
                times["bare HTTP copy"].append(
                    cost_of(here, bare_copy, f"http://127.0.0.1:{bare}/blob", target)
                )
                times["get"].append(cost_of(here, exchange.get, model, target))
                for half, name in ((False, "put"), (True, "put, half there")):
                    here.send(half)
                    here.recv()
                    times[name].append(cost_of(here, exchange.put, blob, plan))
            client = memory() - before
            here.send("end")
            server = here.recv()
        finally:
            process.join(10)
            process.terminate()
    print(f"{size / 1e6:,.0f} MB, best of {ROUNDS}; load {os.getloadavg()[0]:.1f}")
    reference = min(times["bare HTTP copy"])[0]
    for name, found in times.items():
        wall, cpu = min(wall for wall, _ in found), min(cpu for _, cpu in found)
        print(
            f"{name:<16}  {size / 1e6 / wall:6.0f} MB/s, time ratio {wall / reference:.2f}; "
            f"the busier process alone allows {size / 1e6 / cpu:.0f} MB/s"
        )
    print(f"memory above idle  server {server / 1e6:.0f} MB, client {client / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
