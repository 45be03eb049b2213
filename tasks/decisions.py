"""The federation's log of decisions: who was admitted, rotated, revoked and removed when, for an auditor.

One signed line a decision, each naming the digest of the line before. The coordinator's own change of key is
a line by the old key, and the next one is by the new key. The newest digest travels in every startup kit: who
keeps kits notices a log that was written anew.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from contracts.canonical import sha256
from contracts.enrolment import COORDINATOR
from contracts.errors import ConsiliumError
from contracts.fields import Contract, Count, Digest, SiteName, Text, Timestamp
from contracts.signing import SigningKey, open_signed, parse_signed, to_text
from tasks.home import CoordinatorHome

GENESIS = "0" * 64

Name = Literal["admitted", "rotated", "revoked", "removed"]


class Decision(Contract):
    """One line of the log; `key` says what it is about, so that a repeated command writes it once."""

    n: Annotated[Count, Field(ge=1)]
    time: Timestamp
    decision: Name
    site: SiteName  # or `coordinator`
    key: Text
    details: dict[str, JsonValue] = {}
    previous: Digest


def read_decisions(home: CoordinatorHome, key: str) -> list[Decision]:
    """Verify the log from its first line to its last and return its decisions.

    Args:
        key: the coordinator's public key in force.

    Raises:
        ConsiliumError: E813.
    """
    return _check(_whole_lines(home), key)


def decisions_head(home: CoordinatorHome) -> str:
    """Digest of the last line; of an empty log 64 zeros."""
    return _head(_whole_lines(home))


def ended_keys(decisions: list[Decision]) -> dict[str, str]:
    """Keys of hospitals that were replaced or revoked, and when: they count for nothing new, for ever.

    What a member had when it was removed has not ended: it may have been approved under a wrong name.
    """
    current: dict[str, set[str]] = {}
    ended: dict[str, str] = {}
    for one in decisions:
        named = {str(one.details[name]) for name in ("sign_key", "edge_key") if name in one.details}
        if one.decision == "rotated":
            ended |= dict.fromkeys(current.get(one.site, set()) - named, one.time)
        elif one.decision == "revoked":
            ended |= dict.fromkeys(current.get(one.site, set()) | named, one.time)
        current[one.site] = named
    return ended


def record_decision(
    home: CoordinatorHome, signing: SigningKey, decision: Name, site: str, key: str, time: str, **details: Any
) -> None:
    """Append a decision, on disk when this returns; what is the newest of its site already is not repeated.

    The caller holds the lock of the registry.

    Raises:
        ConsiliumError: E813, the log was changed; nothing is appended to it. E812, a change of the
            coordinator's key was interrupted.
    """
    data = _whole_lines(home)
    known = _check(data, signing.public)
    last = next((d for d in reversed(known) if d.site == site), None)
    if last is not None and (last.decision, last.key) == (decision, key):
        return
    if known and _named_key(known[-1]) not in (None, signing.public):
        raise ConsiliumError(
            "E812", "run `consilium federation rotate --coordinator` again: it was interrupted"
        )
    made = Decision(
        n=len(known) + 1,
        time=time,
        decision=decision,
        site=site,
        key=key,
        details=details,
        previous=_head(data),
    )
    line = to_text(signing.sign(made)).encode() + b"\n"
    home.decisions.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(home.decisions, os.O_WRONLY | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.truncate(len(data))  # of the whole lines: what follows was cut off by a crash
        file.seek(len(data))
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _whole_lines(home: CoordinatorHome) -> bytes:
    data = home.decisions.read_bytes() if home.decisions.exists() else b""
    return data[: data.rfind(b"\n") + 1]


def _head(data: bytes) -> str:
    lines = data.splitlines()
    return sha256(lines[-1]) if lines else GENESIS


def _named_key(decision: Decision) -> str | None:
    """The key that the coordinator signs with after this decision, if it changes it."""
    if (decision.decision, decision.site) != ("rotated", COORDINATOR):
        return None
    return str(decision.details.get("new_key"))


def _check(data: bytes, key: str) -> list[Decision]:
    found: list[Decision] = []
    previous, signer, before = GENESIS, None, None
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            signer = signer or parse_signed(line).key
            decision = open_signed(line, Decision, COORDINATOR, signer)
        except ConsiliumError as error:
            raise ConsiliumError("E813", f"line {number}: {error.detail}") from error
        if (decision.n, decision.previous) != (number, previous):
            raise ConsiliumError("E813", f"line {number} does not follow the line before it")
        found.append(decision)
        previous, before = sha256(line), signer
        signer = _named_key(decision) or signer
    # The last line may be the change itself, whose key takes its place a moment later.
    if found and key not in (signer, before):
        raise ConsiliumError("E813", f"the log ends with key {signer}, in force is {key}")
    return found
