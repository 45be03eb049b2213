"""Orchestration overhead of a warm round with four hospitals in real Airflow, on one machine.

Run: .venv/bin/python benchmarks/rounds.py [--rounds 20] [--port 18300]

The reference is the same study in one process without Airflow (`simulate`), measured in the same run: what it
takes for a round is the round's own work (four hospitals one after the other). The overhead is the time from
the end of one round to the end of the next in Airflow, less that work. Goal 2.5 s, limit 3.5 s (median).
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from pathlib import Path

from consilium.platform import Platform
from consilium.processes import wait_until
from consilium.rest import Airflow
from consilium.simulation import prepare, run_intake, run_rounds
from consilium.up import down, up
from contracts.study import StudyProtocol, load_study, parse_study
from tasks.head import load_head

STUDIES = Path(__file__).resolve().parents[1] / "studies"
FEDERATION = STUDIES / "federations" / "heart-disease"
GOAL_SECONDS, LIMIT_SECONDS = 2.5, 3.5
COLD_ROUNDS = 3  # left out: the first tasks of each process import what they need


def tiny(rounds: int) -> StudyProtocol:
    """Heart disease with one optimiser step a round."""
    body = load_study(STUDIES / "heart-disease.yaml").body()
    training = {"steps": 1, "sample_rate": 0.5, "learning_rate": 0.1, "normalisation": "declared"}
    return parse_study({**body, "study": "heart-bench", "gates": [], "rounds": rounds, "training": training})


def in_process(rounds: int) -> float:
    """Seconds that the work of one round takes in one process."""
    with tempfile.TemporaryDirectory() as folder:
        simulation = prepare(Path(folder), tiny(rounds), FEDERATION)
        run_intake(simulation, lambda text: None)
        ends: list[float] = []
        run_rounds(simulation, lambda text: ends.append(time.perf_counter()))
        return statistics.median(b - a for a, b in itertools.pairwise(ends))


def in_airflow(rounds: int, port: int) -> list[float]:
    """Seconds from the end of each warm round to the end of the next."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        platform = up(home, FEDERATION, [tiny(rounds)], port, print)
        try:
            return measure(platform, rounds)
        finally:
            down(home)


def measure(platform: Platform, rounds: int) -> list[float]:
    """Run the study and read the ends of its rounds."""
    airflow = platform.airflow
    intake = airflow.trigger("heart-bench.intake")
    ended(airflow, "heart-bench.intake", intake)
    airflow.trigger("heart-bench.round")
    running = ("registered", "running")
    assert wait_until(
        lambda: load_head(platform.coordinator, "heart-bench").status not in running, 30.0 * rounds
    )
    ends = sorted(run.ended for run in airflow.runs("heart-bench.round") if run.ended)
    gaps = [(b - a).total_seconds() for a, b in itertools.pairwise(ends)]
    return gaps[COLD_ROUNDS:]


def ended(airflow: Airflow, dag: str, run: str) -> None:
    """Wait for a run."""
    assert wait_until(lambda: airflow.run(dag, run).state not in ("queued", "running"), 120)


def main() -> None:
    """Print the overhead and the machine's load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--port", type=int, default=18300)
    given = parser.parse_args()
    before = os.getloadavg()[0]
    work = in_process(given.rounds)
    gaps = in_airflow(given.rounds, given.port)
    median = statistics.median(gaps)
    print(f"load before {before:.1f}, after {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    print(f"round in Airflow: median {median:.2f} s, fastest {min(gaps):.2f} s, slowest {max(gaps):.2f} s")
    print(f"its work in one process: {work:.2f} s; ratio {median / work:.1f}")
    overhead = median - work
    verdict = "goal met" if overhead <= GOAL_SECONDS else "limit met" if overhead <= LIMIT_SECONDS else "over"
    print(f"overhead: {overhead:.2f} s (goal {GOAL_SECONDS}, limit {LIMIT_SECONDS}): {verdict}")


if __name__ == "__main__":
    main()
