"""The audit log of the gate: one line of JSON for each refusal and each change that a hospital made.

`audit/gate-YYYY-MM-DD.jsonl` in the coordinator's folder, by the day in UTC. A request only queues its line;
a thread writes. A sender who floods gets a bounded number of lines, and the number of those left out.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from plugins.limits import Buckets

log = logging.getLogger(__name__)

LINES_PER_SECOND, LINES_AT_ONCE = 10.0, 500  # of one sender
MAX_DAY_BYTES = 256 << 20
KEEP_DAYS = 400  # a year and the time to look at it
MAX_WAITING = 10_000
_MAX_TEXT = 200


@dataclass
class Visit:
    """What is known of one request, completed while the gate looks at it."""

    method: str
    address: str
    site: str = "unknown"
    path: str = "/*"  # a template: values of a path may be free text
    subject: str | None = None  # DAG, task or worker, of a known endpoint
    audited: bool = False  # whether it is recorded although accepted
    behind: str = "airflow"  # who refused it when the gate did not, or why
    received: int = 0  # bytes of the body


@dataclass
class Audit:
    """The writer of the audit log of one process."""

    folder: Path
    _waiting: queue.Queue[str | None] = field(default_factory=lambda: queue.Queue(MAX_WAITING))
    _lines: Buckets = field(default_factory=lambda: Buckets(LINES_PER_SECOND, LINES_AT_ONCE))
    _left_out: Counter[str] = field(default_factory=Counter)
    _thread: threading.Thread | None = None

    def record(self, visit: Visit, status: int, reason: str) -> None:
        """Queue a line; never waits and never fails."""
        sender = f"{visit.site}@{visit.address}"
        if not self._lines.take(sender):
            self._left_out[sender] += 1
            return
        line: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "site": visit.site,
            "address": visit.address,
            "method": visit.method[:16],
            "path": visit.path,
            "status": status,
            "reason": reason,
            "bytes": visit.received,
        }
        if visit.subject is not None:
            line["subject"] = visit.subject[:_MAX_TEXT]
        if left_out := self._left_out.pop(sender, 0):
            line["left_out"] = left_out
        if self._thread is None:
            self._thread = threading.Thread(target=self._write, name="gate-audit", daemon=True)
            self._thread.start()
        with contextlib.suppress(queue.Full):
            # ASCII with every control character escaped: nobody else's text can end a line.
            self._waiting.put_nowait(json.dumps(line))

    def close(self) -> None:
        """Write what waits and end the thread."""
        if self._thread is not None:
            with contextlib.suppress(queue.Full):
                self._waiting.put(None, timeout=1.0)
            self._thread.join(timeout=5.0)
            self._thread = None

    def _write(self) -> None:
        while True:
            line = self._waiting.get()
            if line is None:
                return
            try:
                self._append(line)
            except OSError as error:  # a full disk must not stop the federation
                log.error("gate: the audit log cannot be written: %s", error)
                time.sleep(1.0)

    def _append(self, line: str) -> None:
        path = self.folder / f"gate-{datetime.now(UTC):%Y-%m-%d}.jsonl"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._forget()
        elif path.stat().st_size > MAX_DAY_BYTES:
            return
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            file.write(line.encode() + b"\n")

    def _forget(self) -> None:
        kept = sorted(self.folder.glob("gate-*.jsonl"))[-KEEP_DAYS:]
        for path in set(self.folder.glob("gate-*.jsonl")) - set(kept):
            path.unlink(missing_ok=True)
