"""The exchange as a site sees it: `put` its own update, `get` what the signed plan names (design, 4)."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import ssl
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from contracts.errors import ConsiliumError

if TYPE_CHECKING:
    import httpx

AUDIENCE = "consilium-exchange"
TOKEN_SECONDS = 60  # lifetime of the token of one request
FIRST_WAIT_SECONDS = 0.5  # doubled at every attempt
LONGEST_WAIT_SECONDS = 5.0
ATTEMPTS = 720  # an hour in all: a finished update outlives the coordinator's outage; its deadline ends it
_BLOCK = 1 << 20  # bytes
_EMPTY = hashlib.sha256(b"").hexdigest()


class Exchange(Protocol):
    """A content-addressed store of tensors."""

    def put(self, path: Path, plan: str) -> str:
        """Store the file as the answer to the plan with digest `plan`; return its SHA-256."""

    def get(self, digest: str, target: Path) -> None:
        """Write the content of `digest` to `target`."""


@dataclass(frozen=True)
class HttpExchange:
    """The exchange behind the coordinator's API server, authorised by the site's own edge key.

    Every request carries an EdDSA token (RFC 8037) that binds method, path, SHA-256 and length of the body,
    so that a token seen on the way is good for nothing else.

    Args:
        base_url: the coordinator, as in `https://coordinator.example`; the exchange is under `/consilium`.
        site: the site's name, the `kid` of its key.
        edge_key: Ed25519 private key (PKCS #8 PEM).
        ca: the authority (PEM) whose certificates are trusted; those of this machine when not given.
    """

    base_url: str
    site: str
    edge_key: Path
    ca: Path | None = None

    def put(self, path: Path, plan: str) -> str:
        """Upload the file; the same file for the same plan again is no error.

        Raises:
            ConsiliumError: E804, the coordinator refused it; E805, it could not be reached.
        """
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        length = path.stat().st_size

        def send(client: httpx.Client) -> None:
            where = f"/consilium/plans/{plan}/blobs/{digest}"
            headers = {
                **self._authorisation("PUT", where, digest, length),
                "Content-Length": str(length),
                "Content-Type": "application/octet-stream",
            }
            _refused(client.put(where, content=_blocks(path), headers=headers))

        self._attempt(send)
        return digest

    def get(self, digest: str, target: Path) -> None:
        """Download `digest` to `target`, which appears only complete and verified.

        Raises:
            ConsiliumError: E804, refused, or the content has another digest; E805, not reached.
        """
        target.parent.mkdir(parents=True, exist_ok=True)

        def receive(client: httpx.Client) -> None:
            where = f"/consilium/blobs/{digest}"
            sha = hashlib.sha256()
            descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=".incoming.")
            try:
                with (
                    os.fdopen(descriptor, "wb") as file,
                    client.stream(
                        "GET", where, headers=self._authorisation("GET", where, _EMPTY, 0)
                    ) as response,
                ):
                    if response.status_code >= 400:
                        response.read()
                    _refused(response)
                    for block in response.iter_bytes(_BLOCK):
                        sha.update(block)
                        file.write(block)
                if sha.hexdigest() != digest:
                    raise ConsiliumError("E804", f"asked for {digest}, received {sha.hexdigest()}")
                os.replace(temporary, target)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)

        self._attempt(receive)

    def _authorisation(self, method: str, path: str, sha256: str, length: int) -> dict[str, str]:
        import jwt

        now = int(time.time())
        claims = {
            "iss": self.site,
            "aud": AUDIENCE,
            "iat": now,
            "exp": now + TOKEN_SECONDS,
            "jti": uuid.uuid4().hex,
            "method": method,
            "path": path,
            "sha256": sha256,
            "length": length,
        }
        try:
            key = self.edge_key.read_bytes()
        except OSError as error:
            raise ConsiliumError("E801", f"key file {self.edge_key}: {error}") from error
        token = jwt.encode(claims, key, algorithm="EdDSA", headers={"kid": self.site})
        return {"Authorization": f"Bearer {token}"}

    def _attempt(self, step: _Step) -> None:
        """Run `step`, again after a broken connection or a coordinator that is just starting."""
        import httpx

        wait = FIRST_WAIT_SECONDS
        for attempt in range(1, ATTEMPTS + 1):
            try:
                # No proxy and no .netrc of the environment: the one outbound host is the one configured.
                with httpx.Client(
                    base_url=self.base_url,
                    timeout=30.0,
                    trust_env=False,
                    verify=_trust(self.base_url, self.ca),
                ) as client:
                    return step(client)
            except (httpx.TransportError, _TryAgain) as error:
                if attempt == ATTEMPTS:
                    raise ConsiliumError("E805", f"{self.base_url}: {error!r}") from error
                time.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT_SECONDS)


@functools.cache
def _trust(base_url: str, ca: Path | None) -> ssl.SSLContext | bool:
    """Whose certificates to trust; reading them costs 20 ms, and plain HTTP on loopback has none."""
    return ssl.create_default_context(cafile=ca) if base_url.startswith("https:") else False


class _Step(Protocol):
    def __call__(self, client: httpx.Client) -> None: ...


class _TryAgain(Exception):
    """The coordinator answered, but not yet for good (5xx)."""


def _refused(response: httpx.Response) -> None:
    if response.status_code >= 500:
        raise _TryAgain(f"status {response.status_code}")
    if response.status_code >= 400:
        raise ConsiliumError("E804", f"status {response.status_code}: {response.text[:200]}")


def _blocks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            yield block
