"""Which sites are there: their edge workers' last authenticated request, noted by the gate."""

from __future__ import annotations

import time

from tasks.federation import load_federation
from tasks.home import CoordinatorHome

SECONDS = 15.0  # three heartbeats of an edge worker


def present_sites(home: CoordinatorHome, within: float = SECONDS, at: float | None = None) -> set[str]:
    """Return the enrolled sites heard of within the last `within` seconds."""
    limit = (time.time() if at is None else at) - within
    present = set()
    for site in load_federation(home).sites:
        path = home.presence / site
        if path.exists() and path.stat().st_mtime >= limit:
            present.add(site)
    return present
