"""The exchange as a site sees it: `put` its own update, `get` what the signed plan names (design, 4).

Both go on where a broken connection ended: the coordinator keeps the beginning of an upload, and the site
that of a download beside its target. What is complete counts only with the digest that was asked for.
"""

from __future__ import annotations

import functools
import hashlib
import ssl
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from contracts.errors import ConsiliumError
from durable.bucket import partial_of
from durable.partial import Busy, Partial

if TYPE_CHECKING:
    import httpx

AUDIENCE = "consilium-exchange"
TOKEN_SECONDS = 60  # lifetime of the token of one request
FIRST_WAIT_SECONDS = 0.5  # doubled at every attempt
LONGEST_WAIT_SECONDS = 5.0
ATTEMPTS = 720  # in a row without a byte of progress, an hour in all: an update outlives an outage
_BLOCK = 1 << 20  # bytes
_EMPTY = hashlib.sha256(b"").hexdigest()
_LATER = (408, 416, 425, 429)  # too slow, another beginning is there, or too many requests: try again


class Exchange(Protocol):
    """A content-addressed store of tensors."""

    def put(self, path: Path, plan: str) -> str:
        """Store the file as the answer to the plan with digest `plan`; return its SHA-256."""

    def get(self, digest: str, target: Path) -> None:
        """Write the content of `digest` to `target`."""


@dataclass(frozen=True)
class HttpExchange:
    """The exchange behind the coordinator's API server, authorised by the site's own edge key.

    Every request carries an EdDSA token (RFC 8037) that binds method, path, SHA-256 and length of the whole
    content and where the body begins, so that a token seen on the way is good for nothing else.

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
            ConsiliumError: E804, the coordinator refused it; E805, it could not be reached, or is full.
        """
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        length = path.stat().st_size
        where = f"/consilium/plans/{plan}/blobs/{digest}"

        def send(client: httpx.Client, progress: _Progress) -> None:
            headers = self._authorisation("GET", where, digest, length)
            state = _answered(client.get(where, headers=headers)).json()
            progress.arrived = offset = int(state["offset"])
            if not state["complete"]:
                headers = {
                    **self._authorisation("PUT", where, digest, length, offset),
                    "Content-Length": str(length - offset),
                    "Content-Type": "application/octet-stream",
                }
                if offset:
                    headers["Content-Range"] = f"bytes {offset}-{length - 1}/{length}"
                try:
                    _answered(client.put(where, content=_blocks(path, offset), headers=headers))
                except _WrongContent as error:
                    # The coordinator threw it away. A beginning that was damaged there is worth one more try.
                    if not offset:
                        raise ConsiliumError("E804", str(error)) from error
                    raise _TryAgain(str(error)) from error

        self._attempt(send)
        return digest

    def get(self, digest: str, target: Path) -> None:
        """Download `digest` to `target`, which appears only complete and verified.

        Raises:
            ConsiliumError: E804, refused, or the content has another digest; E805, not reached; E821.
        """
        where = f"/consilium/blobs/{digest}"
        beginning = partial_of(target, digest)
        wrong = 0

        def receive(client: httpx.Client, progress: _Progress) -> None:
            nonlocal wrong
            try:
                partial = Partial(beginning)
            except Busy as error:
                raise _TryAgain(f"{beginning} is being received by another process") from error
            try:
                if partial.digest != digest:
                    self._continue(client, where, digest, partial)
                if partial.digest == digest:
                    return partial.move(target)
                found = partial.digest
                partial.discard()
            finally:
                progress.arrived = partial.size
                partial.close()
            wrong += 1
            if wrong == 2:
                raise ConsiliumError("E804", f"asked for {digest}, received {found}")
            raise _TryAgain(f"received {found}")

        self._attempt(receive)

    def _continue(self, client: httpx.Client, where: str, digest: str, partial: Partial) -> None:
        """Receive what is missing (RFC 9110, sections 13.1.5 and 14.2), or everything."""
        headers = self._authorisation("GET", where, _EMPTY, 0) | {"Accept-Encoding": "identity"}
        if partial.size:
            headers |= {"Range": f"bytes={partial.size}-", "If-Range": f'"{digest}"'}
        with client.stream("GET", where, headers=headers) as response:
            if response.status_code >= 400:
                response.read()
            if response.status_code == 416:  # more is here than there is
                partial.discard()
            _answered(response)
            if response.status_code != 206 and partial.size:
                partial.restart()
            _keep(response.iter_raw(), partial)

    def _authorisation(
        self, method: str, path: str, sha256: str, length: int, offset: int = 0
    ) -> dict[str, str]:
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
            "offset": offset,
        }
        try:
            key = self.edge_key.read_bytes()
        except OSError as error:
            raise ConsiliumError("E801", f"key file {self.edge_key}: {error}") from error
        token = jwt.encode(claims, key, algorithm="EdDSA", headers={"kid": self.site})
        return {"Authorization": f"Bearer {token}"}

    def _attempt(self, step: _Step) -> None:
        """Run `step`, again after a broken connection or a coordinator that is just starting.

        As long as every attempt finds more than the one before, attempts are not counted.
        """
        import httpx

        attempt, best, progress = 1, 0, _Progress()
        while True:
            try:
                # No proxy and no .netrc of the environment: the one outbound host is the one configured.
                with httpx.Client(
                    base_url=self.base_url,
                    timeout=30.0,
                    trust_env=False,
                    verify=_trust(self.base_url, self.ca),
                ) as client:
                    return step(client, progress)
            except (httpx.TransportError, _TryAgain) as error:
                if progress.arrived > best:
                    attempt, best = 1, progress.arrived
                elif attempt == ATTEMPTS:
                    raise ConsiliumError("E805", f"{self.base_url}: {error!r}") from error
                else:
                    attempt += 1
                time.sleep(min(FIRST_WAIT_SECONDS * 2 ** min(attempt - 1, 10), LONGEST_WAIT_SECONDS))


@dataclass
class _Progress:
    """How many bytes of a transfer had arrived when last seen."""

    arrived: int = 0


@functools.cache
def _trust(base_url: str, ca: Path | None) -> ssl.SSLContext | bool:
    """Whose certificates to trust; reading them costs 20 ms, and plain HTTP on loopback has none."""
    return ssl.create_default_context(cafile=ca) if base_url.startswith("https:") else False


class _Step(Protocol):
    def __call__(self, client: httpx.Client, progress: _Progress) -> None: ...


class _TryAgain(Exception):
    """The coordinator answered, but not yet for good."""


class _WrongContent(Exception):
    """The coordinator has all of an upload, and it is not what its digest says."""


def _answered(response: httpx.Response) -> httpx.Response:
    """Return an answer that is good, or raise what its status means."""
    status = response.status_code
    if status >= 500 or status in _LATER:
        raise _TryAgain(f"status {status}")
    if status == 422:
        raise _WrongContent(f"status {status}: {response.text[:200]}")
    if status >= 400:
        raise ConsiliumError("E804", f"status {status}: {response.text[:200]}")
    return response


def _keep(pieces: Iterator[bytes], partial: Partial) -> None:
    """Write what arrives in larger blocks; all of it, also when the connection breaks."""
    held: list[bytes] = []
    size = 0
    try:
        for piece in pieces:
            held.append(piece)
            size += len(piece)
            if size >= _BLOCK:
                partial.write(b"".join(held))
                held, size = [], 0
    finally:
        if held:
            partial.write(b"".join(held))


def _blocks(path: Path, offset: int) -> Iterator[bytes]:
    with open(path, "rb") as file:
        file.seek(offset)
        while block := file.read(_BLOCK):
            yield block
