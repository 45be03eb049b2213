"""Admission and aggregation of 8 updates of 25 M float32, against a plain numpy weighted mean of them.

Run: .venv/bin/python benchmarks/aggregation.py [--parameters 25000000] [--updates 8]

The reference holds all arrays in memory and does nothing but `sum(w * u)`. Ours reads the updates from the
exchange and checks digest, shapes, finiteness and norm first. Both run in processes of their own, in turn.
Goal: under 2 x the time, and peak memory under 3 updates above an idle process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROUNDS = 5


def peak_bytes() -> int:
    """Largest resident memory of this program so far (Linux; getrusage would count the parent's too)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def make_updates(folder: Path, parameters: int, updates: int) -> None:
    """Write the updates as the exchange would hold them."""
    from safetensors.numpy import save_file

    draw = np.random.default_rng(0)
    for number in range(updates):
        array = draw.standard_normal(parameters, dtype=np.float32)
        save_file({"network.weight": array}, folder / f"{number}.safetensors")


def reference(folder: Path, updates: int) -> dict[str, float]:
    """The plain weighted mean, arrays already loaded."""
    from safetensors.numpy import load_file

    arrays = [load_file(folder / f"{n}.safetensors")["network.weight"] for n in range(updates)]
    weights = [1.0 + n for n in range(updates)]
    started = time.perf_counter()
    total = np.zeros_like(arrays[0])
    for weight, array in zip(weights, arrays, strict=True):
        total += np.float32(weight) * array
    total /= np.float32(sum(weights))
    return {"seconds": time.perf_counter() - started, "checksum": float(total[:1000].sum())}


def ours(folder: Path, updates: int) -> dict[str, float]:
    """Digest, shapes, finiteness, norm, then the streamed mean."""
    from strategies.bounds import Expectation
    from strategies.interface import THREADS, Admitted, weighted_mean
    from tasks.admission import check_file
    from tasks.exchange import file_digest

    paths = [folder / f"{n}.safetensors" for n in range(updates)]
    digests = [file_digest(path) for path in paths]
    idle = peak_bytes()
    started = time.perf_counter()
    shapes = {"network.weight": (int(os.environ["PARAMETERS"]),)}
    expected = Expectation(shapes=shapes, max_norm=1e9)
    with ThreadPoolExecutor(THREADS) as pool:  # as `tasks.admission.admit` does
        files = list(pool.map(lambda named: check_file(*named, expected), zip(paths, digests, strict=True)))
    admitted = [
        Admitted(site=f"site{number}", weight=1.0 + number, tensors=file) for number, file in enumerate(files)
    ]
    mean = weighted_mean(admitted, shapes)["network.weight"]
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "checksum": float(mean[:1000].sum()), "memory": peak_bytes() - idle}


def in_process(what: str, folder: Path, parameters: int, updates: int) -> dict[str, float]:
    """Run one side in a process of its own."""
    command = [sys.executable, __file__, "--side", what, "--folder", str(folder), "--updates", str(updates)]
    environment = os.environ | {"PARAMETERS": str(parameters)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Compare both sides pair by pair."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--parameters", type=int, default=25_000_000)
    parser.add_argument("--updates", type=int, default=8)
    parser.add_argument("--side", choices=["reference", "ours"])
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.side:
        side = reference if arguments.side == "reference" else ours
        print(json.dumps(side(arguments.folder, arguments.updates)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_updates(Path(folder), arguments.parameters, arguments.updates)
        pairs = []
        for _ in range(ROUNDS):
            sides = [
                in_process(s, Path(folder), arguments.parameters, arguments.updates)
                for s in ("reference", "ours")
            ]
            pairs.append(sides)
    update = 4 * arguments.parameters
    ratios = [b["seconds"] / a["seconds"] for a, b in pairs]
    memory = [b["memory"] / update for _, b in pairs]
    print(f"{arguments.updates} updates of {arguments.parameters:,} float32; load {os.getloadavg()[0]:.1f}")
    print(f"numpy weighted mean   {statistics.median(a['seconds'] for a, _ in pairs):.2f} s")
    print(f"admit and aggregate   {statistics.median(b['seconds'] for _, b in pairs):.2f} s")
    print(
        f"ratio                 {statistics.median(ratios):.2f} "
        f"(from {min(ratios):.2f} to {max(ratios):.2f}; goal < 2)"
    )
    print(f"peak memory           {max(memory):.2f} updates (goal < 3)")


if __name__ == "__main__":
    main()
