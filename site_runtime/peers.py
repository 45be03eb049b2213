"""The other hospitals of the federation, by the keys that this hospital has pinned itself.

A coordinator may pass keys on, and cannot vouch for them: what stands here was confirmed at this hospital, by
a fingerprint that came another way.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator

from pydantic import TypeAdapter, ValidationError

from contracts.enrolment import newest_key
from contracts.errors import ConsiliumError
from contracts.fields import Key, SiteName
from contracts.signing import Signed
from durable.files import locked, write_json
from site_runtime.home import SiteHome

_PEERS: TypeAdapter[dict[str, str]] = TypeAdapter(dict[SiteName, Key])


def load_peers(home: SiteHome) -> dict[str, str]:
    """Return the signing keys (32 bytes, base64url) of the hospitals that were pinned here, by name.

    Raises:
        ConsiliumError: E801, the file is damaged.
    """
    if not home.peers.exists():
        return {}
    try:
        return _PEERS.validate_python(json.loads(home.peers.read_bytes()))
    except (OSError, ValueError, ValidationError) as error:
        raise ConsiliumError("E801", f"{home.peers} cannot be read: {type(error).__name__}") from error


def peer_key(home: SiteHome, site: str) -> str:
    """Return the pinned signing key of another hospital.

    Raises:
        ConsiliumError: E807, it was never pinned here; E801.
    """
    peers = load_peers(home)
    if site not in peers:
        raise ConsiliumError("E807", f"hospital {site!r}; pinned here: {sorted(peers)}")
    return peers[site]


def pin_peer(home: SiteHome, site: str, sign_key: str, *, replace: bool = False) -> None:
    """Pin a hospital's signing key. The same key again changes nothing; another is refused.

    Args:
        replace: whoever confirmed the key says that the one before is no longer in force, as after a hospital
            was revoked and came back.

    Raises:
        ConsiliumError: E807, another key is pinned under this name; E801.
    """
    with _changing(home) as peers:
        if not replace and peers.get(site, sign_key) != sign_key:
            raise ConsiliumError("E807", f"hospital {site!r} is pinned with another key")
        peers[site] = sign_key


def follow_rotations(home: SiteHome, rotations: Iterable[Signed]) -> list[str]:
    """Pin the new keys of hospitals whose pinned key signed them; return their names.

    Args:
        rotations: changes of anybody's keys, of each party in their order. What does not begin at a pinned
            key changes nothing.

    Raises:
        ConsiliumError: E802, E803, a change that a pinned key signed does not verify; E801.
    """
    changes = list(rotations)
    with _changing(home) as peers:
        newest = {site: newest_key(changes, site, key) for site, key in peers.items()}
        changed = sorted(site for site, key in newest.items() if key != peers[site])
        peers.update(newest)
    return changed


@contextlib.contextmanager
def _changing(home: SiteHome) -> Iterator[dict[str, str]]:
    with locked(home.root / ".peers.lock"):
        before = load_peers(home)
        peers = dict(before)
        yield peers
        if peers != before:
            write_json(home.peers, peers)
