"""How a home is started, with hospitals beside the coordinator or without: once, wholly, or not at all."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from consilium.airflow_home import coordinator_environment, write_coordinator
from consilium.database import check_database
from consilium.output import screen
from consilium.platform import COMPONENTS, Platform, run_folder
from consilium.processes import Part, end, only_one, parts_of, wait_ready
from contracts.errors import ConsiliumError
from contracts.study import StudyProtocol
from tasks.head import load_protocol, register_study, registered_studies
from tasks.home import CoordinatorHome

START_SECONDS = 180.0

Say = Callable[[str], None]


@contextlib.contextmanager
def telling(as_json: bool) -> Iterator[Say]:
    """Show a person what happens next while a home is started; a machine is told nothing."""
    if as_json:
        yield lambda text: None
        return
    with screen.status("starting") as status:
        yield status.update


@contextlib.contextmanager
def beginning(home: Path) -> Iterator[None]:
    """Hold a home in which nothing runs. Should this block fail, whatever it started is ended again.

    Raises:
        ConsiliumError: E104, it is up, or is being started or ended.
    """
    run = run_folder(home)
    with only_one(run):
        running = [part.name for part in parts_of(run) if part.alive()]
        if running:
            raise ConsiliumError("E104", f"{home}: {', '.join(running)}; `consilium down` ends it")
        end(parts_of(run))  # what a crash left
        try:
            with ends_on_signal():
                yield
        except BaseException:
            end(parts_of(run))
            raise


@contextlib.contextmanager
def ends_on_signal() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end this block as Ctrl-C does, so that what it started is ended too."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        before = {name: signal.signal(name, interrupt) for name in (signal.SIGTERM, signal.SIGHUP)}
    except ValueError:  # not in the main thread: the caller sees to signals
        yield
        return
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def write_airflow(coordinator: CoordinatorHome, studies: list[StudyProtocol], port: int, sites: int) -> None:
    """Register the studies and write the coordinator's configuration for all that are registered.

    Args:
        sites: how many hospitals the executors are to serve at once.

    Raises:
        ConsiliumError: E101, E112, E113, E116.
    """
    for protocol in studies:
        register_study(coordinator, protocol)
    deadlines = [load_protocol(coordinator, s).deadline_seconds for s in registered_studies(coordinator)]
    write_coordinator(coordinator, port, max(deadlines, default=60), sites)


def start_airflow(platform: Platform, studies: list[StudyProtocol], say: Say, *beside: Part) -> None:
    """Start the coordinator's Airflow and wait until it works and knows the DAGs of the studies.

    Args:
        beside: parts that were started before, and must live meanwhile.

    Raises:
        ConsiliumError: E109, a part did not start; E118, the database does not answer.
    """
    coordinator = platform.coordinator
    say("preparing Airflow's database")
    migrate(coordinator)
    say("starting Airflow")
    parts = [*beside, *(platform.part(name) for name in COMPONENTS)]
    coordinator.gate_state.unlink(missing_ok=True)
    for name in COMPONENTS:
        platform.start_component(name)
    wait_ready(parts, lambda: components_work(platform), START_SECONDS, "Airflow")
    say("reading the DAGs")
    wait_ready(parts, lambda: dags_of(studies) <= set(platform.airflow.dags()), START_SECONDS, "the DAGs")


def migrate(coordinator: CoordinatorHome) -> None:
    """Make or update Airflow's database.

    Raises:
        ConsiliumError: E109; E118, the database does not answer.
    """
    check_database(coordinator)
    command = [sys.executable, "-m", "airflow", "db", "migrate"]
    environment = coordinator_environment(coordinator)
    done = subprocess.run(
        command, env=environment, cwd=coordinator.root, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise ConsiliumError("E109", f"airflow db migrate:\n{(done.stdout + done.stderr)[-2000:]}")


def dags_of(studies: list[StudyProtocol]) -> set[str]:
    """Ids of the DAGs that studies bring."""
    return {f"{s.study}.{kind}" for s in studies for kind in ("intake", "round", "release")}


def components_work(platform: Platform) -> bool:
    """Say whether every part of the coordinator's Airflow is healthy."""
    health = platform.airflow.health()
    names = ("metadatabase", "scheduler", "dag_processor")
    healthy = bool(health) and all(health.get(name) == "healthy" for name in names)
    return healthy and platform.coordinator.gate_state.exists()  # the gate has proved that it stands
