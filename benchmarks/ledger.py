"""Appending to a ledger of 10,000 entries, against a bare write and fdatasync of the same bytes; opening it.

Run: .venv/bin/python benchmarks/ledger.py [--entries 10000] [--appends 200] [--folder .]

Ours signs the entry, writes it, waits for the disk and notes the head, all under the lock of the lineage. The
reference appends the same lines to a file of the same size in the same folder. Both take turns, append by
append. Goal: under 5 ms an append.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from contracts.signing import SigningKey
from privacy.accountant import Spend
from privacy.ledger import Ledger

WHO = {"officer": "Dr. B. Enchmark", "reason": "measured"}


def filled(path: Path, key: SigningKey, entries: int) -> None:
    """Write a ledger of so many entries, in one go: half of them reservations, half commits."""
    ledger = Ledger(path, "ash", "ash", key)
    chain = ledger._chain
    pairs = [Spend(0.01 * (1 + i % 10), 1.0 + 0.1 * (i % 5), 10) for i in range(50)]
    with chain.locked():
        drafts = []
        for i in range(entries - 1):
            fields = {"kind": "commit"}
            if i % 2 == 0:
                spend = pairs[i // 2 % 50]
                fields = {
                    "kind": "reserve",
                    "mechanism": "subsampled-gaussian",
                    "sample_rate": spend.sample_rate,
                    "noise_multiplier": spend.noise_multiplier,
                    "steps": spend.steps,
                }
            opening = ledger._opening(study="demo", plan=f"{i // 2:064x}", purpose="training")
            drafts.append((fields, opening))
        chain.append(*drafts)


def seconds_of(action: object, *arguments: object) -> float:
    """Run a call and return how long it took."""
    started = time.perf_counter()
    action(*arguments)  # type: ignore[operator]
    return time.perf_counter() - started


def append(ledger: Ledger) -> None:
    """One entry and its place in the chain, without composing an epsilon."""
    with ledger._chain.locked():
        ledger._chain.append(ledger._write_off(Spend(1.0, 9.0, 1), study=None, **WHO))


def bare_append(file: int, line: bytes) -> None:
    """The least that any durable append does."""
    os.write(file, line)
    os.fdatasync(file)


def main() -> None:
    """Fill, open, and append in turn."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--entries", type=int, default=10_000)
    parser.add_argument("--appends", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="Where to write; a temporary folder by default.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path, key = Path(folder) / "ash.jsonl", SigningKey.generate("ash")
        filled(path, key, arguments.entries)
        bare = os.open(Path(folder) / "bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(bare, path.read_bytes())
        os.fsync(bare)
        busy = time.process_time()
        opening = seconds_of(Ledger, path, "ash", "ash", key)
        busy = time.process_time() - busy
        ledger = Ledger(path, "ash", "ash", key)
        ours, reference = [], []
        for _ in range(arguments.appends):
            size = path.stat().st_size
            ours.append(seconds_of(append, ledger))
            with open(path, "rb") as file:
                file.seek(size)
                line = file.read()
            reference.append(seconds_of(bare_append, bare, line))
        os.close(bare)
        ledger.verify()
    print(f"{arguments.entries:,} entries, {arguments.appends} appends; load {os.getloadavg()[0]:.1f}")
    for name, times in (("write + fdatasync", reference), ("append", ours)):
        print(f"{name:<20}  {1e3 * statistics.median(times):.2f} ms (worst {1e3 * max(times):.2f} ms)")
    ratio = statistics.median(ours) / statistics.median(reference)
    print(f"{'ratio':<20}  {ratio:.1f}; {len(line)} bytes an entry; goal of an append < 5 ms")
    print(f"{'opening':<20}  {opening:.2f} s ({busy:.2f} s of one core: every signature is verified)")


if __name__ == "__main__":
    main()
