"""Long-running parts of a home as supervised processes: started, looked after and ended without a rest.

Each part leads a session of its own. Airflow forks supervisors into process groups of their own, so a group
is not enough to end one: the session is, and whatever descends from it, and whatever carries its mark in
the environment.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from contracts.errors import ConsiliumError

MARK = "CONSILIUM_PART"
TERM_SECONDS = 8.0  # between the request to end and the end by force
TAIL_LINES = 30


@dataclass(frozen=True)
class Part:
    """One supervised process of a home: its record is `run/<name>.json`, its output `run/<name>.log`."""

    name: str
    run: Path

    @property
    def record(self) -> Path:
        """Process id and start time of the process that leads the part's session."""
        return self.run / f"{self.name}.json"

    @property
    def log(self) -> Path:
        """What the part writes to its standard output and error."""
        return self.run / f"{self.name}.log"

    @property
    def mark(self) -> str:
        """What the part's processes carry in their environment."""
        return f"{self.run}:{self.name}"

    def start(self, command: Sequence[str], environment: dict[str, str], cwd: Path) -> None:
        """Start `command` in a session of its own, detached from this terminal.

        Raises:
            ConsiliumError: E104, the part is running.
        """
        if self.alive():
            raise ConsiliumError("E104", f"part {self.name!r} runs as process {self.leader()}")
        self.run.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as log:
            process = subprocess.Popen(
                command,
                env=environment | {MARK: self.mark},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.adopt(process.pid)

    def adopt(self, pid: int) -> None:
        """Record `pid`, which leads a session, as this part."""
        started = psutil.Process(pid).create_time()
        self.record.write_text(json.dumps({"pid": pid, "started": started}))

    def leader(self) -> int | None:
        """Process id of the recorded leader, running or not."""
        try:
            return int(json.loads(self.record.read_text())["pid"])
        except (OSError, ValueError, KeyError):
            return None

    def alive(self) -> bool:
        """Say whether the leader runs: a process id that another program has by now does not count."""
        try:
            record = json.loads(self.record.read_text())
            process = psutil.Process(record["pid"])
            same = abs(process.create_time() - float(record["started"])) < 2.0
            return same and bool(process.status() != psutil.STATUS_ZOMBIE)
        except (OSError, ValueError, KeyError, psutil.Error):
            return False

    def tail(self) -> str:
        """The last lines of the part's log."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
        except OSError:
            return ""


def parts_of(run: Path) -> list[Part]:
    """Every part that has a record in `run`."""
    return [Part(path.stem, run) for path in sorted(run.glob("*.json"))]


def end(parts: Sequence[Part], *, force: bool = False) -> None:
    """End the parts with every process they started, all at once, and remove their records.

    Args:
        force: kill at once, as a machine that loses power would.
    """
    if not force:
        for process in processes_of(parts):
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGTERM)
        wait_until(lambda: not processes_of(parts), TERM_SECONDS)
    # What is forked while we look is found at the next look.
    while left := processes_of(parts):
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=1.0)
    for part in parts:
        part.record.unlink(missing_ok=True)


def processes_of(parts: Sequence[Part]) -> list[psutil.Process]:
    """Every living process that belongs to one of the parts."""
    leaders = {pid for part in parts if (pid := part.leader()) is not None}
    runs = {part.mark for part in parts}
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid in own or process.status() == psutil.STATUS_ZOMBIE:
                _reap(process.pid)
            elif os.getsid(process.pid) in leaders or _mark(process.pid) in runs:
                found[process.pid] = process
    for process in list(found.values()):
        with contextlib.suppress(psutil.Error):
            found |= {
                child.pid: child
                for child in process.children(recursive=True)
                if child.status() != psutil.STATUS_ZOMBIE
            }
    return list(found.values())


def _mark(pid: int) -> str | None:
    """Read the mark from a process's environment (Airflow overwrites that of some with a title)."""
    prefix = f"{MARK}=".encode()
    for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
        if entry.startswith(prefix):
            return entry[len(prefix) :].decode()
    return None


def _reap(pid: int) -> None:
    """Collect a child of ours that has ended, so that it does not stay a zombie."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def wait_until(condition: Callable[[], bool], seconds: float, interval: float = 0.1) -> bool:
    """Wait for `condition`, at most `seconds`; return whether it came true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval)
    return True


def wait_ready(parts: Sequence[Part], condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until `condition` holds while every part lives.

    Raises:
        ConsiliumError: E109, a part ended, with the tail of its log; or the time was up.
    """

    def ready() -> bool:
        for part in parts:
            require_alive(part)
        return condition()

    if not wait_until(ready, seconds, interval=0.2):
        raise ConsiliumError("E109", f"{what} was not ready after {seconds:.0f} s")


def require_alive(part: Part) -> None:
    """Check that a part's leader runs.

    Raises:
        ConsiliumError: E109, with the tail of its log.
    """
    if not part.alive():
        raise ConsiliumError("E109", f"{part.name} ended; its log {part.log} says:\n{part.tail()}")


def require_free(port: int) -> None:
    """Check that nobody listens on `port` of loopback.

    Raises:
        ConsiliumError: E106.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConsiliumError("E106", f"port {port}: {error.strerror}; choose another") from error


@contextlib.contextmanager
def only_one(run: Path) -> Iterator[None]:
    """Hold the lock under which a home is started or ended.

    Raises:
        ConsiliumError: E104, another process holds it.
    """
    run.mkdir(parents=True, exist_ok=True)
    with open(run / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConsiliumError("E104", f"{run}: it is being started or ended right now") from error
        yield
