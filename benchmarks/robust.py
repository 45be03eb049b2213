"""One malicious hospital of five against every aggregation, and what each aggregation costs without one.

Run: OMP_NUM_THREADS=1 PYTHONPATH=. .venv/bin/python benchmarks/robust.py [--mode none|patient] [--out X.svg]

Attacks: AUROC on 20,000 new honest patients minus that of five honest hospitals under the same method, and
the share of patients found at risk whom the trigger hides. Cost: AUROC minus that of the plain mean, nobody
malicious, for five hospitals alike and for one large hospital that holds most deaths. Seconds: combining
8 updates beside the plain mean of the same files, and measuring their influence.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import textwrap
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from contracts.errors import ConsiliumError
from tests.malicious import (
    ALIKE,
    ATTACKS,
    HONEST,
    ONE_LARGE,
    PRIVACY,
    Attack,
    Hospitals,
    Outcome,
    attacked,
    protocol_of,
)

METHODS: dict[str, dict[str, Any]] = {
    "mean": {"method": "mean"},
    "norm_bound": {"method": "norm_bound"},
    "norm_bound, factor 1": {"method": "norm_bound", "factor": 1.0},
    "median": {"method": "median"},
    "trimmed_mean": {"method": "trimmed_mean", "trim": 1},
    "krum": {"method": "krum", "malicious": 1, "keep": 1},
}
Outcomes = dict[str, Outcome | str]


def run(
    root: Path, method: str, mode: str, rounds: int, attack: Attack, hospitals: Hospitals
) -> Outcome | str:
    """Return what a run gave, or the number of the refusal that stopped it."""
    folder = Path(tempfile.mkdtemp(dir=root))
    try:
        return attacked(folder, protocol_of(METHODS[method], PRIVACY[mode], rounds), attack, hospitals)
    except ConsiliumError as error:
        return error.number


def attacks(root: Path, mode: str, rounds: int) -> dict[str, Outcomes]:
    """Run every attack against every method."""
    found: dict[str, Outcomes] = {}
    for method in METHODS:
        found[method] = {a.name: run(root, method, mode, rounds, a, ALIKE) for a in (HONEST, *ATTACKS)}
    return found


def show_attacks(found: dict[str, Outcomes], mode: str) -> None:
    """Print a line for each attack: AUROC lost or gained, and the backdoor's success."""
    print(f"\nprivacy {mode}: AUROC minus that of five honest hospitals (triggered patients missed)")
    print(f"{'':38s}" + "".join(f"{method:>22s}" for method in METHODS))
    for attack in (HONEST, *ATTACKS):
        cells = []
        for method in METHODS:
            honest, seen = found[method][HONEST.name], found[method][attack.name]
            if isinstance(seen, str) or isinstance(honest, str):
                cells.append(f"stopped by {seen}")
            elif attack is HONEST:
                cells.append(f"{seen.auroc:.4f} ({seen.backdoor:.2f})")
            else:
                cells.append(f"{seen.auroc - honest.auroc:+.4f} ({seen.backdoor:.2f})")
        print(f"{attack.name:38s}" + "".join(f"{cell:>22s}" for cell in cells))


def show_costs(root: Path, mode: str, rounds: int, runs: int) -> None:
    """Print what every method costs when nobody is malicious."""
    print(f"\nprivacy {mode}: AUROC without an attacker, mean of {runs} runs, and its difference from mean")
    for title, hospitals in (("alike", ALIKE), ("one large hospital holds most deaths", ONE_LARGE)):
        means = {}
        for method in METHODS:
            outcomes = [run(root, method, mode, rounds, HONEST, hospitals) for _ in range(runs)]
            means[method] = statistics.fmean(o.auroc for o in outcomes if isinstance(o, Outcome))
        cells = [f"{means[m]:.4f} ({means[m] - means['mean']:+.4f})" for m in METHODS]
        print(f"{title:38s}" + "".join(f"{cell:>22s}" for cell in cells))


def show_seconds(root: Path, parameters: int, updates: int = 8) -> None:
    """Print the seconds of every method and of the influence, beside the plain mean."""
    from safetensors.numpy import save_file

    from strategies.interface import Admitted
    from strategies.robust import combine
    from tasks.influence import measured
    from tasks.tensors import TensorFile

    draw, shapes, admitted = np.random.default_rng(0), {"network.weight": (parameters,)}, []
    for number in range(updates):
        path = root / f"{number}.safetensors"
        save_file({"network.weight": draw.standard_normal(parameters, dtype=np.float32)}, path)
        admitted.append(Admitted(f"site{number}", 1.0 + number, TensorFile(path)))
    print(f"\nseconds for {updates} updates of {parameters:,} float32 (times the plain mean)")
    print(f"{'':24s}{'combine':>18s}{'influence':>18s}")
    plain = None
    for method, aggregation in METHODS.items():
        protocol, taken = protocol_of(aggregation, PRIVACY["none"], 1), []
        for work in (combine, lambda p, u, s: measured(p, u, s)):
            started = time.perf_counter()
            work(protocol, admitted, shapes)
            taken.append(time.perf_counter() - started)
        plain = plain or taken[0]
        print(f"{method:24s}" + "".join(f"{seconds:>10.2f} ({seconds / plain:4.1f})" for seconds in taken))


def draw_attacks(found: dict[str, Outcomes], mode: str, path: Path) -> None:
    """Write a picture: AUROC of every method under every attack."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 4.6), layout="constrained")
    names = [attack.name for attack in (HONEST, *ATTACKS)]
    width = 0.8 / len(METHODS)
    for i, method in enumerate(METHODS):
        seen = [found[method][name] for name in names]
        heights = [outcome.auroc if isinstance(outcome, Outcome) else 0.0 for outcome in seen]
        axes.bar(np.arange(len(names)) + (i - len(METHODS) / 2 + 0.5) * width, heights, width, label=method)
    axes.axhline(0.5, color="grey", linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(names)), [textwrap.fill(name, 16) for name in names])
    axes.set_ylim(0.45, None)
    axes.set(ylabel="AUROC on new honest patients", title=f"One malicious hospital of five, privacy {mode}")
    axes.tick_params(axis="x", labelsize=8)
    figure.legend(ncols=6, fontsize=8, loc="outside lower center")
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    """Print the tables and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", choices=sorted(PRIVACY), help="both when not given")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--runs", type=int, default=3, help="of the costs without an attacker")
    parser.add_argument("--parameters", type=int, default=5_000_000)
    parser.add_argument("--out", type=Path, default=Path("robust.svg"), help="picture; one for each mode")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for mode in [options.mode] if options.mode else sorted(PRIVACY):
            found = attacks(root, mode, options.rounds)
            show_attacks(found, mode)
            picture = options.out.with_stem(f"{options.out.stem}-{mode}")
            draw_attacks(found, mode, picture)
            print(f"picture: {picture}")
            show_costs(root, mode, options.rounds, options.runs)
        show_seconds(root, options.parameters)


if __name__ == "__main__":
    main()
