"""`consilium federation init`: a coordinator's settings, keys, certificates, nginx and systemd units."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from consilium.output import Json, home_folder, print_json, reporting_refusals, screen
from contracts.errors import ConsiliumError

Mode = Literal["proxy", "server", "none"]


@dataclass(frozen=True)
class OwnCertificate:
    """A certificate that somebody else made."""

    certificate: Path
    key: Path
    ca: Path | None


def initialise(home: Path, wanted: dict[str, Any], own: OwnCertificate | None = None) -> dict[str, Any]:
    """Set a coordinator up, or complete what is there; keys are made once and never replaced.

    Args:
        home: the folder that `CONSILIUM_HOME` names.
        wanted: fields of `settings.yaml` by their dotted names; None keeps what is set, or the default.

    Returns:
        what there is now, for people and machines.

    Raises:
        ConsiliumError: E112, E113, E115, E116; E114, the federation was set up with another value.
    """
    from consilium.airflow_home import make_api_key
    from consilium.certificates import make_client_authority, make_server, take_server
    from consilium.nginx import write_coordinator_nginx
    from consilium.platform import COMPONENTS, component_command
    from consilium.systemd import write_units
    from consilium.transport import check_settings, check_transport
    from durable.files import locked
    from tasks.federation import coordinator_key
    from tasks.home import CoordinatorHome
    from tasks.settings import save_settings

    coordinator = CoordinatorHome(home.resolve() / "coordinator")
    with locked(coordinator.root / ".init.lock"):
        settings = _settings(coordinator, wanted)
        address = check_settings(settings)
        if address is None:
            raise ConsiliumError("E113", "field 'url': none, expected --url such as https://fed.example:8443")
        certificate = "none"
        if settings.tls.mode != "none":
            if own is not None:
                take_server(coordinator, own.certificate, own.key, own.ca, address.host)
                certificate = "yours"
            elif not (coordinator.tls / "server.key").exists() or (coordinator.tls / "ca.key").exists():
                certificate = make_server(coordinator, address.host, settings.federation)
            check_transport(coordinator, settings)
        if settings.tls.client_certificates:
            make_client_authority(coordinator, settings.federation)
        public = coordinator_key(coordinator).public
        make_api_key(coordinator)
        save_settings(coordinator, settings)
        if settings.tls.mode == "proxy":
            write_coordinator_nginx(coordinator, settings)
        commands = {name: component_command(coordinator, name) for name in COMPONENTS}
        units = write_units(coordinator, settings, commands)
    return {
        "federation": settings.federation,
        "url": address.url,
        "tls": settings.tls.mode,
        "client_certificates": settings.tls.client_certificates,
        "certificate": certificate,
        "coordinator_key": public,
        "settings": str(coordinator.settings),
        "nginx": str(coordinator.nginx / "nginx.conf") if settings.tls.mode == "proxy" else None,
        "units": [str(path) for path in units],
    }


def _settings(coordinator: Any, wanted: dict[str, Any]) -> Any:
    """The settings that were wanted, on top of those that there are."""
    from consilium.address import parse_address
    from tasks.settings import load_settings, parse_settings

    known = coordinator.settings.exists()
    old = load_settings(coordinator)
    value = old.model_dump(mode="json", exclude_unset=True)
    if wanted.get("url") is not None:
        wanted = {**wanted, "url": parse_address(wanted["url"]).url}
        if wanted.get("tls.mode") is None and not known:
            wanted["tls.mode"] = "none" if wanted["url"].startswith("http:") else "proxy"
    for name, new in wanted.items():
        if new is None:
            continue
        section, _, field = name.rpartition(".")
        part, source = (value.setdefault(section, {}), old.tls) if section else (value, old)
        if known and getattr(source, field) != new:
            raise ConsiliumError(
                "E114",
                f"field {name!r}: {new!r}, and {coordinator.settings} has {getattr(source, field)!r}; "
                "to change it, change that file and run `consilium federation init` without options",
            )
        part[field] = new
    return parse_settings(value, coordinator.settings)


def init(
    url: Annotated[
        str | None, typer.Option(help="As hospitals reach the coordinator: https://fed.example:8443")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the federation.")] = None,
    database: Annotated[
        str | None, typer.Option(help="SQLAlchemy URL of Airflow's database; SQLite when not given.")
    ] = None,
    tls: Annotated[
        Mode | None,
        typer.Option(
            help="proxy: nginx answers TLS; server: the API server itself; none: loopback only. "
            "proxy where the URL is https."
        ),
    ] = None,
    client_certificates: Annotated[
        bool, typer.Option("--client-certificates", help="Ask hospitals for a certificate as well.")
    ] = False,
    certificate: Annotated[
        Path | None, typer.Option(help="A server certificate of your own (PEM, with its chain).")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Its private key (PEM, without a password).")] = None,
    ca: Annotated[
        Path | None, typer.Option(help="Its authority, when hospitals do not trust that anyhow.")
    ] = None,
    listen: Annotated[
        str | None, typer.Option(help="Address and port of TLS on this machine, as in 192.0.2.7:8443.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port of the API server on loopback.")] = None,
    json: Json = False,
) -> None:
    """Set up a federation's coordinator: settings, keys, certificates, nginx and systemd units.

    Run again it completes what is missing, renews a certificate that ends soon, and changes no key.
    """
    if (certificate is None) != (key is None) or (ca is not None and certificate is None):
        raise typer.BadParameter("--certificate and --key go together, and --ca with them")
    with reporting_refusals(json):
        wanted = {
            "federation": name,
            "url": url,
            "port": port,
            "database": database,
            "tls.mode": tls,
            "tls.client_certificates": client_certificates or None,
            "tls.listen": listen,
        }
        own = OwnCertificate(certificate, key, ca) if certificate and key else None
        facts = initialise(home_folder(), wanted, own)
        if json:
            print_json(facts)
        else:
            _say(facts)


def _say(facts: dict[str, Any]) -> None:
    certificate = {
        "none": "no TLS: for this machine only",
        "made": "TLS with a new certificate of the federation's own authority",
        "renewed": "TLS with a renewed certificate of the federation's own authority",
        "kept": "TLS with the certificate that was there",
        "yours": "TLS with your certificate",
    }[facts["certificate"]]
    screen.print(
        f"Federation [bold]{facts['federation']}[/] at {facts['url']}: {certificate}.", highlight=False
    )
    rows = [("settings", facts["settings"]), ("nginx", facts["nginx"]), ("systemd", facts["units"][0])]
    for label, path in rows:
        if path is not None:
            shown = Path(path).parent if label == "systemd" else path
            screen.print(f"  {label:9} {shown}", soft_wrap=True, highlight=False)
    steps = [
        "consilium up --coordinator STUDY   starts it here; the systemd units do the same at every boot",
        "consilium federation approve REQUEST   lets a hospital in and makes its startup kit",
    ]
    if facts["client_certificates"]:
        steps.append("consilium federation certificate SITE   makes the certificate that it must show")
    screen.print("\nNext:", highlight=False)
    for step in steps:
        screen.print(f"  {step}", soft_wrap=True, highlight=False)
