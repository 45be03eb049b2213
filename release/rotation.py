"""Rotation of the release key: the old key signs its successor, in a file that verifiers may be given.

`rotations.jsonl` has one line a rotation. Whoever trusts the first key can follow the lines to the last. A
rotation proves only that the holder of the old key wanted it: after a theft the old key's word is worth
nothing, and the new key is handed over anew.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, StringConstraints, ValidationError

from contracts.canonical import canonical_json
from contracts.errors import ConsiliumError
from contracts.fields import Contract, Text, Timestamp
from contracts.signing import first_problem
from release.signature import PublicKey, ReleaseKey

_Pem = Annotated[str, StringConstraints(max_length=400)]


class Rotation(Contract):
    """One change of the release key. `signature` is the old key's, base64 of DER, over all other fields."""

    old: _Pem
    new: _Pem
    time: Timestamp
    reason: Text
    signature: Annotated[str, Field(max_length=120)] = ""

    @property
    def signed_bytes(self) -> bytes:
        """What the signature covers."""
        return b"consilium/rotation/1\n" + canonical_json(self.model_copy(update={"signature": ""}))


@dataclass(frozen=True)
class TrustedKey:
    """A key that counts: the one that the verifier brought, or a successor of it.

    Attributes:
        until: when it was replaced, UTC; a release published later is not accepted from it. None: in force.
    """

    key: PublicKey
    until: str | None = None


def rotation(old: ReleaseKey, new: PublicKey, time: str, reason: str) -> Rotation:
    """Return the signed line by which `old` names `new` its successor."""
    unsigned = Rotation(old=old.public.pem, new=new.pem, time=time, reason=reason)
    signature = base64.b64encode(old.sign_bytes(unsigned.signed_bytes)).decode()
    return unsigned.model_copy(update={"signature": signature})


def read_rotations(data: bytes) -> list[Rotation]:
    """Parse `rotations.jsonl`; signatures are checked in `trusted_keys`.

    Raises:
        ConsiliumError: E802, a line is not the canonical JSON of a rotation.
    """
    found = []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            one = Rotation.model_validate_json(line)
        except ValidationError as error:
            raise ConsiliumError("E802", f"rotation {number}: {first_problem(error)}") from error
        if canonical_json(one) != line:
            raise ConsiliumError("E802", f"rotation {number} is not in canonical form (RFC 8785)")
        found.append(one)
    return found


def trusted_keys(first: PublicKey, rotations: Sequence[Rotation]) -> list[TrustedKey]:
    """Follow the rotations from the key that the verifier brought to the one in force.

    Lines before the trusted key are no concern of the verifier's; from there on each must follow the last.

    Raises:
        ConsiliumError: E803, a line is not signed by the key that it replaces, or is dated before the last.
    """
    chain = [TrustedKey(first)]
    for one in rotations:
        last = chain[-1].key
        if one.old != last.pem:
            if len(chain) == 1:
                continue
            raise ConsiliumError("E803", f"the rotation of {one.time} is not by {last.fingerprint[:12]}...")
        try:
            signature = base64.b64decode(one.signature, validate=True)
        except (ValueError, binascii.Error):
            signature = b""
        if not last.verifies(one.signed_bytes, signature):
            raise ConsiliumError("E803", f"the rotation of {one.time} is not signed by the key it replaces")
        if len(chain) > 1 and one.time < (chain[-2].until or ""):
            raise ConsiliumError("E803", f"the rotation of {one.time} is dated before the one it follows")
        chain[-1] = TrustedKey(last, one.time)
        chain.append(TrustedKey(PublicKey.parse(one.new, f"the rotation of {one.time}")))
    return chain
