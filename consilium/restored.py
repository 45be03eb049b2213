"""What a restored registry says of members, and what it cannot know: decisions after its backup.

Registry and log of decisions go back together, so nothing in them shows that a hospital was revoked or
changed its keys since. A startup kit of later, which every hospital has, does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from contracts.enrolment import StartupKit, open_kit, open_rotation
from contracts.errors import ConsiliumError
from contracts.signing import to_text
from tasks.decisions import decisions_head, read_decisions
from tasks.federation import Federation, Member, coordinator_key, coordinator_keys, load_federation
from tasks.home import CoordinatorHome


@dataclass(frozen=True)
class Standing:
    """Who is in by a restored registry.

    Attributes:
        members: active ones, who will be let in again by the keys named.
        last: time of the last decision that is known; None without any.
        missing: what a later kit shows and the registry does not know, in sentences; None without a kit.
    """

    members: list[Member]
    last: str | None
    missing: list[str] | None


def standing(home: CoordinatorHome, kit: Path | None = None) -> Standing:
    """Read a registry that comes from a backup, and compare it with a startup kit of later.

    Raises:
        ConsiliumError: E107, E813, registry or log are damaged; E802, E803, the kit is not of this
            coordinator.
    """
    federation = load_federation(home)
    decisions = read_decisions(home, coordinator_key(home).public)
    missing = None if kit is None else _missing(home, federation, _kit_of(home, kit))
    return Standing(federation.active, decisions[-1].time if decisions else None, missing)


def _kit_of(home: CoordinatorHome, path: Path) -> StartupKit:
    """A kit that this coordinator signed with a key of the backup, or one that such a key vouches for."""
    found, known = open_kit(path.read_bytes().strip()), set(coordinator_keys(home))
    for rotation in (open_rotation(to_text(signed)) for signed in found.rotations):
        if rotation.old_key in known:
            known.add(rotation.new_key)
    if found.coordinator_key not in known:
        raise ConsiliumError("E803", f"{path} is a kit of another coordinator")
    return found


def _missing(home: CoordinatorHome, federation: Federation, kit: StartupKit) -> list[str]:
    if kit.log_head == decisions_head(home):
        return []
    said = []
    for member in federation.active:
        card = kit.card(member.site)
        if card is None:
            said.append(f"{member.site} was no member any more")
        elif card.sign_key != member.sign_key:
            said.append(f"{member.site} had other keys")
    known = set(federation.sites)
    said += [f"{card.site} was a member" for card in kit.members if card.site not in known]
    if kit.coordinator_key != coordinator_key(home).public:
        said.append("the coordinator had another key")
    return said or ["its log of decisions ended with another line"]
