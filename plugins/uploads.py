"""Receiving an upload: in pieces, over broken connections, within a quota and what the disk has room for."""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect

from contracts.errors import ConsiliumError
from durable.partial import Busy, Partial

log = logging.getLogger(__name__)

BATCH_BYTES = 1 << 20  # written and hashed at once, outside the event loop
BATCH_SECONDS = 60.0  # for so many bytes: who sends more slowly is ended, and may go on later
MOST_PARTIALS = 4  # begun uploads of one site for one plan
SPARE_BYTES = 256 << 20  # of the disk, for everything else that the coordinator writes

TAKE_OVER_SECONDS = 5.0  # for an older request with the same upload to let go

_CONTENT_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})")


class _Batches:
    """The body in larger pieces. It ends early, with what came, if too slow, cut off or superseded.

    Args:
        length: of the whole content, bytes: so much room is kept for it.
    """

    def __init__(self, request: Request, length: int) -> None:
        self.length = length
        self._stream = request.stream()
        self._waiting: asyncio.Timeout | None = None
        self._ended = False

    def supersede(self) -> None:
        """The same site sends the same upload again: the connection of this one is dead to it."""
        self._ended = True
        if self._waiting is not None:
            self._waiting.reschedule(0)

    async def __aiter__(self) -> AsyncIterator[bytearray]:
        while not self._ended:
            batch = bytearray()
            try:
                async with asyncio.timeout(BATCH_SECONDS) as self._waiting:
                    while len(batch) < BATCH_BYTES:
                        batch += await anext(self._stream)
            except (StopAsyncIteration, TimeoutError, ClientDisconnect):
                self._ended = True
            finally:
                self._waiting = None
            yield batch


_receiving: dict[Path, _Batches] = {}  # by where it is kept: the request that sends an upload just now


@dataclass(frozen=True)
class Upload:
    """One content that a site sends for a plan; its beginning is kept at `path`.

    Args:
        path: `<plan>/<site>/<digest>` below the folder of what is not complete.
        length: of the whole, bytes.
        quota: what all that the site begins for the plan may hold, bytes.
    """

    path: Path
    length: int
    quota: int

    def offset(self) -> int:
        """How many bytes are there; more than there should be are none."""
        size = _size(self.path)
        return size if size <= self.length else 0

    def check_room(self) -> None:
        """Refuse before anything is written.

        Raises:
            HTTPException: 413, over the quota or too many begun; 507, the disk would be full.
        """
        others = {path: _size(path) for path in self.path.parent.glob("*")}
        # What another request sends just now has its room already, whatever has come of it.
        sent = {path: batches.length for path, batches in _receiving.items()}
        others |= {path: length for path, length in sent.items() if path.parent == self.path.parent}
        others.pop(self.path, None)
        begun = sum(others.values())
        if begun + self.length > self.quota:
            raise HTTPException(413, f"{begun + self.length} bytes, above the quota of {self.quota}")
        if len(others) >= MOST_PARTIALS:
            raise HTTPException(413, f"{len(others)} other uploads were begun for this plan")
        existing = next(folder for folder in self.path.parents if folder.exists())
        to_come = sum(
            max(0, length - _size(path)) for path, length in (sent | {self.path: self.length}).items()
        )
        if shutil.disk_usage(existing).free < to_come + SPARE_BYTES:
            log.warning("exchange: no room for %d bytes", self.length)
            raise HTTPException(507, "the coordinator's disk is too full; try again later")

    async def receive(self, request: Request, start: int) -> Partial:
        """Append the body, which begins at `start`; return the whole, open.

        Raises:
            HTTPException: 408, too slow or cut off, what came is kept; 413, over the quota or too many begun;
                416, the beginning that is here ends elsewhere; 503, another request is sending it; 507, the
                disk is full.
        """
        # Nothing waits between the check and the note of what was let in: of two at once the second sees it.
        self.check_room()
        batches = _Batches(request, self.length)
        if (older := _receiving.get(self.path)) is not None:
            older.supersede()
        _receiving[self.path] = batches
        try:
            partial = await self._taken_over()
            try:
                await self._append(partial, batches, start)
            except BaseException:
                await asyncio.to_thread(partial.close)  # it waits for the last block
                raise
            return partial
        except ConsiliumError as error:
            raise HTTPException(507, error.sentence) from error
        finally:
            if _receiving.get(self.path) is batches:
                del _receiving[self.path]

    async def _taken_over(self) -> Partial:
        """Open the beginning, once an older request has let go of it."""
        until = time.monotonic() + TAKE_OVER_SECONDS
        while True:
            try:
                return await asyncio.to_thread(Partial, self.path)
            except Busy as error:
                if time.monotonic() > until:
                    raise HTTPException(503, "this upload is in progress") from error
                await asyncio.sleep(0.05)

    async def _append(self, partial: Partial, batches: _Batches, start: int) -> None:
        if start == 0:
            partial.restart()
        if start != partial.size:
            raise HTTPException(416, f"{partial.size} bytes are here")
        async for batch in batches:
            if partial.size + len(batch) > self.length:
                raise HTTPException(400, "longer than declared")
            await asyncio.to_thread(partial.write, batch)
        if partial.size != self.length:
            raise HTTPException(408, "too slow, or cut off; what came is kept")


def _size(path: Path) -> int:
    """Bytes that are there; an upload may end, and its file go, at any moment."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def body_start(request: Request, length: int) -> int:
    """Where the body begins in a content of `length` bytes; it always reaches to the end.

    Raises:
        HTTPException: 411, no Content-Length; 400, Content-Range and Content-Length do not fit the content.
    """
    try:
        declared = int(request.headers["content-length"])
    except (KeyError, ValueError) as error:
        raise HTTPException(411, "Content-Length is needed") from error
    text = request.headers.get("content-range")
    match = _CONTENT_RANGE.fullmatch(text or f"bytes 0-{max(length - 1, 0)}/{length}")
    if match is None:
        raise HTTPException(400, "Content-Range is not of the form bytes FIRST-LAST/LENGTH")
    first, last, total = (int(number) for number in match.groups())
    if total != length or last != max(length - 1, 0) or declared != length - first:
        raise HTTPException(400, "Content-Range and Content-Length do not reach to the end of the content")
    return first
