"""The coordinator alone, for a federation whose hospitals are elsewhere: `consilium up --coordinator`."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import typer

from consilium.airflow_home import OPERATOR, passwords_file
from consilium.nginx import command, write_coordinator_nginx
from consilium.output import home_folder, print_json, reporting_refusals, screen
from consilium.platform import Platform
from consilium.processes import require_free, wait_ready
from consilium.starting import START_SECONDS, Say, beginning, migrate, start_airflow, telling, write_airflow
from consilium.study import find_study
from consilium.transport import check_transport
from contracts.study import StudyProtocol, load_study
from tasks.home import CoordinatorHome
from tasks.settings import load_settings

PROXY = "nginx"


def up_coordinator(
    home: Path, studies: list[StudyProtocol], port: int | None = None, say: Say = lambda text: None
) -> Platform:
    """Register the studies and start the coordinator, behind nginx where its settings say so.

    Args:
        port: of the API server on loopback; the settings' own when not given.

    Raises:
        ConsiliumError: E104 it is up; E106 the port is in use; E109 a part did not start; E110 no nginx;
            E112, E113, E115, E116 from the settings and certificates; E101. Nothing runs then.
    """
    home = home.resolve()
    with beginning(home):
        platform = Platform(home, prepare_coordinator(home, studies, port), [])
        require_free(platform.port)
        platform.note()
        start_airflow(platform, studies, say)
        _open_door(platform, say)
    return platform


def prepare_coordinator(home: Path, studies: list[StudyProtocol], port: int | None = None) -> int:
    """Write keys and configurations of a coordinator and return the port of its API server.

    Raises:
        ConsiliumError: E101, E110, E112, E113, E115, E116.
    """
    from tasks.federation import coordinator_key, load_federation

    coordinator = CoordinatorHome(home / "coordinator")
    settings = load_settings(coordinator)
    address = check_transport(coordinator, settings)
    if port is not None:
        settings = settings.model_copy(update={"port": port})
    port = settings.port
    if settings.tls.mode == "proxy":
        command(coordinator.nginx)
        write_coordinator_nginx(coordinator, settings)
    elif settings.tls.mode == "server" and address is not None:
        port = settings.tls.listens_at(address.port)[1]
    coordinator_key(coordinator)
    # The number of hospitals sizes the executors: one that joins later must not wait for a restart.
    write_airflow(coordinator, studies, port, max(len(load_federation(coordinator).sites), 8))
    return port


def start(
    studies: list[str], federation: Path | None, port: int | None, prepare_only: bool, as_json: bool
) -> None:
    """Do what `consilium up --coordinator` asks for, and say how to go on."""
    if federation is not None:
        raise typer.BadParameter("--federation names hospitals of this machine, --coordinator starts none")
    with reporting_refusals(as_json):
        home = home_folder()
        protocols = [load_study(find_study(name)) for name in studies]
        if prepare_only:
            prepare_coordinator(home.resolve(), protocols, port)
            coordinator = CoordinatorHome(home.resolve() / "coordinator")
            migrate(coordinator)
            if as_json:
                print_json({"prepared": str(coordinator.root)})
            return
        with telling(as_json) as say:
            platform = up_coordinator(home, protocols, port, say)
        settings = load_settings(platform.coordinator)
        url = settings.url or platform.url
        if as_json:
            print_json({"url": url, "inside": platform.url, "home": str(platform.home), "sites": []})
            return
        screen.print(f"The coordinator is up at {url}; `consilium down` ends it.", highlight=False)
        screen.print(f"User {OPERATOR}; the passwords are in", highlight=False)
        screen.print(str(passwords_file(platform.coordinator)), soft_wrap=True, highlight=False)


def _open_door(platform: Platform, say: Say) -> None:
    """Start nginx, if it is what hospitals reach: last, when what is behind it works."""
    coordinator = platform.coordinator
    if load_settings(coordinator).tls.mode != "proxy":
        return
    say("starting nginx")
    proxy = platform.part(PROXY)
    proxy.start(command(coordinator.nginx), dict(os.environ), coordinator.nginx)
    wait_ready([proxy], lambda: _answers(coordinator), START_SECONDS, PROXY)


def _answers(coordinator: CoordinatorHome) -> bool:
    """Say whether something listens where hospitals are to ask."""
    settings = load_settings(coordinator)
    address = check_transport(coordinator, settings)
    assert address is not None
    host, port = settings.tls.listens_at(address.port)
    try:
        with socket.create_connection(("127.0.0.1" if host == "0.0.0.0" else host, port), timeout=1.0):
            return True
    except OSError:
        return False
