"""The study's event log at the coordinator: what happened when, each event written once."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from contracts.canonical import sha256
from contracts.errors import ConsiliumError
from durable.files import locked
from release.events import FILE, Event, Name, chain_head, check_events
from tasks.home import CoordinatorHome


def events_path(home: CoordinatorHome, study: str) -> Path:
    """Where the log of a study lies."""
    return home.study(study) / FILE


def record_event(home: CoordinatorHome, study: str, event: Name, key: str, **details: Any) -> str:
    """Append an event unless it is there under this key; on disk when this returns.

    Args:
        key: what the event is about (a plan, a candidate): the same event with the same key is written once,
            however often a step is repeated, and keeps its first time and details.
        details: digests, numbers and names; never data of patients.

    Returns:
        The head of the chain up to this event.

    Raises:
        ConsiliumError: E712, the log was changed; nothing is appended to it.
    """
    path = events_path(home, study)
    with locked(path.with_name(f".{FILE}.lock")):
        data = _whole_lines(path)
        events = check_events(data, None)
        found = next((e for e in events if (e.event, e.key) == (event, key)), None)
        if found is None:
            found = Event(
                n=len(events) + 1,
                time=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                event=event,
                key=key,
                details=details,
                previous=chain_head(data),
            )
            _append(path, found.line + b"\n", len(data))
    return sha256(found.line)


def read_events(home: CoordinatorHome, study: str) -> list[Event]:
    """Return the events of a study in their order.

    Raises:
        ConsiliumError: E712, the log was changed.
    """
    return check_events(_whole_lines(events_path(home, study)), None)


def events_until(home: CoordinatorHome, study: str, event: Name, key: str) -> bytes:
    """Return the log up to and with an event: the same bytes however often and whenever it is asked for.

    Raises:
        ConsiliumError: E712, the log was changed, or the event is not in it.
    """
    data = _whole_lines(events_path(home, study))
    events = check_events(data, None)
    number = next((e.n for e in events if (e.event, e.key) == (event, key)), None)
    if number is None:
        raise ConsiliumError("E712", f"{event} of {key[:12]} is not in the log of {study!r}")
    return b"".join(data.splitlines(keepends=True)[:number])


def _whole_lines(path: Path) -> bytes:
    """The log without a line that a crash cut off: it was never acknowledged."""
    data = path.read_bytes() if path.exists() else b""
    return data[: data.rfind(b"\n") + 1]


def _append(path: Path, line: bytes, length: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.truncate(length)  # of the whole lines: what follows was cut off by a crash
        file.seek(length)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
