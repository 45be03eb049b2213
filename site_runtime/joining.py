"""Taking a startup kit: the coordinator's key is pinned, once; what it says of others is an offer.

A kit may be taken again at any time: it brings new members, changed keys and a changed address. A changed
coordinator's key is followed only where the pinned one signed it. Tensors go to the bucket that a kit offers
only once somebody here has named that bucket, which the hospital's policy keeps.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from contracts.enrolment import COORDINATOR, StartupKit, check_fingerprint, fingerprint, newest_key, open_kit
from contracts.errors import ConsiliumError
from contracts.signing import Signed
from durable.files import locked, write_atomic
from site_runtime.config import dump_site, load_site
from site_runtime.enrol import site_card
from site_runtime.home import SiteHome
from site_runtime.kit import allowed_bucket, taken_kit
from site_runtime.peers import follow_rotations, load_peers
from site_runtime.rotation import finish_rotation, pending_keys

Standing = Literal["pinned", "offered", "changed", "not in the kit"]


@dataclass(frozen=True)
class Joined:
    """What taking a kit did."""

    kit: StartupKit
    coordinator_changed: bool  # to a key that the pinned one signed
    rotated: bool  # this hospital's own new keys are in force now
    followed: list[str]  # pinned hospitals whose new keys were pinned
    bucket: str | None  # of those that the kit offers, the one that this hospital's policy allows


@dataclass(frozen=True)
class Peer:
    """Another hospital as this one sees it: its key by the kit, and whether it was pinned here.

    `changed`: the kit offers another key than the one that is pinned, and no change signed by that one.
    """

    site: str
    sign_key: str
    standing: Standing


def join(
    home: SiteHome, text: str | bytes, confirmed: str | None = None, bucket: str | None = None
) -> Joined:
    """Verify a kit, pin its coordinator, and keep address, authority and members.

    Args:
        confirmed: fingerprint of the coordinator's key, from a person; may be left out when the key is pinned
            or follows from the pinned one.
        bucket: address that a person allows for this hospital's tensors; the policy names it from now on.

    Raises:
        ConsiliumError: E802, E803, the kit does not verify; E809, the fingerprint is another or is missing;
            E811, the kit does not know this hospital's key, is older than the one taken before, or offers
            another bucket than the one allowed; E812, it is from another coordinator key than the pinned one,
            without that one's word; E402 and others of `finish_rotation`.
    """
    kit, card = open_kit(text), site_card(home)
    with locked(home.root / ".enrol.lock"):
        changed = _check_coordinator(home, kit, confirmed)
        waiting = pending_keys(home)
        mine = kit.card(card.site)
        ours = {card.sign_key} if waiting is None else {card.sign_key, waiting.new_key}
        if mine is None or mine.sign_key not in ours:
            offered = "no key" if mine is None else f"the key {fingerprint(mine.sign_key)}"
            raise ConsiliumError(
                "E811", f"it names {offered} of {card.site!r}, which has {fingerprint(card.sign_key)}"
            )
        before = taken_kit(home)
        if before is not None and kit.created < before.created:
            raise ConsiliumError("E811", f"made at {kit.created}, taken was one of {before.created}")
        if bucket is not None:
            _allow(home, kit, bucket)
        write_atomic(home.coordinator_key, kit.coordinator_key.encode())
        write_atomic(home.coordinator_url, kit.url.encode())
        if kit.ca is not None:
            write_atomic(home.ca, kit.ca.encode())
        else:
            home.ca.unlink(missing_ok=True)
        os.chmod(home.coordinator_key.parent, 0o700)
        write_atomic(home.kit, text.encode() if isinstance(text, str) else text)
        rotated = waiting is not None and mine.sign_key == waiting.new_key
        if rotated:
            finish_rotation(home)
        followed = follow_rotations(home, kit.rotations)
    return Joined(kit, changed, rotated, followed, allowed_bucket(home))


def follow_coordinator(home: SiteHome, rotations: Sequence[Signed], public: str) -> None:
    """Pin the coordinator's new key where the pinned one signed it; a home that has pinned none stays so.

    Raises:
        ConsiliumError: E812, the pinned key did not sign it; E802, E803, the change does not verify.
    """
    with locked(home.root / ".enrol.lock"):
        if not home.coordinator_key.exists():
            return
        pinned = home.coordinator_key.read_text().strip()
        if pinned != public:
            _check_change(pinned, public, rotations)
            write_atomic(home.coordinator_key, public.encode())


def peers_of(home: SiteHome) -> list[Peer]:
    """The other hospitals, by the kit that was taken last and by what is pinned here.

    Raises:
        ConsiliumError: E801, E103.
    """
    kit, pinned, own = taken_kit(home), load_peers(home), load_site(home).site
    offered = {card.site: card.sign_key for card in kit.members} if kit is not None else {}
    offered.pop(own, None)
    found = []
    for site in sorted({*offered, *pinned}):
        standing: Standing = "offered"
        if site not in offered:
            standing = "not in the kit"
        elif site in pinned:
            standing = "pinned" if pinned[site] == offered[site] else "changed"
        found.append(Peer(site, offered.get(site, pinned.get(site, "")), standing))
    return found


def _allow(home: SiteHome, kit: StartupKit, bucket: str) -> None:
    """Have the policy name the bucket that a kit offers. Studies that were approved need it anew then."""
    if kit.exchange != bucket:
        raise ConsiliumError("E811", f"it offers the exchange {kit.exchange or 'none'}, allowed is {bucket}")
    config = load_site(home)
    if config.policy.exchange != bucket:
        policy = config.policy.model_copy(update={"exchange": bucket})
        write_atomic(home.config, dump_site(config.model_copy(update={"policy": policy})).encode())


def _check_coordinator(home: SiteHome, kit: StartupKit, confirmed: str | None) -> bool:
    """Say whether the kit's key takes the place of the pinned one."""
    if confirmed is not None:
        check_fingerprint(confirmed, kit.coordinator_key)
    if not home.coordinator_key.exists():
        if confirmed is None:
            raise ConsiliumError("E809", "none was given for the coordinator's key, which is not pinned yet")
        return False
    pinned = home.coordinator_key.read_text().strip()
    if pinned == kit.coordinator_key:
        return False
    _check_change(pinned, kit.coordinator_key, kit.rotations)
    return True


def _check_change(pinned: str, key: str, rotations: Sequence[Signed]) -> None:
    if newest_key(rotations, COORDINATOR, pinned) != key:
        raise ConsiliumError(
            "E812",
            f"pinned is {fingerprint(pinned)}, this is from {fingerprint(key)}, "
            "without a change signed by the pinned key",
        )
