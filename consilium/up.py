"""Start and end a home: the coordinator's Airflow and one edge worker per local hospital."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consilium.airflow_home import (
    base_url,
    coordinator_environment,
    inside_url,
    write_coordinator,
    write_site,
)
from consilium.database import check_database
from consilium.output import Json, home_folder, print_json, reporting_refusals, screen
from consilium.processes import Part, end, only_one, parts_of, require_alive, require_free, wait_ready
from contracts.errors import ConsiliumError
from contracts.study import StudyProtocol, load_study
from site_runtime.home import SiteHome
from tasks.home import CoordinatorHome
from tasks.settings import load_settings

if TYPE_CHECKING:
    from consilium.rest import Airflow

START_SECONDS = 180.0
DEFAULT_PORT = 8080
COMPONENTS = ("api-server", "scheduler", "dag-processor")
_SKIP_LOG_SERVER = {"scheduler": ["--skip-serve-logs"]}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Platform:
    """A home that is up (or was): where it is, where it answers, which hospitals run on this machine."""

    home: Path
    port: int
    sites: list[str]

    @property
    def coordinator(self) -> CoordinatorHome:
        """The coordinator's folder."""
        return CoordinatorHome(self.home / "coordinator")

    @property
    def url(self) -> str:
        """Where the coordinator answers on this machine."""
        return inside_url(self.coordinator, self.port)

    @property
    def airflow(self) -> Airflow:
        """Airflow's API as the operator."""
        from consilium.rest import Airflow

        return Airflow(self.url, self.coordinator)

    def site(self, site: str) -> SiteHome:
        """The folder of a local hospital."""
        return SiteHome(self.home / "sites" / site)

    def part(self, name: str) -> Part:
        """A supervised process: `api-server`, `scheduler`, `dag-processor`, or `site-<name>`."""
        return Part(name, run_folder(self.home))

    def start_sites(self) -> None:
        """Start all local hospitals at once, which share one warm-up.

        Raises:
            ConsiliumError: E104, they run.
        """
        self.part("hospitals").start(self._worker(self.sites), dict(os.environ), self.home)

    def start_site(self, site: str) -> None:
        """Start one hospital's worker.

        Raises:
            ConsiliumError: E104, it runs.
        """
        self.part(f"site-{site}").start(self._worker([site]), dict(os.environ), self.home)

    def _worker(self, sites: list[str]) -> list[str]:
        options = ["--url", self.url, "--run", str(run_folder(self.home))]
        # Of this home a hospital reaches its own folder, and the public data sets fetched into `data`.
        options += ["--hide", str(self.home), "--keep", str(self.home / "data")]
        homes = [str(self.site(site).root) for site in sites]
        return [sys.executable, "-m", "consilium.site_worker", *options, *homes]

    def stop_site(self, site: str) -> None:
        """Ask a hospital's worker to end, and end it."""
        end([self.part(f"site-{site}")])

    def kill_site(self, site: str) -> None:
        """Kill a hospital's worker with everything it runs, as a power failure would."""
        end([self.part(f"site-{site}")], force=True)

    def start_component(self, name: str) -> None:
        """Start one of the coordinator's `COMPONENTS`.

        Raises:
            ConsiliumError: E104, it runs.
        """
        command = component_command(self.coordinator, name)
        self.part(name).start(command, coordinator_environment(self.coordinator), self.coordinator.root)

    def revive(self) -> list[str]:
        """Start again every part that does not run, for whatever reason, and return their names.

        What such a part left running is ended first, as a service manager does with a control group.
        """
        ended = [name for name in COMPONENTS if not self.part(name).alive()]
        gone = [site for site in self.sites if not self.part(f"site-{site}").alive()]
        end([self.part(name) for name in (*ended, *(f"site-{site}" for site in gone))], force=True)
        for name in ended:
            self.start_component(name)
        for site in gone:
            self.start_site(site)
        return [*ended, *(f"site-{site}" for site in gone)]


def run_folder(home: Path) -> Path:
    """Records and logs of the processes of a home."""
    return home / "run"


def component_command(coordinator: CoordinatorHome, name: str) -> list[str]:
    """What runs as one of `COMPONENTS`."""
    proxied = name == "api-server" and load_settings(coordinator).tls.mode == "proxy"
    options = ["--proxy-headers"] if proxied else _SKIP_LOG_SERVER.get(name, [])
    return [sys.executable, "-m", "airflow", name, *options]


def up(
    home: Path,
    federation: Path,
    studies: list[StudyProtocol],
    port: int,
    say: Say = lambda text: None,
) -> Platform:
    """Enrol the hospitals of a federation's folder, register the studies, and start everything.

    Args:
        federation: folder of `<site>.yaml` files.
        studies: registered here and approved at every one of these hospitals.
        say: told what happens next, for a progress display.

    Raises:
        ConsiliumError: E104 it is up; E106 the port is in use; E107 no hospital in the folder; E109 a part
            did not start; E118 the database does not answer; E103, E101, E112 and E304 from the files
            themselves. Nothing runs then.
    """
    home = home.resolve()
    run = run_folder(home)
    with only_one(run):
        running = [part.name for part in parts_of(run) if part.alive()]
        if running:
            raise ConsiliumError("E104", f"{home}: {', '.join(running)}; `consilium down` ends it")
        end(parts_of(run))  # what a crash left
        require_free(port)
        say("enrolling the hospitals")
        sites = prepare(home, federation, studies, port)
        platform = Platform(home, port, sites)
        (run / "platform").write_text(json.dumps({"port": port, "sites": sites}))
        try:
            with ends_on_signal():
                _start(platform, studies, say)
        except BaseException:
            end(parts_of(run))
            raise
    return platform


def prepare(home: Path, federation: Path, studies: list[StudyProtocol], port: int) -> list[str]:
    """Write keys, registry, approvals and configurations; return the names of the local hospitals.

    Raises:
        ConsiliumError: E107, E103, E101, E304; E112, E114, the coordinator answers with TLS itself.
    """
    from consilium.local_sites import enrol_together
    from site_runtime.consent import approve_unless_declined
    from tasks.federation import load_federation
    from tasks.head import load_protocol, register_study, registered_studies

    coordinator = CoordinatorHome(home / "coordinator")
    if load_settings(coordinator).tls.mode == "server":
        raise ConsiliumError(
            "E114",
            "tls.mode 'server': hospitals beside the coordinator speak to loopback without TLS; "
            "use `consilium up --coordinator` and `consilium site start`",
        )
    files = sorted(federation.glob("*.yaml"))
    if not files:
        raise ConsiliumError("E107", f"{federation}: no <site>.yaml in it")
    enrol_together(coordinator, home / "sites", files)
    for protocol in studies:
        register_study(coordinator, protocol)
    sites = [s for s in load_federation(coordinator).sites if (home / "sites" / s / "site.yaml").exists()]
    for site in sites:
        for protocol in studies:
            approve_unless_declined(SiteHome(home / "sites" / site), protocol)
        write_site(SiteHome(home / "sites" / site), site, base_url(port))
    deadlines = [load_protocol(coordinator, s).deadline_seconds for s in registered_studies(coordinator)]
    write_coordinator(coordinator, port, max(deadlines, default=60), len(load_federation(coordinator).sites))
    return sites


def _start(platform: Platform, studies: list[StudyProtocol], say: Say) -> None:
    """Start the parts, the slowest first, and wait until they work together."""
    coordinator = platform.coordinator
    platform.start_sites()  # which warm up while the database is made
    say("preparing Airflow's database")
    migrate(coordinator, coordinator_environment(coordinator))
    say("starting Airflow")
    together = [platform.part("hospitals"), *(platform.part(name) for name in COMPONENTS)]
    coordinator.gate_state.unlink(missing_ok=True)
    for name in COMPONENTS:
        platform.start_component(name)
    wait_ready(together, lambda: components_work(platform), START_SECONDS, "Airflow")
    say("reading the DAGs")
    wait_ready(together, lambda: dags_of(studies) <= set(platform.airflow.dags()), START_SECONDS, "the DAGs")
    say("waiting for the hospitals")
    wait_ready(together, lambda: _all_present(platform), START_SECONDS, "a hospital's worker")


def migrate(coordinator: CoordinatorHome, environment: dict[str, str]) -> None:
    """Make or update Airflow's database.

    Raises:
        ConsiliumError: E109; E118, the database does not answer.
    """
    check_database(coordinator)
    command = [sys.executable, "-m", "airflow", "db", "migrate"]
    done = subprocess.run(
        command, env=environment, cwd=coordinator.root, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise ConsiliumError("E109", f"airflow db migrate:\n{(done.stdout + done.stderr)[-2000:]}")
    if load_settings(coordinator).database is not None:
        return
    # Readers and the writer do not wait for each other then; the setting stays in the file.
    with contextlib.closing(sqlite3.connect(coordinator.airflow / "airflow.db")) as database:
        database.execute("PRAGMA journal_mode=WAL")


def dags_of(studies: list[StudyProtocol]) -> set[str]:
    """Ids of the DAGs that studies bring."""
    return {f"{s.study}.{kind}" for s in studies for kind in ("intake", "round", "release")}


def components_work(platform: Platform) -> bool:
    """Say whether every part of the coordinator's Airflow is healthy."""
    health = platform.airflow.health()
    names = ("metadatabase", "scheduler", "dag_processor")
    healthy = bool(health) and all(health.get(name) == "healthy" for name in names)
    return healthy and platform.coordinator.gate_state.exists()  # the gate has proved that it stands


def _all_present(platform: Platform) -> bool:
    from tasks.presence import present_sites

    for part in (platform.part(f"site-{site}") for site in platform.sites):
        if part.leader() is not None:
            require_alive(part)
    return set(platform.sites) <= present_sites(platform.coordinator)


def current(home: Path) -> Platform:
    """The platform that is up in a home.

    Raises:
        ConsiliumError: E105, nothing is up there.
    """
    home = home.resolve()
    run = run_folder(home)
    if not any(part.alive() for part in parts_of(run)):
        raise ConsiliumError("E105", f"{home}")
    record = json.loads((run / "platform").read_text())
    return Platform(home, record["port"], record["sites"])


def down(home: Path) -> list[str]:
    """End everything that `up` started in a home and return the names of the parts.

    Raises:
        ConsiliumError: E105, nothing is up.
    """
    run = run_folder(home.resolve())
    if not run.is_dir() or not parts_of(run):
        raise ConsiliumError("E105", f"{home}")
    with only_one(run):
        parts = parts_of(run)
        end(parts)
    return [part.name for part in parts]


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


up_app = typer.Typer(add_completion=False)
down_app = typer.Typer(add_completion=False)


@up_app.command()
def up_command(
    studies: Annotated[
        list[str] | None, typer.Argument(help="Study files, or names of studies that ship.")
    ] = None,
    federation: Annotated[
        Path | None, typer.Option(help="Folder of site.yaml files; the first study's own when left out.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port of the coordinator on this machine; 8080 unless settings differ.")
    ] = None,
    coordinator: Annotated[
        bool, typer.Option("--coordinator", help="The coordinator alone: its hospitals are elsewhere.")
    ] = False,
    prepare_only: Annotated[
        bool, typer.Option("--prepare-only", help="Write what systemd units need, and start nothing.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Start the coordinator and the hospitals of a federation on this machine."""
    if coordinator or prepare_only:
        from consilium.coordinator import start

        start(studies or [], federation, port, prepare_only, json_output)
        return
    from consilium.airflow_home import OPERATOR, password, passwords_file, sign_off_roles
    from consilium.study import find_federation, find_study

    with reporting_refusals(json_output):
        names = studies or ["icu-mortality-demo"]
        protocols = [load_study(find_study(name)) for name in names]
        folder = find_federation(protocols[0].study, federation)
        if json_output:
            platform = up(home_folder(), folder, protocols, port or DEFAULT_PORT)
            print_json({"url": platform.url, "home": str(platform.home), "sites": platform.sites})
            return
        with screen.status("starting") as status:
            platform = up(
                home_folder(), folder, protocols, port or DEFAULT_PORT, lambda text: status.update(text)
            )
        screen.print(f"Consilium is up at {platform.url} with {', '.join(platform.sites)}.")
        screen.print(f"User {OPERATOR}, password {password(platform.coordinator, OPERATOR)}")
        roles = ", ".join(sign_off_roles(platform.coordinator))
        screen.print(f"Who signs off releases ({roles}) finds the password in", highlight=False)
        screen.print(str(passwords_file(platform.coordinator)), soft_wrap=True, highlight=False)


@down_app.command()
def down_command(json_output: Json = False) -> None:
    """End everything that `up` started."""
    with reporting_refusals(json_output):
        ended = down(home_folder())
        if json_output:
            print_json({"ended": ended})
        else:
            screen.print(f"Ended {', '.join(ended)}.")
