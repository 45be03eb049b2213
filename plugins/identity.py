"""Who sends a request: the site whose edge key signed its token, or the task whose token it is."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from contracts.errors import ConsiliumError
from plugins.limits import Replays
from plugins.refused import Refused
from plugins.wire import first_authorisation
from tasks.federation import load_federation
from tasks.gate_key import TASK_AUDIENCE
from tasks.home import CoordinatorHome

__all__ = ["Claims", "Keys", "Refused", "coordinator_home", "first_authorisation", "key_id"]

LEEWAY_SECONDS = 120  # clocks of hospitals; the stock worker's tokens live 10 s
TASK_LEEWAY_SECONDS = 10  # the coordinator issued them by its own clock
LIFETIME_SECONDS = 120  # a site's token that would live longer is refused
EDGE_AUDIENCE = "api"
COORDINATOR = "coordinator"

Claims = dict[str, Any]


def coordinator_home() -> CoordinatorHome:
    """The home whose API server this process is."""
    return CoordinatorHome(Path(os.environ["CONSILIUM_HOME"]) / "coordinator")


def key_id(token: str) -> str | None:
    """The `kid` that a token claims, not yet believed."""
    try:
        kid = jwt.get_unverified_header(token).get("kid")
    except jwt.PyJWTError:
        return None
    return kid if isinstance(kid, str) else None


@dataclass
class Keys:
    """Public keys of the federation's active sites, read again when the registry changes, and of Airflow."""

    home: CoordinatorHome
    replays: Replays = field(default_factory=Replays)
    _sites: dict[str, Ed25519PublicKey] = field(default_factory=dict)
    _stamp: tuple[int, ...] = ()
    _own: Ed25519PublicKey | None = None

    def sites(self) -> Mapping[str, Ed25519PublicKey]:
        """Edge keys by the name of their site.

        Raises:
            Refused: 503, the registry cannot be read: nobody is known then.
        """
        try:
            status = self.home.federation.stat()
        except FileNotFoundError:
            return {}
        stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
        if stamp != self._stamp:
            try:
                federation = load_federation(self.home)
            except (ConsiliumError, OSError) as error:
                raise Refused(503, "registry", str(error)) from error
            members = [federation.member(site) for site in federation.sites]
            self._sites = {member.site: _public(member.edge_key) for member in members}
            self._stamp = stamp
        return self._sites

    def verified(self, token: str | None, audience: str) -> tuple[str, Claims]:
        """Verify a token that a site signed and return the site's name and the claims.

        Raises:
            Refused: 401 without a token, 403 when no active site signed it.
        """
        if not token:
            raise Refused(401, "no_token")
        site = key_id(token)
        key = self.sites().get(site or "")
        if site is None or key is None:
            raise Refused(403, "unknown_key", repr(site)[:80])
        claims = _claims(token, key, audience, site, LEEWAY_SECONDS, ["jti"])
        if not 0 <= claims["exp"] - claims["iat"] <= LIFETIME_SECONDS:
            raise Refused(403, "token_lifetime", site)
        if not isinstance(claims["jti"], str) or not 8 <= len(claims["jti"]) <= 64:
            raise Refused(403, "token_form", site)
        return site, claims

    def once(self, site: str, claims: Claims) -> None:
        """Check that a verified token comes for the first time.

        Raises:
            Refused: 403, it was used before.
        """
        if not self.replays.first(site, claims["jti"], claims["exp"] + LEEWAY_SECONDS):
            raise Refused(403, "replayed", site)

    def task_of(self, token: str | None) -> tuple[str, Claims]:
        """Verify a task's token, which this coordinator issued: the task instance's id, and the claims.

        Raises:
            Refused: 401 or 403.
        """
        if not token:
            raise Refused(401, "no_token")
        if self._own is None:
            private = serialization.load_pem_private_key(self.home.api_key.read_bytes(), password=None)
            if not isinstance(private, Ed25519PrivateKey):
                raise Refused(503, "registry", "the coordinator's API key is not Ed25519")
            self._own = private.public_key()
        claims = _claims(token, self._own, TASK_AUDIENCE, COORDINATOR, TASK_LEEWAY_SECONDS, ["sub"])
        return str(claims["sub"]), claims


def _public(text: str) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(text + "="))


def _claims(
    token: str, key: Ed25519PublicKey, audience: str, issuer: str, leeway: int, required: list[str]
) -> Claims:
    try:
        header = jwt.get_unverified_header(token)
        if header.get("alg") != "EdDSA" or not set(header) <= {"alg", "kid", "typ"}:
            raise Refused(403, "token_form", "another algorithm or header")
        claims: Claims = jwt.decode(
            token,
            key,
            algorithms=["EdDSA"],
            audience=audience,
            issuer=issuer,
            leeway=leeway,
            options={"require": ["exp", "iat", "iss", "aud", *required], "strict_aud": True},
        )
    except jwt.PyJWTError as error:
        raise Refused(403, _reason(error), str(error)[:100]) from error
    if not all(isinstance(claims[name], int) for name in ("exp", "iat")):
        raise Refused(403, "token_form", "times are whole seconds")
    return claims


def _reason(error: jwt.PyJWTError) -> str:
    if isinstance(error, jwt.ExpiredSignatureError):
        return "token_expired"
    if isinstance(error, jwt.ImmatureSignatureError | jwt.InvalidIssuedAtError):
        return "token_early"
    return "token_invalid"
