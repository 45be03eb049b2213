"""How many requests of machines Airflow works on at once: fewer than it has connections to its database.

Airflow's endpoints run in 40 threads and give a connection back in another call of these threads. When as
many wait for one as there are threads, nobody can give one back, until the pool's time is up (30 seconds).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

PLACES = 12  # of the 15 connections that Airflow's pool has by default; the rest is for people and look-ups
PLACES_EACH = 3  # of one sender: four that flood at once still leave nobody else without a turn


class Room:
    """Places for requests. Who finds none waits for its turn, and first for that of its own sender."""

    def __init__(self, places: int = PLACES, each: int = PLACES_EACH) -> None:
        self._all = asyncio.Semaphore(places)
        self._each = each
        self._of: dict[str, asyncio.Semaphore] = {}

    @contextlib.asynccontextmanager
    async def place(self, sender: str) -> AsyncIterator[None]:
        """One place for a request of `sender`, a hospital or the coordinator itself."""
        # Its own share first: what a sender has beyond it stands in its own line, not in everybody's.
        async with self._of.setdefault(sender, asyncio.Semaphore(self._each)), self._all:
            yield
