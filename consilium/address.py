"""The coordinator's URL: what hospitals are given, and whether it may be spoken without TLS."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from contracts.errors import ConsiliumError

_HOST_NAME = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*")


@dataclass(frozen=True)
class Address:
    """A coordinator's URL in its parts; `host` has no brackets."""

    scheme: str
    host: str
    port: int

    @property
    def url(self) -> str:
        """The URL in one form: the port is left out where it is the scheme's own."""
        own = {"http": 80, "https": 443}[self.scheme]
        return f"{self.scheme}://{self.authority if self.port != own else self.bracketed}"

    @property
    def authority(self) -> str:
        """Host and port, as in `Host:`."""
        return f"{self.bracketed}:{self.port}"

    @property
    def bracketed(self) -> str:
        """The host as it stands in a URL."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def loopback(self) -> bool:
        """Say whether the host is this machine itself."""
        ip = ip_of(self.host)
        return ip.is_loopback if ip is not None else self.host == "localhost"


def ip_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that `host` is, or None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def parse_address(url: str) -> Address:
    """Take a coordinator's URL apart.

    Raises:
        ConsiliumError: E113, naming what is wrong with it.
    """

    def invalid(problem: str) -> ConsiliumError:
        return ConsiliumError("E113", f"{url!r}: {problem}, expected one such as https://fed.example:8443")

    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError as error:
        raise invalid(str(error)) from error
    if parts.scheme not in ("http", "https"):
        raise invalid("neither http nor https")
    if parts.username is not None or parts.password is not None:
        raise invalid("it holds a user name")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise invalid("more than host and port")
    if ip_of(host) is None and (len(host) > 253 or not _HOST_NAME.fullmatch(host)):
        raise invalid(f"host {host!r}")
    if port == 0:
        raise invalid("port 0")
    return Address(parts.scheme, host, port or {"http": 80, "https": 443}[parts.scheme])


def require_protected(address: Address) -> Address:
    """Refuse plain HTTP to another machine.

    Raises:
        ConsiliumError: E115.
    """
    if address.scheme == "http" and not address.loopback:
        raise ConsiliumError("E115", f"url {address.url!r}: expected https for anything but this machine")
    return address
