"""Who sends a request: the site whose edge key signed its token, or the task whose token it is."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from tasks.home import CoordinatorHome

LEEWAY_SECONDS = 150  # clocks of hospitals; the tokens themselves live 10 s
EDGE_AUDIENCE = "api"
TASK_AUDIENCE = "urn:airflow.apache.org:task"
COORDINATOR = "coordinator"

Headers = Iterable[tuple[bytes, bytes]]
Claims = dict[str, Any]


class Refused(Exception):
    """A request that the gate does not let through: HTTP status, and a reason for the coordinator's log."""

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        self.reason = reason
        super().__init__(reason)


def coordinator_home() -> CoordinatorHome:
    """The home whose API server this process is."""
    return CoordinatorHome(Path(os.environ["CONSILIUM_HOME"]) / "coordinator")


def first_authorisation(headers: Headers) -> str | None:
    """The token of the first `Authorization` header: the one that Airflow's own checks read."""
    for name, value in headers:
        if name.lower() == b"authorization":
            text = value.decode("latin-1").strip()
            return text[7:].strip() if text.lower().startswith("bearer ") else text
    return None


def drop_later_authorisations(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Keep the first `Authorization` header only, so that nobody behind the gate reads another one."""
    kept, seen = [], False
    for name, value in headers:
        if name.lower() == b"authorization":
            if seen:
                continue
            seen = True
        kept.append((name, value))
    return kept


def key_id(token: str) -> str | None:
    """The `kid` that a token claims, not yet believed."""
    try:
        kid = jwt.get_unverified_header(token).get("kid")
    except jwt.PyJWTError:
        return None
    return kid if isinstance(kid, str) else None


@dataclass
class Keys:
    """Public keys of the enrolled sites, read again when the registry changes, and of the coordinator."""

    home: CoordinatorHome
    _sites: dict[str, Ed25519PublicKey] = field(default_factory=dict)
    _stamp: tuple[int, int] = (0, 0)
    _own: Ed25519PublicKey | None = None

    def sites(self) -> MutableMapping[str, Ed25519PublicKey]:
        """Edge keys by the name of their site."""
        try:
            status = self.home.edge_jwks.stat()
        except FileNotFoundError:
            return {}
        stamp = (status.st_mtime_ns, status.st_ino)
        if stamp != self._stamp:
            keys = json.loads(self.home.edge_jwks.read_bytes())["keys"]
            self._sites = {
                key["kid"]: Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key["x"] + "="))
                for key in keys
            }
            self._stamp = stamp
        return self._sites

    def site_of(self, token: str | None, audience: str) -> tuple[str, Claims]:
        """Verify a token that a site signed and return the site's name and the claims.

        Raises:
            Refused: 401 without a token, 403 when no enrolled site signed it.
        """
        if not token:
            raise Refused(401, "no token")
        site = key_id(token)
        key = self.sites().get(site or "")
        if site is None or key is None:
            raise Refused(403, f"unknown key {site!r}")
        return site, _claims(token, key, audience, site)

    def task_of(self, token: str | None) -> str:
        """Verify a task's token, which this coordinator issued, and return the id of the task instance.

        Raises:
            Refused: 401 or 403.
        """
        if not token:
            raise Refused(401, "no token")
        if self._own is None:
            private = serialization.load_pem_private_key(self.home.api_key.read_bytes(), password=None)
            if not isinstance(private, Ed25519PrivateKey):
                raise Refused(403, "the coordinator's API key is not Ed25519")
            self._own = private.public_key()
        return str(_claims(token, self._own, TASK_AUDIENCE, COORDINATOR).get("sub"))


def _claims(token: str, key: Ed25519PublicKey, audience: str, issuer: str) -> Claims:
    try:
        claims: Claims = jwt.decode(
            token,
            key,
            algorithms=["EdDSA"],
            audience=audience,
            issuer=issuer,
            leeway=LEEWAY_SECONDS,
            options={"require": ["exp", "iat", "iss", "aud"]},
        )
    except jwt.PyJWTError as error:
        raise Refused(403, f"token refused: {error}") from error
    return claims
