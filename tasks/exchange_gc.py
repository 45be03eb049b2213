"""What lies in the exchange and is of no use any more: found, and thrown away.

A content is kept as long as any document of the coordinator names its digest: a head, plan, record, answer,
request or release. Replay needs every update of every closed round, so that only what was never admitted
(late and refused updates, plans made anew) ever becomes free, and it too stays for `keep_days`.

A document that cannot be read could name anything: then nothing is thrown away.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks.exchange import DirectoryExchange
from tasks.home import CoordinatorHome
from tasks.settings import load_settings

BEGUN_DAYS = 1.0  # how long an upload that is not complete may stand still
NEW_DAYS = 1.0  # while studies run: what a step has just stored, a document names a moment later
_DIGEST = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_DOCUMENTS = (".json", ".jsonl", ".yaml", ".dvc")
_DAY = 86_400.0


@dataclass(frozen=True)
class Content:
    """One file of the exchange: its size in bytes, its age in days, and what it is."""

    path: Path
    size: int
    days: float
    named: bool  # by a document, or an answer to a plan that is open
    complete: bool = True

    def is_garbage(self, keep_days: float) -> bool:
        """Say whether it may go."""
        return not self.named and self.days > (keep_days if self.complete else min(keep_days, BEGUN_DAYS))


def contents(home: CoordinatorHome) -> list[Content]:
    """Everything in the exchange, what is not complete included."""
    store = DirectoryExchange(home.exchange)
    open_plans = set(_open_plans(home))
    named = _named(home, open_plans)
    found = []
    for path in sorted(home.exchange.rglob("*")):
        try:
            status = path.stat()
        except FileNotFoundError:  # an upload that was completed meanwhile
            continue
        if not path.is_file():
            continue
        begun = path.is_relative_to(store.partial)
        complete = not begun and not path.name.startswith(".incoming.")
        needed = path.parent.parent.name in open_plans if begun else path.name.encode() in named
        found.append(Content(path, status.st_size, _days(status), needed, complete))
    return found


def collect(home: CoordinatorHome, keep_days: float, *, dry_run: bool = False) -> list[Content]:
    """Throw away what nothing names and has not changed for `keep_days`; return it.

    Args:
        dry_run: only return it.
    """
    garbage = [content for content in contents(home) if content.is_garbage(keep_days)]
    if not dry_run:
        for content in garbage:
            with contextlib.suppress(FileNotFoundError):
                if _days(content.path.stat()) >= content.days:  # or it has been stored again meanwhile
                    content.path.unlink()
            for folder in content.path.parents:
                if folder == home.exchange or any(folder.iterdir()):
                    break
                folder.rmdir()
    return garbage


def collect_daily(home: CoordinatorHome) -> list[Content]:
    """Throw away what the settings say, while studies run: never what is new. Returns it.

    Raises:
        ConsiliumError: E112, the settings.
    """
    return collect(home, max(load_settings(home).exchange.keep_days, NEW_DAYS))


def _open_plans(home: CoordinatorHome) -> Iterator[str]:
    for path in home.studies.glob("*/head.json"):
        plan = json.loads(path.read_bytes()).get("plan")
        if plan:
            yield plan


def _named(home: CoordinatorHome, open_plans: set[str]) -> set[bytes]:
    """Digests in any document. A receipt is none of them, unless its plan still waits for its envelope."""
    found: set[bytes] = set()
    for root in filter(Path.is_dir, (home.studies, home.releases, home.registry, home.evidence)):
        for folder, folders, files in os.walk(root, onerror=_unreadable):
            folders[:] = [name for name in folders if name not in (".git", "received")]
            for name in files:
                if name.endswith(_DOCUMENTS):
                    found.update(_DIGEST.findall(Path(folder, name).read_bytes()))
    for plan in open_plans:
        for receipt in home.studies.glob(f"*/received/{plan}/*"):
            found.add(receipt.read_bytes())
    return found


def _days(status: os.stat_result) -> float:
    """Since a file was last written."""
    return (time.time() - status.st_mtime) / _DAY


def _unreadable(error: OSError) -> None:
    raise error
