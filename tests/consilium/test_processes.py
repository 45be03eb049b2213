"""What is started is found again and ended, whatever it forked; what ended says why."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import psutil
import pytest

from consilium.processes import Part, end, only_one, processes_of, require_free, wait_ready, wait_until
from contracts.errors import ConsiliumError

# A leader, a child in a process group of its own, and a grandchild in a session of its own whose parent died.
_FAMILY = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setpgrp()
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
            open(sys.argv[1] + "/orphan", "w").write(str(os.getpid()))
            time.sleep(300)
        os._exit(0)
    open(sys.argv[1] + "/child", "w").write(str(os.getpid()))
    time.sleep(300)
time.sleep(300)
"""


def _start(folder: Path, program: str) -> Part:
    part = Part("part", folder / "run")
    part.start([sys.executable, "-c", program, str(folder)], dict(os.environ), folder)
    return part


@pytest.mark.parametrize("force", [True, False])
def test_ending_a_part_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    monkeypatch.setattr("consilium.processes.TERM_SECONDS", 0.5)
    part = _start(tmp_path, _FAMILY)
    names = [tmp_path / "child", tmp_path / "orphan"]
    assert wait_until(lambda: all(name.exists() and name.read_text() for name in names), 20)
    pids = [int(name.read_text()) for name in names]
    assert {p.pid for p in processes_of([part])} >= {part.leader(), *pids}
    end([part], force=force)
    assert processes_of([part]) == []
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids)
    assert not part.alive() and not part.record.exists()


@pytest.mark.slow
def test_orphans_are_found_after_their_leader_died(tmp_path: Path) -> None:
    part = _start(tmp_path, _FAMILY)
    assert wait_until(lambda: (tmp_path / "orphan").exists() and (tmp_path / "child").exists(), 20)
    psutil.Process(part.leader()).kill()
    assert wait_until(lambda: not part.alive(), 10)
    assert len(processes_of([part])) == 2
    end([part])
    assert processes_of([part]) == []


def test_a_recycled_process_id_is_not_taken_for_the_part(tmp_path: Path) -> None:
    part = Part("part", tmp_path)
    part.record.write_text(json.dumps({"pid": os.getpid(), "started": 1.0}))
    assert not part.alive()


def test_starting_a_running_part_is_refused(tmp_path: Path) -> None:
    part = _start(tmp_path, "import time; time.sleep(300)")
    try:
        with pytest.raises(ConsiliumError, match="E104"):
            _start(tmp_path, "pass")
    finally:
        end([part], force=True)


def test_a_part_that_dies_on_start_is_reported_with_its_log(tmp_path: Path) -> None:
    part = _start(tmp_path, "raise SystemExit('no such table')")
    with pytest.raises(ConsiliumError, match="E109") as caught:
        wait_ready([part], lambda: False, 20, "the part")
    assert "no such table" in caught.value.detail


def test_a_port_in_use_is_refused() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(ConsiliumError, match="E106"):
            require_free(listener.getsockname()[1])


def test_two_starts_at_once_exclude_each_other(tmp_path: Path) -> None:
    with only_one(tmp_path), pytest.raises(ConsiliumError, match="E104"), only_one(tmp_path):
        pass
