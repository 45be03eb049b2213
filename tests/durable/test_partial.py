"""A file that arrives in pieces, written behind the caller's back."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from pathlib import Path

import pytest

from contracts.errors import ConsiliumError
from durable import partial as module
from durable.partial import Busy, Partial

BLOCK = bytes(range(256)) * 64


def failing(partial: Partial, number: int) -> None:
    """Let the next write of a block fail with this error of the system."""

    class Full:
        closed = False

        def write(self, _: object) -> int:
            raise OSError(number, os.strerror(number))

        def close(self) -> None:
            self.closed = True
            whole.close()

    whole = partial._file
    partial._file = Full()  # type: ignore[assignment]


def test_it_goes_on_where_it_was_closed_and_appears_whole(tmp_path: Path) -> None:
    first = Partial(tmp_path / "begun")
    first.write(BLOCK)
    with pytest.raises(Busy):
        Partial(tmp_path / "begun")
    first.close()
    second = Partial(tmp_path / "begun")
    assert second.size == len(BLOCK)
    second.write(BLOCK)
    assert second.digest == hashlib.sha256(2 * BLOCK).hexdigest()
    second.move(tmp_path / "folder" / "whole")
    assert (tmp_path / "folder" / "whole").read_bytes() == 2 * BLOCK
    assert not (tmp_path / "begun").exists()


def test_begun_anew_it_has_the_digest_of_what_came_since(tmp_path: Path) -> None:
    partial = Partial(tmp_path / "begun")
    partial.write(b"another")
    partial.restart()
    partial.write(BLOCK)
    assert partial.digest == hashlib.sha256(BLOCK).hexdigest()
    partial.close()


def test_much_is_handed_to_the_disk_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advised: list[tuple[int, int]] = []
    monkeypatch.setattr(module, "_WRITE_BACK", 2 * len(BLOCK))
    monkeypatch.setattr(module.os, "posix_fadvise", lambda _, start, size, how: advised.append((start, size)))
    partial = Partial(tmp_path / "begun")
    for _ in range(5):
        partial.write(BLOCK)
    partial.close()
    assert advised == [(0, 2 * len(BLOCK)), (2 * len(BLOCK), 2 * len(BLOCK))]


@pytest.mark.parametrize("then", ["write", "digest", "move"])
def test_a_full_disk_is_told_by_the_next_call_and_nothing_is_kept(tmp_path: Path, then: str) -> None:
    partial = Partial(tmp_path / "begun")
    partial.write(BLOCK)
    assert partial.digest
    failing(partial, errno.ENOSPC)
    partial.write(BLOCK)
    calls = {
        "write": lambda: partial.write(BLOCK),
        "digest": lambda: partial.digest,
        "move": lambda: partial.move(tmp_path / "whole"),
    }
    with pytest.raises(ConsiliumError, match="E821"):
        calls[then]()
    partial.close()
    assert list(tmp_path.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("partial")]


def test_who_failed_does_not_throw_away_what_another_began(tmp_path: Path) -> None:
    partial = Partial(tmp_path / "begun")
    failing(partial, errno.EIO)
    partial.write(BLOCK)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        partial.write(BLOCK)
    successor = Partial(tmp_path / "begun")
    successor.write(BLOCK)
    partial.discard()
    assert successor.digest == hashlib.sha256(BLOCK).hexdigest()
    successor.move(tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes() == BLOCK
