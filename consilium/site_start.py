"""`consilium site start` and `site tunnel`: a hospital's worker, and how it shows a certificate."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consilium.output import reporting_refusals, screen
from consilium.site_home import Home, Site, find_site
from contracts.errors import ConsiliumError

if TYPE_CHECKING:
    from consilium.address import Address
    from site_runtime.home import SiteHome

TUNNEL_PORT = 8444

Unit = Annotated[bool, typer.Option("--unit", help="Print a systemd unit that runs this; do nothing else.")]


def coordinator_address(home: SiteHome) -> Address:
    """Where the coordinator of a site answers, as its startup kit said.

    Raises:
        ConsiliumError: E806, the site has joined no federation; E113; E115, plain HTTP to another machine.
    """
    from consilium.address import parse_address, require_protected

    if not home.coordinator_url.exists():
        raise ConsiliumError(
            "E806", f"{home.coordinator_url} is missing: `consilium site join KIT` writes it"
        )
    return require_protected(parse_address(home.coordinator_url.read_text().strip()))


def start(
    site: Site = None,
    home: Home = None,
    tunnel_port: Annotated[
        int | None,
        typer.Option(help="Reach the coordinator through `consilium site tunnel` at this port of loopback."),
    ] = None,
    unit: Unit = False,
) -> None:
    """Run this hospital's worker until it is asked to end. It only asks; nothing listens.

    The coordinator's certificate is checked against the authority of the startup kit, and no other.
    """
    from consilium.airflow_home import base_url, write_site
    from consilium.systemd import site_unit
    from site_runtime.config import load_site

    with reporting_refusals():
        where = find_site(site, home)
        url = coordinator_address(where).url if tunnel_port is None else base_url(tunnel_port)
        if unit:
            typer.echo(site_unit(where.root.resolve(), _port_option(tunnel_port)), nl=False)
            return
        name = load_site(where).site
        root = where.root.resolve()
        write_site(type(where)(root), name, url)
        screen.print(f"{name}: working for {url}; end with Ctrl-C", highlight=False)
        # This process becomes the worker, so that signals reach it and its exit code is ours.
        command = [sys.executable, "-m", "consilium.site_worker", "--url", url, "--name", name, str(root)]
        os.execv(sys.executable, command)


def tunnel(
    site: Site = None,
    home: Home = None,
    certificate: Annotated[
        Path | None, typer.Option(help="What `consilium federation certificate` made; kept in the home.")
    ] = None,
    port: Annotated[int, typer.Option(help="Port of loopback.")] = TUNNEL_PORT,
    unit: Unit = False,
) -> None:
    """Run the tunnel that shows this hospital's certificate to the coordinator, until it is asked to end.

    Only a federation that asks hospitals for a certificate needs it. It listens on loopback alone.
    """
    from consilium.nginx import command, write_tunnel
    from consilium.systemd import site_unit
    from site_runtime.home import SiteHome

    with reporting_refusals():
        where = SiteHome(find_site(site, home).root.resolve())
        if unit:
            typer.echo(site_unit(where.root, ["--port", str(port)], "tunnel"), nl=False)
            return
        address = coordinator_address(where)
        if address.scheme != "https":
            raise ConsiliumError("E113", f"{address.url!r}: a tunnel needs https")
        run = command(where.tunnel)
        take_certificate(where, certificate)
        write_tunnel(where, address, port)
        screen.print(f"tunnel from 127.0.0.1:{port} to {address.url}; end with Ctrl-C", highlight=False)
        os.execv(run[0], run)


def take_certificate(home: SiteHome, given: Path | None) -> None:
    """Keep the certificate that the coordinator issued for this site's edge key.

    Raises:
        ConsiliumError: E116, it is missing, for another key, or its time is over.
    """
    from consilium.certificate_forms import check_key
    from durable.files import write_atomic

    source = given or home.certificate
    check_key(source, home.edge_key)
    if given is not None:
        write_atomic(home.certificate, given.read_bytes())


def _port_option(port: int | None) -> list[str]:
    return [] if port is None else ["--tunnel-port", str(port)]
