"""Whole files and whole lines, also when the disk is full or the writer was killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.errors import ConsiliumError
from durable.files import append_line, read_lines, write_atomic
from tasks.exchange import DirectoryExchange
from tests.disk import fill, is_no_space, small_disk


def test_a_full_disk_leaves_the_old_file_and_the_old_lines(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        write_atomic(disk / "file", b"old")
        append_line(disk / "log", "first")
        ballast = fill(disk, leave=8192)
        for write in (
            lambda: write_atomic(disk / "file", bytes(1 << 19)),
            lambda: append_line(disk / "log", "x" * (1 << 19)),
        ):
            with pytest.raises(OSError) as full:
                write()
            assert is_no_space(full.value)
        assert (disk / "file").read_bytes() == b"old"
        assert (disk / "log").read_text() == "first\n"
        assert not list(disk.glob(".file.*"))
        ballast.unlink()
        write_atomic(disk / "file", b"new")
        append_line(disk / "log", "second")
        assert read_lines(disk / "log") == ["first", "second"]
        assert (disk / "file").read_bytes() == b"new"


def test_a_full_exchange_keeps_nothing_of_what_did_not_fit(tmp_path: Path) -> None:
    (tmp_path / "update").write_bytes(b"u" * (1 << 19))
    with small_disk(tmp_path / "disk", "1m") as disk:
        exchange = DirectoryExchange(disk / "exchange")
        exchange.root.mkdir()
        ballast = fill(disk, leave=8192)
        with pytest.raises(ConsiliumError, match="E821"):
            exchange.put(tmp_path / "update")
        assert list(exchange.root.rglob("*")) == []
        ballast.unlink()
        digest = exchange.put(tmp_path / "update")
        exchange.get(digest, tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == (tmp_path / "update").read_bytes()


@pytest.mark.parametrize("torn", ["", "{", "tail of a killed writer" * 9000])
def test_a_line_without_its_end_is_not_read_and_gives_way_to_the_next(tmp_path: Path, torn: str) -> None:
    log = tmp_path / "log"
    for whole in ([], ["one", "two"]):
        log.write_text("".join(f"{line}\n" for line in whole) + torn)
        assert read_lines(log) == whole
        append_line(log, "next")
        assert read_lines(log) == [*whole, "next"]
        assert log.read_text() == "".join(f"{line}\n" for line in [*whole, "next"])
    assert read_lines(tmp_path / "nothing") == []
