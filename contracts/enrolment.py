"""What a hospital and a coordinator exchange to know each other: request, startup kit, change of a key.

Every document proves itself: whoever signed it held the keys that stand in it. Whose keys they are, only a
fingerprint says that people compared by another way than these files.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints, field_validator, model_validator

from contracts.canonical import canonical_json
from contracts.errors import ConsiliumError
from contracts.fields import Contract, Digest, Key, Signature, SiteName, Text, Timestamp, Version
from contracts.signing import Signed, SigningKey, open_signed, parse_signed, to_text, verify_bytes

COORDINATOR = "coordinator"  # how the coordinator signs; no hospital can have this name
MAX_ROTATIONS = 100  # that a kit carries: the newest

Url = Annotated[str, StringConstraints(pattern=r"^https?://[^\s]{1,400}$")]
Size = Annotated[int, Field(ge=1, le=2**40)]


def _one_open_address(url: str) -> str:
    if "::" in url:
        raise ValueError("expected one address, not a chain of them")
    if urlsplit(url).password is not None:
        raise ValueError("expected an address without a password: credentials come from the environment")
    return url


# As fsspec reads it. What a shell, a terminal or a page would read in another way is not in it.
BucketUrl = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z][a-z0-9+.-]{0,30}://[A-Za-z0-9._~:/@%+=-]{1,400}$"),
    AfterValidator(_one_open_address),
]


def fingerprint(key: str) -> str:
    """SHA-256 of a raw public key (32 bytes) as 16 groups of 4 hexadecimal digits, to be read out."""
    raw = base64.urlsafe_b64decode(key + "=")
    text = hashlib.sha256(raw).hexdigest()
    return " ".join(text[i : i + 4] for i in range(0, len(text), 4))


def check_fingerprint(given: str, key: str) -> None:
    """Check a fingerprint that a person gives, however it is spaced or written, against a key.

    Raises:
        ConsiliumError: E809.
    """
    plain = re.sub(r"[\s:-]", "", given).lower()
    if plain != fingerprint(key).replace(" ", ""):
        raise ConsiliumError("E809", f"given {given!r}, the key in the document has {fingerprint(key)!r}")


class JoinRequest(Contract):
    """A hospital asks to be a member: its public keys, and proof that it holds both private ones.

    The envelope is signed by `sign_key`; `edge_proof` is the signature of `edge_key` over all other fields.
    """

    site: SiteName
    sign_key: Key
    edge_key: Key
    declared_size: Size  # patients in training, two significant figures
    created: Timestamp
    edge_proof: Signature

    @model_validator(mode="after")
    def _two_keys(self) -> JoinRequest:
        if self.sign_key == self.edge_key:
            raise ValueError("sign_key and edge_key must be two keys")
        return self


class KeyRotation(Contract):
    """A party's new keys, wanted by the old key (the envelope) and held by whoever signs (the proofs).

    `edge_key` and its proof are there for a hospital; the coordinator has none.
    """

    owner: SiteName  # a site, or `coordinator`
    old_key: Key
    new_key: Key
    edge_key: Key | None = None
    created: Timestamp
    proof: Signature  # of new_key over all fields but the proofs
    edge_proof: Signature | None = None

    @model_validator(mode="after")
    def _new_keys(self) -> KeyRotation:
        keys = [key for key in (self.old_key, self.new_key, self.edge_key) if key is not None]
        if len(set(keys)) != len(keys):
            raise ValueError("old_key, new_key and edge_key must differ")
        if (self.edge_key is None) != (self.edge_proof is None):
            raise ValueError("edge_key and edge_proof come together")
        return self


class MemberCard(Contract):
    """A member as the others may know it, for pinning."""

    site: SiteName
    sign_key: Key
    declared_size: Size


class StartupKit(Contract):
    """What a hospital needs of its coordinator to begin, signed by it. There is no private key in it."""

    federation: Text
    url: Url  # as hospitals reach the coordinator
    coordinator_key: Key
    ca: Annotated[str, StringConstraints(max_length=20_000)] | None = None  # PEM; a public authority: None
    # Where the federation keeps its tensors besides the coordinator itself: an offer, which a hospital uses
    # only if its own policy names the same.
    exchange: BucketUrl | None = None
    members: Annotated[list[MemberCard], Field(max_length=1000)]  # active ones
    # Changes of the coordinator's and the members' keys, oldest first: who pinned an old key can follow them.
    rotations: Annotated[list[Signed], Field(max_length=MAX_ROTATIONS)] = []
    code_versions: Annotated[list[Version], Field(min_length=1, max_length=16)]
    log_head: Digest  # of the federation's log of decisions: it can no longer be written anew unnoticed
    created: Timestamp

    @field_validator("ca")
    @classmethod
    def _certificates_alone(cls, value: str | None) -> str | None:
        labels = set(re.findall(r"-----BEGIN ([^-]*)-----", value or ""))
        if value is not None and labels != {"CERTIFICATE"}:
            raise ValueError("expected PEM certificates and nothing else")
        return value

    def card(self, site: str) -> MemberCard | None:
        """The card of a member, or None."""
        return next((card for card in self.members if card.site == site), None)


def proof_bytes(kind: str, fields: dict[str, Any]) -> bytes:
    """What a proof of possession covers: the document without its proofs, and its type."""
    body = {k: v for k, v in fields.items() if k not in ("proof", "edge_proof") and v is not None}
    return canonical_json({"type": kind, **body})


def make_request(sign: SigningKey, edge: SigningKey, declared_size: int, created: str) -> JoinRequest:
    """Return the request of the site that owns both keys; the caller signs it with `sign`."""
    fields: dict[str, Any] = {
        "site": sign.owner,
        "sign_key": sign.public,
        "edge_key": edge.public,
        "declared_size": declared_size,
        "created": created,
    }
    return JoinRequest(**fields, edge_proof=edge.sign_bytes(proof_bytes("JoinRequest", fields)))


def open_request(text: str | bytes) -> tuple[JoinRequest, str]:
    """Verify that a request is by the holder of both keys in it, and return it with its digest.

    Raises:
        ConsiliumError: E802, malformed; E803, not signed by its own keys.
    """
    signed = parse_signed(text)
    request = open_signed(text, JoinRequest, signed.signer, signed.key)
    if (signed.signer, signed.key) != (request.site, request.sign_key):
        raise ConsiliumError("E803", f"the request of {request.site!r} is signed by another key than its own")
    _check_proof(request, request.edge_key, request.edge_proof)
    return request, signed.digest


def make_rotation(
    old: SigningKey, new: SigningKey, created: str, edge: SigningKey | None = None
) -> KeyRotation:
    """Return the change from `old` to `new` (and a site's new edge key); the caller signs it with `old`."""
    fields: dict[str, Any] = {
        "owner": old.owner,
        "old_key": old.public,
        "new_key": new.public,
        "edge_key": None if edge is None else edge.public,
        "created": created,
    }
    data = proof_bytes("KeyRotation", fields)
    edge_proof = None if edge is None else edge.sign_bytes(data)
    return KeyRotation(**fields, proof=new.sign_bytes(data), edge_proof=edge_proof)


def open_rotation(text: str | bytes) -> KeyRotation:
    """Verify that a change is signed by the old key in it and proves the new ones.

    Raises:
        ConsiliumError: E802, malformed; E803, a signature is not by its key.
    """
    signed = parse_signed(text)
    rotation = open_signed(text, KeyRotation, signed.signer, signed.key)
    if (signed.signer, signed.key) != (rotation.owner, rotation.old_key):
        raise ConsiliumError("E803", f"the change of {rotation.owner!r} is not signed by the key it replaces")
    _check_proof(rotation, rotation.new_key, rotation.proof)
    if rotation.edge_key is not None and rotation.edge_proof is not None:
        _check_proof(rotation, rotation.edge_key, rotation.edge_proof)
    return rotation


def newest_key(rotations: Iterable[Signed], owner: str, key: str) -> str:
    """Follow the changes of `owner`'s key from `key`, in the order given, to the last one that is proven.

    Changes of other parties, and those that lead from another key, are no concern of this chain.

    Raises:
        ConsiliumError: E802, E803, a change from the key in force does not verify.
    """
    for signed in rotations:
        if signed.signer == owner and signed.key == key:
            key = open_rotation(to_text(signed)).new_key
    return key


def open_kit(text: str | bytes) -> StartupKit:
    """Verify that a kit is signed by the key in it. Whether that key is the coordinator's, it cannot say.

    Raises:
        ConsiliumError: E802, malformed; E803, not signed by its own key.
    """
    signed = parse_signed(text)
    kit = open_signed(text, StartupKit, COORDINATOR, signed.key)
    if kit.coordinator_key != signed.key:
        raise ConsiliumError("E803", "the kit is signed by another key than the one it names")
    return kit


def _check_proof(document: JoinRequest | KeyRotation, key: str, proof: str) -> None:
    fields = document.model_dump(mode="json")
    if not verify_bytes(proof_bytes(type(document).__name__, fields), proof, key):
        raise ConsiliumError("E803", f"whoever signed does not hold the private key of {key}")
