"""The audit log of the gate: one line of JSON for each refusal and each change that a hospital made.

`audit/gate-YYYY-MM-DD.jsonl` in the coordinator's folder, by the day in UTC. A request only queues its line;
a thread writes. Each hospital has an allowance of its own, from whatever addresses it comes, and all
strangers together have one: who floods blinds the log for nobody else, and what was left out is counted.
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
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from plugins.limits import Buckets

log = logging.getLogger(__name__)

LINES_PER_SECOND, LINES_AT_ONCE = 10.0, 500  # refusals of one hospital, or of one stranger's address
SITE_DAY_BYTES = 8 << 20  # of one hospital, some 20,000 lines
STRANGERS_DAY_BYTES = 16 << 20  # of all without a key together
REFUSALS_SHARE = 0.75  # of an allowance, so that changes are still recorded after a flood of refusals
KEEP_DAYS = 400  # a year and the time to look at it
MAX_WAITING = 10_000
UNKNOWN = "unknown"
_MAX_TEXT = 200
_METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")


@dataclass
class Visit:
    """What is known of one request, completed while the gate looks at it."""

    method: str
    address: str
    site: str = UNKNOWN
    path: str = "/*"  # a template: values of a path may be free text
    subject: str | None = None  # DAG, task, plan or worker, as the coordinator knows it
    audited: bool = False  # whether it is recorded although accepted
    behind: str = "airflow"  # who refused it when the gate did not, or why
    received: int = 0  # bytes of the body


@dataclass
class Audit:
    """The writer of the audit log of one process."""

    folder: Path
    today: Callable[[], date] = lambda: datetime.now(UTC).date()
    _waiting: queue.Queue[str | None] = field(default_factory=lambda: queue.Queue(MAX_WAITING))
    _lines: Buckets = field(default_factory=lambda: Buckets(LINES_PER_SECOND, LINES_AT_ONCE))
    _left_out: Counter[str] = field(default_factory=Counter)  # lines, by site
    _used: Counter[str] = field(default_factory=Counter)  # bytes of `_day`, by site
    _full: set[str] = field(default_factory=set)  # sites whose allowance of `_day` is used up
    _day: date | None = None
    _thread: threading.Thread | None = None

    def record(self, visit: Visit, status: int, reason: str) -> bool:
        """Queue a line and say whether it will be written; never waits and never fails."""
        self._begin_day()
        site, accepted = visit.site, reason == "accepted"
        sender = f"{site}@{visit.address}" if site == UNKNOWN else site
        if not accepted and not self._lines.take(sender):
            self._left_out[site] += 1
            return False
        line: dict[str, Any] = {
            "address": visit.address,
            "method": visit.method if visit.method in _METHODS else "other",
            "path": visit.path,
            "status": status,
            "reason": reason,
            "bytes": visit.received,
        }
        if visit.subject is not None:
            line["subject"] = visit.subject[:_MAX_TEXT]
        allowance = STRANGERS_DAY_BYTES if site == UNKNOWN else SITE_DAY_BYTES
        share = 1.0 if accepted else REFUSALS_SHARE
        if self._used[site] >= allowance * share:
            self._left_out[site] += 1
            if site not in self._full:
                self._full.add(site)
                self._queue(site, {"reason": "full"})
            return False
        return self._queue(site, line)

    def _queue(self, site: str, facts: dict[str, Any]) -> bool:
        """Queue a line with what was left out before it, or count it as left out too."""
        left_out = self._left_out.pop(site, 0)
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "site": site, **facts}
        # ASCII with every control character escaped: nobody else's text can end a line.
        text = json.dumps(line | ({"left_out": left_out} if left_out else {}))
        if self._thread is None:
            self._thread = threading.Thread(target=self._write, name="gate-audit", daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait(text)
        except queue.Full:
            self._left_out[site] += left_out + 1
            return False
        self._used[site] += len(text) + 1
        return True

    def _begin_day(self) -> None:
        if self._day != (today := self.today()):
            self._count_left_out()
            self._day = today
            self._used.clear()
            self._full.clear()

    def _count_left_out(self) -> None:
        """Say of every hospital that has lines left out how many, since it may never send another."""
        for site in [site for site, lines in self._left_out.items() if lines]:
            self._queue(site, {"reason": "left_out"})

    def close(self) -> None:
        """Write what waits, and how much was left out, and end the thread."""
        self._count_left_out()
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
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            file.write(line.encode() + b"\n")

    def _forget(self) -> None:
        kept = sorted(self.folder.glob("gate-*.jsonl"))[-KEEP_DAYS:]
        for path in set(self.folder.glob("gate-*.jsonl")) - set(kept):
            path.unlink(missing_ok=True)
