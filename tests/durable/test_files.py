"""Whole files and whole lines, also when the disk is full or the writer was killed."""

from __future__ import annotations

import os
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


def test_the_name_of_a_file_is_on_disk_before_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut keeps a rename, a new log and a new folder only where the folder above was waited for."""
    done: list[tuple[str, str]] = []
    replace, fsync = os.replace, os.fsync

    def replacing(source: str, target: Path) -> None:
        replace(source, target)
        done.append(("named", str(target.relative_to(tmp_path))))

    def syncing(descriptor: int) -> None:
        fsync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_dir():
            done.append(("on disk", str(path.relative_to(tmp_path))))

    monkeypatch.setattr(os, "replace", replacing)
    monkeypatch.setattr(os, "fsync", syncing)
    write_atomic(tmp_path / "a" / "b" / "file", b"new")
    assert {("on disk", "."), ("on disk", "a")} <= set(done)
    assert done[-2:] == [("named", "a/b/file"), ("on disk", "a/b")]
    done.clear()
    write_atomic(tmp_path / "a" / "b" / "file", b"newer")
    assert done == [("named", "a/b/file"), ("on disk", "a/b")]
    done.clear()
    append_line(tmp_path / "a" / "log", "first")
    append_line(tmp_path / "a" / "log", "second")
    assert done == [("on disk", "a")]


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
