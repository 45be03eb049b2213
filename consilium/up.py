"""`consilium up` and `down`: the coordinator's Airflow and one edge worker per local hospital."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from consilium.airflow_home import base_url, write_site
from consilium.output import Json, home_folder, print_json, reporting_refusals, screen
from consilium.platform import COMPONENTS, Platform, run_folder
from consilium.processes import end, only_one, parts_of, require_alive, require_free, wait_ready
from consilium.starting import START_SECONDS, Say, beginning, start_airflow, telling, write_airflow
from contracts.errors import ConsiliumError
from contracts.study import StudyProtocol, load_study
from site_runtime.home import SiteHome
from tasks.home import CoordinatorHome
from tasks.settings import load_settings

DEFAULT_PORT = 8080


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
    with beginning(home):
        require_free(port)
        say("enrolling the hospitals")
        platform = Platform(home, port, prepare(home, federation, studies, port))
        platform.note()
        platform.start_sites()  # the slowest first: they warm up while the database is made
        hospitals = platform.part("hospitals")
        start_airflow(platform, studies, say, hospitals)
        say("waiting for the hospitals")
        parts = [hospitals, *(platform.part(name) for name in COMPONENTS)]
        wait_ready(parts, lambda: all_present(platform), START_SECONDS, "a hospital's worker")
    return platform


def prepare(home: Path, federation: Path, studies: list[StudyProtocol], port: int) -> list[str]:
    """Write keys, registry, approvals and configurations; return the names of the local hospitals.

    Raises:
        ConsiliumError: E107, E103, E101, E304; E112, E114, the coordinator answers with TLS itself.
    """
    from consilium.local_sites import enrol_together
    from site_runtime.consent import approve_unless_declined
    from tasks.federation import load_federation

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
    members = load_federation(coordinator).sites
    write_airflow(coordinator, studies, port, len(members))
    sites = [s for s in members if (home / "sites" / s / "site.yaml").exists()]
    for site in sites:
        for protocol in studies:
            approve_unless_declined(SiteHome(home / "sites" / site), protocol)
        write_site(SiteHome(home / "sites" / site), site, base_url(port))
    return sites


def all_present(platform: Platform) -> bool:
    """Say whether every hospital's worker has reported.

    Raises:
        ConsiliumError: E109, one has ended.
    """
    from tasks.presence import present_sites

    for part in (platform.part(f"site-{site}") for site in platform.sites):
        if part.leader() is not None:
            require_alive(part)
    return set(platform.sites) <= present_sites(platform.coordinator)


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
        with telling(json_output) as say:
            platform = up(home_folder(), folder, protocols, port or DEFAULT_PORT, say)
        if json_output:
            print_json({"url": platform.url, "home": str(platform.home), "sites": platform.sites})
            return
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
