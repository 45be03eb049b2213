"""A home that is up: where it answers, and the processes that run in it."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from consilium.airflow_home import coordinator_environment, inside_url
from consilium.processes import Part, end, parts_of
from contracts.errors import ConsiliumError
from site_runtime.home import SiteHome
from tasks.home import CoordinatorHome
from tasks.settings import load_settings

if TYPE_CHECKING:
    from consilium.rest import Airflow

COMPONENTS = ("api-server", "scheduler", "dag-processor")
_SKIP_LOG_SERVER = {"scheduler": ["--skip-serve-logs"]}


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

    def note(self) -> None:
        """Keep what `current` reads."""
        note = {"port": self.port, "sites": self.sites}
        (run_folder(self.home) / "platform").write_text(json.dumps(note))

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
