"""The other hospitals of the federation, by the keys that this hospital has pinned itself.

A coordinator may pass keys on, and cannot vouch for them: what stands here was confirmed at this hospital, by
a fingerprint that came another way.

A change of a hospital's key that the pinned one signed is followed. What the old key signed for a plan from
before is accepted for a while: the plan is the only one of its exchange, and would never be answered.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

from pydantic import TypeAdapter, ValidationError

from contracts.enrolment import newest_key
from contracts.errors import ConsiliumError
from contracts.fields import Key, SiteName, Timestamp
from contracts.signing import Signed
from durable.clock import now
from durable.files import locked, read_json, write_json
from site_runtime.home import SiteHome

FORMER_DAYS = 14  # that a replaced key counts for plans from before; by then it should lie nowhere any more
CLOCK_SECONDS = 150  # by which clocks of coordinator and hospital may differ, as at the gate

_PEERS: TypeAdapter[dict[str, str]] = TypeAdapter(dict[SiteName, Key])
_FORMER: TypeAdapter[dict[str, dict[str, str]]] = TypeAdapter(dict[SiteName, dict[Key, Timestamp]])


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


def keys_for(home: SiteHome, site: str, asked: str) -> list[str]:
    """Return the keys whose word counts in a plan: the pinned one, then those it replaced, oldest first.

    A replaced key counts if the plan was made before this hospital learnt the change, and for `FORMER_DAYS`
    after that, by its own clock: whoever steals the old key later cannot use it, whatever date a plan bears.

    Args:
        asked: when the plan was made, by the coordinator's clock.

    Raises:
        ConsiliumError: E807, the hospital was never pinned here; E801.
    """
    latest = _time(asked) - timedelta(seconds=CLOCK_SECONDS)
    least = max(latest, _time(now()) - timedelta(days=FORMER_DAYS))
    former = sorted((_time(learnt), key) for key, learnt in _former(home).get(site, {}).items())
    return [peer_key(home, site), *(key for learnt, key in former if learnt >= least)]


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
        if peers.get(site, sign_key) != sign_key:  # a person's word, not the old key's: that one is over
            write_json(home.former_peers, {s: keys for s, keys in _former(home).items() if s != site})
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
        if changed:
            former = _former(home)
            former |= {site: {**former.get(site, {}), peers[site]: now()} for site in changed}
            write_json(home.former_peers, former)
        peers.update(newest)
    return changed


def _former(home: SiteHome) -> dict[str, dict[str, str]]:
    """By hospital: each key that was replaced here, and when."""
    try:
        return _FORMER.validate_python(read_json(home.former_peers)) if home.former_peers.exists() else {}
    except (OSError, ValueError, ValidationError) as error:
        raise ConsiliumError("E801", f"{home.former_peers} cannot be read: {type(error).__name__}") from error


def _time(timestamp: str) -> datetime:
    return datetime.strptime(timestamp, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


@contextlib.contextmanager
def _changing(home: SiteHome) -> Iterator[dict[str, str]]:
    with locked(home.root / ".peers.lock"):
        before = load_peers(home)
        peers = dict(before)
        yield peers
        if peers != before:
            write_json(home.peers, peers)
