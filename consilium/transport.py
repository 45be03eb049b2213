"""How this coordinator may be reached: refused before anything starts when its settings would expose it."""

from __future__ import annotations

from consilium.address import Address, ip_of, parse_address, require_protected
from consilium.certificate_forms import check_chain, check_server
from consilium.certificates import TlsFiles
from contracts.errors import ConsiliumError
from tasks.home import CoordinatorHome
from tasks.settings import Settings


def check_settings(settings: Settings) -> Address | None:
    """Check that URL and TLS fit each other; return the URL's parts, None for a coordinator on loopback.

    Raises:
        ConsiliumError: E113, the URL; E115, what is sent to other machines would not be protected.
    """
    tls = settings.tls
    if settings.url is None:
        if tls.mode != "none":
            raise ConsiliumError("E113", f"field 'url': none, expected one with tls.mode {tls.mode!r}")
        return None
    address = require_protected(parse_address(settings.url))
    if tls.mode == "none" and address.scheme == "https":
        raise ConsiliumError("E115", f"url {address.url!r} with tls.mode 'none', expected proxy or server")
    if tls.mode != "none" and address.scheme == "http":
        raise ConsiliumError("E113", f"url {address.url!r} with tls.mode {tls.mode!r}, expected https")
    if tls.client_certificates and tls.mode != "proxy":
        raise ConsiliumError("E115", f"tls.mode {tls.mode!r} asks nobody for a certificate, expected proxy")
    if tls.client_certificates and ip_of(address.host) is not None:
        # The tunnel's nginx compares names of certificates, not addresses.
        raise ConsiliumError("E113", f"url {address.url!r} with client certificates, expected a host name")
    return address


def check_transport(home: CoordinatorHome, settings: Settings) -> Address | None:
    """Check settings and certificates before a coordinator starts.

    Raises:
        ConsiliumError: E113, E115; E116, the server's certificate is missing, ends or is for another name.
    """
    address = check_settings(settings)
    if address is not None and settings.tls.mode != "none":
        files = TlsFiles(home.tls)
        check_server(files.certificate, files.key, address.host)
        if files.ca.exists():
            check_chain(files.certificate, files.key, files.ca, address.host)
    return address
