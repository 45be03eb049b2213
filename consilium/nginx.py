"""nginx before the coordinator, and as the loopback tunnel of a hospital that shows a certificate."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import psutil

from consilium.address import Address, parse_address
from consilium.templates import fill
from contracts.errors import ConsiliumError
from durable.files import write_atomic
from site_runtime.home import SiteHome
from tasks.home import CoordinatorHome
from tasks.settings import Settings

STALL_SECONDS = 15  # between two pieces of a request
CONNECTIONS = 256  # of one address at once; hospitals may share one

# Where a distribution keeps its authorities, for a federation whose certificate comes from a public one.
_PUBLIC_AUTHORITIES = (
    Path("/etc/ssl/certs/ca-certificates.crt"),
    Path("/etc/pki/tls/certs/ca-bundle.crt"),
    Path("/etc/ssl/cert.pem"),
)

_CLIENT_CERTIFICATES = """
        # Hospitals show a certificate of the federation; people sign in without one.
        ssl_verify_client optional;
        ssl_verify_depth 1;
        ssl_client_certificate ../keys/tls/client-ca.pem;
        ssl_crl ../keys/tls/client-crl.pem;
"""
_SITE_ONLY = """            if ($ssl_client_verify != SUCCESS) {
                return 403;
            }
"""


def find_nginx() -> str:
    """Path of the nginx program.

    Raises:
        ConsiliumError: E110.
    """
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise ConsiliumError("E110", "no program nginx: on Debian `apt-get install nginx-light`")
    return found


def command(folder: Path) -> list[str]:
    """Run the nginx of a folder in the foreground."""
    where = ["-p", str(folder), "-c", str(folder / "nginx.conf")]
    return [find_nginx(), *where, "-e", "stderr", "-g", "daemon off;"]


def coordinator_configuration(settings: Settings, stall_seconds: int = STALL_SECONDS) -> str:
    """The configuration that ends TLS for the API server on loopback.

    Raises:
        ConsiliumError: E113, the settings name no valid URL.
    """
    address = parse_address(settings.url or "")
    asked = settings.tls.client_certificates
    return fill(
        "coordinator.nginx",
        listen=settings.tls.listen or str(address.port),
        host=address.bracketed,
        authority=address.authority,
        port=settings.port,
        quota_bytes=settings.exchange.quota_bytes,
        stall_seconds=stall_seconds,
        connections=CONNECTIONS,
        client_certificates=_CLIENT_CERTIFICATES if asked else "",
        site_only=_SITE_ONLY if asked else "",
    )


def write_coordinator_nginx(home: CoordinatorHome, settings: Settings) -> None:
    """Write the coordinator's `nginx.conf`."""
    _write(home.nginx, coordinator_configuration(settings))


def write_tunnel(home: SiteHome, address: Address, port: int) -> None:
    """Write the configuration of a site's tunnel, which listens at `port` of loopback.

    Raises:
        ConsiliumError: E116, this machine knows no authorities and the site was given none.
    """
    trusted = home.ca if home.ca.exists() else next(filter(Path.exists, _PUBLIC_AUTHORITIES), None)
    if trusted is None:
        raise ConsiliumError("E116", f"no {home.ca}, and no authorities of this machine")
    text = fill(
        "tunnel.nginx",
        port=port,
        host=address.host,
        authority=address.authority,
        trusted="../keys/ca.pem" if trusted == home.ca else str(trusted),
    )
    _write(home.tunnel, text)


def reload(folder: Path) -> bool:
    """Let the nginx of a folder read its files again, such as a new list of revoked certificates.

    Returns:
        whether one runs.
    """
    try:
        process = psutil.Process(int((folder / "nginx.pid").read_text()))
        if "nginx" not in process.name():
            return False
        process.send_signal(signal.SIGHUP)
    except (OSError, ValueError, psutil.Error):
        return False
    return True


def _write(folder: Path, text: str) -> None:
    (folder / "temporary").mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "nginx.conf", text.encode())
