"""Accounting of a long ledger: 10,000 entries with 50 distinct (sample rate, noise multiplier).

Run: .venv/bin/python benchmarks/accounting.py [--entries 10000] [--distinct 50] [--reference-distinct 10]

Each repetition runs in a process of its own with cold caches. Ours is `privacy.accountant.epsilon`: PRV,
confirmed by RDP. The reference is Opacus's PRV accountant on fewer distinct pairs, since it takes long; both
are timed on those, and the ratio is of these two times.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
import warnings

DELTA = 1e-5
ROUNDS = 3
ONE_CORE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def ledger(entries: int, distinct: int) -> list[tuple[float, float]]:
    """Return a (sample rate, noise multiplier) an entry; each entry is one step."""
    draw = random.Random(1)
    pairs = [(round(draw.uniform(0.005, 0.1), 4), round(draw.uniform(0.8, 3.0), 3)) for _ in range(distinct)]
    return [pairs[i % distinct] for i in range(entries)]


def ours(entries: list[tuple[float, float]]) -> dict[str, float]:
    """Compose with the accountant of record."""
    from privacy.accountant import Spend, epsilon

    spends = [Spend(q, sigma, 1) for q, sigma in entries]
    started = time.perf_counter()
    found = epsilon(spends, DELTA)
    return {"seconds": time.perf_counter() - started, "epsilon": found}


def opacus(entries: list[tuple[float, float]]) -> dict[str, float]:
    """Compose with Opacus, whose history holds a triple a pair."""
    warnings.simplefilter("ignore")
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(sigma, q, entries.count((q, sigma))) for q, sigma in sorted(set(entries))]
    started = time.perf_counter()
    found = float(accountant.get_epsilon(DELTA))
    return {"seconds": time.perf_counter() - started, "epsilon": found}


def in_process(side: str, entries: int, distinct: int) -> dict[str, float]:
    """Run one side in a process of its own, on one core."""
    command = [
        sys.executable,
        __file__,
        "--side",
        side,
        "--entries",
        str(entries),
        "--distinct",
        str(distinct),
    ]
    environment = os.environ | ONE_CORE | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Time ours on the whole ledger, then both on the reference's share of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--entries", type=int, default=10_000)
    parser.add_argument("--distinct", type=int, default=50)
    parser.add_argument("--reference-distinct", type=int, default=10)
    parser.add_argument("--side", choices=["ours", "opacus"])
    arguments = parser.parse_args()
    if arguments.side:
        side = ours if arguments.side == "ours" else opacus
        print(json.dumps(side(ledger(arguments.entries, arguments.distinct))))
        return
    whole = [in_process("ours", arguments.entries, arguments.distinct) for _ in range(ROUNDS)]
    few = arguments.reference_distinct
    share = arguments.entries * few // arguments.distinct
    ratios, reference, same = [], [], []
    for _ in range(ROUNDS):
        same.append(in_process("ours", share, few))
        reference.append(in_process("opacus", share, few))
        ratios.append(same[-1]["seconds"] / reference[-1]["seconds"])
    seconds = [run["seconds"] for run in whole]
    spread = f"from {min(seconds):.2f} to {max(seconds):.2f}; goal < 2"
    print(f"load {os.getloadavg()[0]:.1f}, one core, cold caches, delta {DELTA:g}")
    print(
        f"ours, {arguments.entries:,} entries, {arguments.distinct} pairs   "
        f"{statistics.median(seconds):.2f} s ({spread})   epsilon {whole[0]['epsilon']:.4f}"
    )
    for name, runs in (("ours", same), ("Opacus PRV", reference)):
        print(
            f"{name}, {share:,} entries, {few} pairs   {statistics.median(r['seconds'] for r in runs):.2f} s"
            f"   epsilon {runs[0]['epsilon']:.4f}"
        )
    print(f"ratio   {statistics.median(ratios):.3f} (from {min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
