"""The registry of the federation: names, public keys and declared sizes of its sites, and who of them is in.

A member that is revoked stays in the registry, so that what it signed before can be verified; it is in no
plan any more, and no request of it is let through. `tasks.membership` changes the registry.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from contracts.enrolment import COORDINATOR
from contracts.errors import ConsiliumError
from contracts.fields import Contract, Key, SiteName, Text, Timestamp
from contracts.signing import Signed, SigningKey, first_problem
from durable.clock import now
from durable.files import locked, write_json
from tasks.decisions import ended_keys, read_decisions, record_decision
from tasks.home import CoordinatorHome

# Queues and task ids of the coordinator, and the name of what is pooled.
RESERVED = {"default", COORDINATOR, "pooled", "collect", "judge", "export", "approve", "publish", "gate"}
RESERVED |= {
    "open_round",
    "close_round",
    "open_unmasking",
    "open_evaluation",
    "reject",
    "simulate",
    "hospitals",
}


class FormerKey(Contract):
    """Keys that a member had until `until`, by the coordinator's clock, and why they ended."""

    sign_key: Key
    edge_key: Key
    until: Timestamp
    ended: Literal["rotated", "revoked"]
    rotation: Signed | None = None  # the change, signed by these keys


class Member(Contract):
    """A site as the coordinator knows it; of a revoked one the keys are the last that it had."""

    site: SiteName
    sign_key: Key
    edge_key: Key
    declared_size: Annotated[int, Field(ge=1)]
    status: Literal["active", "revoked"] = "active"
    since: Timestamp | None = None  # of the status; None: enrolled by version 0.1
    reason: Text | None = None  # of a revocation
    former: list[FormerKey] = []

    @property
    def keys(self) -> set[str]:
        """Every key that this member has or had."""
        return {self.sign_key, self.edge_key} | {k for f in self.former for k in (f.sign_key, f.edge_key)}

    def keys_at(self, time: str) -> list[str]:
        """Signing keys of what was asked of this member at `time` and is kept since.

        Args:
            time: of the plan that was answered, by the coordinator's clock.
        """
        current = self.status == "active" or self.since is None or time <= self.since
        return [self.sign_key] * current + [f.sign_key for f in self.former if time <= f.until]

    def vouches(self, sign_key: str) -> bool:
        """Whether a data sheet by this key still speaks for the member: rotated yes, revoked no."""
        rotated = {f.sign_key for f in self.former if f.ended == "rotated"}
        return self.status == "active" and sign_key in {self.sign_key, *rotated}


class Federation(Contract):
    """All members in the order of their names, and the changes of the coordinator's key, oldest first."""

    members: list[Member]
    rotations: list[Signed] = []

    def known(self, site: str) -> Member:
        """Return the member called `site`, active or revoked.

        Raises:
            ConsiliumError: E806.
        """
        for member in self.members:
            if member.site == site:
                return member
        raise ConsiliumError("E806", f"site {site!r}; enrolled: {[m.site for m in self.members]}")

    def member(self, site: str) -> Member:
        """Return the active member called `site`.

        Raises:
            ConsiliumError: E806, there is none of this name; E808, it was revoked.
        """
        member = self.known(site)
        if member.status != "active":
            raise ConsiliumError("E808", f"site {site!r} was revoked at {member.since}")
        return member

    @property
    def active(self) -> list[Member]:
        """The members that take part."""
        return [member for member in self.members if member.status == "active"]

    @property
    def sites(self) -> list[str]:
        """Names of the active members, sorted."""
        return [member.site for member in self.active]

    def with_member(self, member: Member) -> Federation:
        """Return the federation with this member in the place of any of its name."""
        others = [m for m in self.members if m.site != member.site]
        return self.model_copy(update={"members": sorted([*others, member], key=lambda m: m.site)})


def load_federation(home: CoordinatorHome) -> Federation:
    """Read the registry; a home without one has no members.

    Raises:
        ConsiliumError: E107, the registry is damaged.
    """
    try:
        return Federation.model_validate_json(home.federation.read_bytes())
    except FileNotFoundError:
        return Federation(members=[])
    except ValidationError as error:
        raise ConsiliumError("E107", f"{home.federation}: {first_problem(error)}") from error


def save_federation(home: CoordinatorHome, federation: Federation) -> None:
    """Write the registry; the caller holds its lock. The bytes of an unchanged entry stay the same."""
    write_json(home.federation, federation.model_dump(mode="json", exclude_defaults=True))


_edge_keys: dict[CoordinatorHome, tuple[tuple[int, ...], dict[str, str]]] = {}


def edge_keys(home: CoordinatorHome) -> Mapping[str, str]:
    """Edge keys (32 bytes, base64url) of the active members by name, as the registry says at this moment.

    Cheap enough for every request: the file is read again only when it was replaced.

    Raises:
        ConsiliumError: E107, the registry is damaged.
    """
    try:
        status = home.federation.stat()
    except FileNotFoundError:
        return {}
    stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
    known = _edge_keys.get(home)
    if known is None or known[0] != stamp:
        keys = {member.site: member.edge_key for member in load_federation(home).active}
        _edge_keys[home] = known = (stamp, keys)
    return known[1]


def enrol(home: CoordinatorHome, card: Mapping[str, object], *, by: str = "script", key: str = "") -> Member:
    """Add a site by its card (site, sign_key, edge_key, declared_size).

    The same card again changes nothing. A revoked name may be enrolled again, with keys nobody ever had.

    Args:
        by: who decided, for the log of decisions.
        key: what was decided about: digest of a request.

    Raises:
        ConsiliumError: E107, the card is malformed; E808, the site was revoked with these keys; E810, it
            contradicts the registry; E812, E813, the log of decisions.
    """
    try:
        member = Member.model_validate({"since": now(), **card})
    except ValidationError as error:
        raise ConsiliumError("E107", first_problem(error)) from error
    if member.site in RESERVED or member.site.startswith("approve_"):  # task ids of the sign-off
        raise ConsiliumError("E810", f"site {member.site!r}: this name is taken by a part of Consilium")
    signing = coordinator_key(home)
    with locked(registry_lock(home)):
        federation = load_federation(home)
        before = next((m for m in federation.members if m.site == member.site), None)
        if before is not None and _same(before, member):
            return federation.member(member.site)  # as before, or revoked
        if before is not None and before.status == "active":
            raise ConsiliumError("E810", f"site {member.site!r} is enrolled with another key or size")
        check_new_keys(home, signing, federation, member.site, {member.sign_key, member.edge_key})
        details = {
            "sign_key": member.sign_key,
            "edge_key": member.edge_key,
            "declared_size": member.declared_size,
            "by": by,
        }
        about = key or member.sign_key
        record_decision(home, signing, "admitted", member.site, about, member.since or "", **details)
        if before is not None:
            ended = FormerKey(
                sign_key=before.sign_key,
                edge_key=before.edge_key,
                until=before.since or "",
                ended="revoked",
            )
            member = member.model_copy(update={"former": [*before.former, ended]})
        save_federation(home, federation.with_member(member))
    return member


def check_new_keys(
    home: CoordinatorHome, signing: SigningKey, federation: Federation, site: str, keys: set[str]
) -> None:
    """Check that nobody has or had a key that a site is to get, whatever name they had it under.

    Args:
        signing: the coordinator's key, which verifies the log of decisions.

    Raises:
        ConsiliumError: E808, a key was revoked or replaced; E810, it is or was somebody's; E813, the log of
            decisions.
    """
    for other in federation.members:
        if other.keys & keys:
            raise ConsiliumError("E810", f"a key of {site!r} is or was one of {other.site!r}")
    ended = ended_keys(read_decisions(home, signing.public))  # of members that were removed since, too
    if found := sorted(ended.keys() & keys):
        raise ConsiliumError("E808", f"a key of {site!r} was revoked or replaced at {ended[found[0]]}")


def _same(before: Member, member: Member) -> bool:
    fields = ("sign_key", "edge_key", "declared_size")
    return all(getattr(before, field) == getattr(member, field) for field in fields)


def registry_lock(home: CoordinatorHome) -> Path:
    """The lock that every change of the registry holds."""
    return home.root / ".federation.lock"


def coordinator_key(home: CoordinatorHome) -> SigningKey:
    """The coordinator's signing key, drawn at first use."""
    with locked(home.root / ".key.lock"):
        if not home.signing_key.exists():
            SigningKey.generate(COORDINATOR).save(home.signing_key)
    return SigningKey.load(COORDINATOR, home.signing_key)


def coordinator_keys(home: CoordinatorHome) -> list[str]:
    """The coordinator's public key, then those that it signed with before."""
    own = coordinator_key(home).public
    former = [signed.key for signed in reversed(load_federation(home).rotations)]
    return [own, *(key for key in former if key != own)]
