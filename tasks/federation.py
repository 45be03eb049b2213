"""The registry of the federation: names, public keys and declared sizes of the enrolled sites."""

from __future__ import annotations

import json
from typing import Annotated

from pydantic import Field, ValidationError

from contracts.errors import ConsiliumError
from contracts.fields import Contract, Key, SiteName
from contracts.signing import SigningKey, first_problem
from durable.files import locked, write_atomic, write_json
from tasks.home import CoordinatorHome

# Queues and task ids of the coordinator, and the name of what is pooled.
RESERVED = {"default", "coordinator", "pooled", "collect", "judge", "export", "approve", "publish"}
RESERVED |= {
    "open_round",
    "close_round",
    "open_unmasking",
    "open_evaluation",
    "reject",
    "simulate",
    "hospitals",
}


class Member(Contract):
    """An enrolled site as the coordinator knows it."""

    site: SiteName
    sign_key: Key
    edge_key: Key
    declared_size: Annotated[int, Field(ge=1)]


class Federation(Contract):
    """All enrolled sites in the order of their names."""

    members: list[Member]

    def member(self, site: str) -> Member:
        """Return the member called `site`.

        Raises:
            ConsiliumError: E806.
        """
        for member in self.members:
            if member.site == site:
                return member
        raise ConsiliumError("E806", f"site {site!r}; enrolled: {[m.site for m in self.members]}")

    @property
    def sites(self) -> list[str]:
        """Names of all members, sorted."""
        return [member.site for member in self.members]


def load_federation(home: CoordinatorHome) -> Federation:
    """Read the registry; a home without one has no members.

    Raises:
        ConsiliumError: E107, the registry is damaged.
    """
    if not home.federation.exists():
        return Federation(members=[])
    try:
        return Federation.model_validate_json(home.federation.read_bytes())
    except ValidationError as error:
        raise ConsiliumError("E107", f"{home.federation}: {first_problem(error)}") from error


def enrol(home: CoordinatorHome, card: dict[str, object]) -> Member:
    """Add a site by its card (site, sign_key, edge_key, declared_size) and publish its edge key.

    The same card again changes nothing; another key or size under an enrolled name is refused.

    Raises:
        ConsiliumError: E107, the card is malformed or contradicts the registry.
    """
    try:
        member = Member.model_validate(card)
    except ValidationError as error:
        raise ConsiliumError("E107", first_problem(error)) from error
    if member.site in RESERVED or member.site.startswith("approve_"):  # task ids of the sign-off
        raise ConsiliumError("E107", f"site {member.site!r}: this name is taken by a part of Consilium")
    with locked(home.root / ".federation.lock"):
        federation = load_federation(home)
        known = {m.site: m for m in federation.members}
        if member.site in known and known[member.site] != member:
            raise ConsiliumError("E107", f"site {member.site!r} is enrolled with another key or size")
        known[member.site] = member
        members = [known[name] for name in sorted(known)]
        write_json(home.federation, Federation(members=members).model_dump(mode="json"))
        keys = [
            {"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": m.site, "x": m.edge_key}
            for m in members
        ]
        write_atomic(home.edge_jwks, json.dumps({"keys": keys}).encode())
    return member


def coordinator_key(home: CoordinatorHome) -> SigningKey:
    """The coordinator's signing key, drawn at first use."""
    with locked(home.root / ".key.lock"):
        if not home.signing_key.exists():
            SigningKey.generate("coordinator").save(home.signing_key)
    return SigningKey.load("coordinator", home.signing_key)
