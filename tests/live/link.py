"""A network link between a hospital and its coordinator that can be cut, and that can flap by itself."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

CHUNK_BYTES = 16384


@dataclass
class Link:
    """A relay on a port of loopback; while it is down it resets what it carries and takes nothing new.

    Args:
        target: port of loopback that it leads to.
        up, down: seconds of each while it flaps; without `down` it stays up until it is cut.
    """

    target: int
    up: float = 0.0
    down: float = 0.0
    port: int = 0
    cuts: int = 0
    reset: int = 0
    _open: set[asyncio.StreamWriter] = field(default_factory=set)
    _is_up: bool = True

    async def serve(self, ready: threading.Event, ended: asyncio.Event) -> None:
        """Relay until `ended`."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        flapping = asyncio.create_task(self._flap()) if self.down else None
        await ended.wait()
        if flapping is not None:
            flapping.cancel()
        server.close()
        self._reset_all()

    async def _flap(self) -> None:
        while True:
            await asyncio.sleep(self.up)
            self._is_up = False
            self.cuts += 1
            self._reset_all()
            await asyncio.sleep(self.down)
            self._is_up = True

    def _reset_all(self) -> None:
        for writer in self._open:
            writer.transport.abort()
        self.reset += len(self._open)
        self._open.clear()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._is_up:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, far_writer}
        self._open |= both
        await asyncio.gather(_carry(reader, far_writer), _carry(far_reader, writer))
        self._open -= both
        for end in both:
            end.close()


async def _carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(CHUNK_BYTES):
            sink.write(data)
            await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()


@contextlib.contextmanager
def link_to(target: int, *, up: float = 0.0, down: float = 0.0) -> Iterator[Link]:
    """Run a link to a port of loopback for the block."""
    link, ready = Link(target, up, down), threading.Event()
    loop, ended = asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(link.serve(ready, ended),), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield link
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(10)
