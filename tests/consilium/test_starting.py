"""A home is started once, wholly, or not at all, with hospitals beside the coordinator or without."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from consilium.platform import Platform, current, run_folder
from consilium.processes import Part, processes_of
from consilium.starting import beginning
from contracts.errors import ConsiliumError


def started(home: Path, name: str = "part") -> Part:
    part = Part(name, run_folder(home))
    part.start([sys.executable, "-c", "import time; time.sleep(300)"], dict(os.environ), home)
    return part


def test_what_is_up_is_not_started_again_and_goes_on(tmp_path: Path) -> None:
    with beginning(tmp_path):
        part = started(tmp_path)
        Platform(tmp_path, 8123, ["ash"]).note()
    try:
        with pytest.raises(ConsiliumError, match=r"E104.*part; `consilium down`"), beginning(tmp_path):
            pytest.fail("it was begun twice")
        assert part.alive() and current(tmp_path) == Platform(tmp_path, 8123, ["ash"])
    finally:
        leader = psutil.Process(part.leader())
        leader.kill()
        leader.wait(20)
    with beginning(tmp_path):  # what a crash left is gone
        assert not part.record.exists()


def test_nobody_else_begins_meanwhile(tmp_path: Path) -> None:
    with beginning(tmp_path), pytest.raises(ConsiliumError, match="E104"), beginning(tmp_path):
        pytest.fail("two were let in")


@pytest.mark.parametrize("number", [None, signal.SIGTERM, signal.SIGHUP])
def test_a_start_that_fails_or_is_interrupted_leaves_nothing(
    tmp_path: Path, number: signal.Signals | None
) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)]
    parts = []
    with pytest.raises(KeyboardInterrupt if number else ZeroDivisionError), beginning(tmp_path):
        parts = [started(tmp_path, name) for name in ("one", "two")]
        if number is not None:
            os.kill(os.getpid(), number)
        raise ZeroDivisionError
    assert processes_of(parts) == [] and not any(part.record.exists() for part in parts)
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)] == before
    with pytest.raises(ConsiliumError, match="E105"):
        current(tmp_path)
