"""The event log of a study: an append-only chain of lines, checked offline by whoever holds its head.

`events.jsonl` holds one canonical JSON line (RFC 8785) per event: `n` from 1, `time`, `event`, `key` (what
the event is about, so that it is written once), `details` (digests, numbers and names, never data) and
`previous`, the SHA-256 of the line before. The SHA-256 of the last line is the head: it fixes all lines and
their order.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, ValidationError

from contracts.canonical import canonical_json, sha256
from contracts.errors import ConsiliumError
from contracts.fields import Contract, Count, Digest, Text, Timestamp
from contracts.signing import first_problem

FILE = "events.jsonl"
GENESIS = "0" * 64

Name = Literal[
    "registered",
    "intake",
    "round_opened",
    "round_closed",
    "round_refused",
    "round_lost",
    "evaluation_opened",
    "unsealed",
    "judged",
    "exported",
    "verified",
    "candidate",
    "approved",
    "rejected",
    "published",
]


class Event(Contract):
    """One line of the log."""

    n: Annotated[Count, Field(ge=1)]
    time: Timestamp  # by the coordinator's clock
    event: Name
    key: Text
    details: dict[str, JsonValue] = {}
    previous: Digest

    @property
    def line(self) -> bytes:
        """The line's bytes, without the newline."""
        return canonical_json(self.model_dump(mode="json"))


def chain_head(data: bytes) -> str:
    """Return the head of a log: the digest of its last line; of an empty log 64 zeros."""
    lines = data.splitlines()
    return sha256(lines[-1]) if lines else GENESIS


def check_events(data: bytes, head: str | None) -> list[Event]:
    """Verify a log from its first line to its head, and return its events.

    Args:
        data: the content of `events.jsonl`.
        head: digest of the last line as a party states it whom the reader trusts (in a release, the signed
            manifest); None checks the chain alone.

    Raises:
        ConsiliumError: E712, a line is no event in canonical form or out of order, or the log ends elsewhere.
    """
    events: list[Event] = []
    previous = GENESIS
    if data and not data.endswith(b"\n"):
        raise ConsiliumError("E712", "the last line is cut off")
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            event = Event.model_validate_json(line)
        except ValidationError as error:
            raise ConsiliumError("E712", f"line {number}: {first_problem(error)}") from error
        if event.line != line:
            raise ConsiliumError("E712", f"line {number} is not in canonical form (RFC 8785)")
        if event.n != number or event.previous != previous:
            raise ConsiliumError("E712", f"line {number} does not follow the line before it")
        previous = sha256(line)
        events.append(event)
    if head is not None and previous != head:
        raise ConsiliumError("E712", f"the log ends in {previous[:12]}, expected {head[:12]}")
    return events


def frozen_cohorts(events: list[Event]) -> dict[str, str]:
    """Return each hospital's cohort as it was admitted last before the first exchange that asked it.

    The split of a cohort is fixed by its digest; so a holdout that is evaluated under the same digest was
    chosen before any model saw the hospital's patients. A hospital that no exchange asked has that of the
    time when the first one opened; without a first exchange nothing is frozen.
    """
    admitted: dict[str, str] = {}
    at_first: dict[str, str] | None = None
    frozen: dict[str, str] = {}
    for event in events:
        if event.event == "round_opened":
            if at_first is None:
                at_first = dict(admitted)
            for site in _texts(event.details.get("sites")):
                if site in admitted:
                    frozen.setdefault(site, admitted[site])
        elif event.event == "intake":
            cohorts: Any = event.details.get("cohorts", {})
            # An intake replaces what it speaks of; a silent hospital keeps its earlier cohort.
            for site in (*_texts(event.details.get("out")), *cohorts):
                admitted.pop(site, None)
            admitted |= {str(site): str(cohort) for site, cohort in cohorts.items()}
    return (at_first or {}) | frozen


def _texts(value: Any) -> list[str]:
    return [str(v) for v in value] if isinstance(value, list) else []
