"""`up` and `down`: once, wholly, or not at all."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import psutil
import pytest

from consilium.platform import Platform, current, run_folder
from consilium.processes import wait_until
from consilium.up import down, up
from contracts.errors import ConsiliumError
from tests.live.conftest import free_port
from tests.live.driver import STUDIES, heart

FEDERATION = STUDIES / "federations" / "heart-disease"


def left_of(home: Path) -> list[int]:
    """Processes that have anything to do with a home."""
    found = []
    for process in psutil.process_iter():
        try:
            text = Path(f"/proc/{process.pid}/environ").read_bytes() + b" ".join(
                part.encode() for part in process.cmdline()
            )
        except (psutil.Error, OSError):
            continue
        if str(home).encode() in text and process.pid != os.getpid():
            found.append(process.pid)
    return found


@pytest.mark.live
def test_a_second_up_is_refused(platform: Platform) -> None:
    with pytest.raises(ConsiliumError, match="E104"):
        up(platform.home, FEDERATION, [heart("heart-live")], free_port())
    assert current(platform.home).port == platform.port


def test_down_with_nothing_up_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConsiliumError, match="E105"):
        down(tmp_path)
    with pytest.raises(ConsiliumError, match="E105"):
        current(tmp_path)


def test_a_port_in_use_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(ConsiliumError, match="E106"):
            up(tmp_path, FEDERATION, [heart("heart-live")], listener.getsockname()[1])
    assert left_of(tmp_path) == []


def test_a_folder_without_hospitals_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConsiliumError, match="E107"):
        up(tmp_path, tmp_path, [heart("heart-live")], free_port())


@pytest.mark.live
def test_a_part_that_does_not_start_ends_the_others(tmp_path: Path) -> None:
    database = tmp_path / "coordinator" / "airflow" / "airflow.db"
    database.parent.mkdir(parents=True)
    database.write_bytes(b"no database" * 100)
    with pytest.raises(ConsiliumError, match="E109"):
        up(tmp_path, FEDERATION, [heart("heart-live")], free_port())
    assert left_of(tmp_path) == []


@pytest.mark.live
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_up_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "consilium", "up", "heart-disease", "--port", str(free_port())]
    environment = dict(os.environ) | {"CONSILIUM_HOME": str(tmp_path)}
    # Tests that a shell runs in the background ignore SIGINT, and whatever they start would too.
    heard = partial(signal.signal, number, signal.SIG_DFL)
    try:
        with subprocess.Popen(
            command, env=environment, stderr=subprocess.DEVNULL, preexec_fn=heard
        ) as process:
            started = run_folder(tmp_path) / "hospitals.json"
            assert wait_until(started.exists, 60)
            process.send_signal(number)
            assert process.wait(30) != 0
        assert wait_until(lambda: left_of(tmp_path) == [], 5)
    finally:
        if left_of(tmp_path):
            down(tmp_path)
