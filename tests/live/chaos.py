"""Kills parts of a running federation at random and starts them again, as a service manager would."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil

from consilium.platform import COMPONENTS, Platform
from consilium.processes import processes_of, wait_until
from tests.live.driver import head
from tests.postgres import Postgres

DOWN_SECONDS = 2.0  # a service manager waits a moment before it starts a part again
LOOK_SECONDS = 0.5
CHILD_SECONDS = 15.0  # until some hospital trains


@dataclass
class Chaos:
    """A schedule of kills, the same for the same seed.

    Args:
        every: least seconds between two kills.
        rest: seconds that the study is given after a kill to close a round, before the next kill.
        doubled: every n-th kill comes right after `every`, closed round or not; 0 for none.
        kills: how many; None for as long as the study runs.
    """

    platform: Platform
    postgres: Postgres
    study: str
    seed: int
    every: float
    kills: int | None
    rest: float = 0.0
    doubled: int = 0
    done: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._victims: list[str] = []

    def run_until_finished(self, seconds: float, after_first: Callable[[], object]) -> None:
        """Kill and revive until the study is finished.

        Args:
            after_first: called once while the study runs, as soon as its first exchange is closed.

        Raises:
            AssertionError: not within `seconds`; says where the study stands and what was killed.
        """
        deadline = time.monotonic() + seconds
        struck, at = time.monotonic(), head(self.platform, self.study).round
        first, called = at, False
        while not self._finished():
            now = head(self.platform, self.study)
            assert time.monotonic() < deadline, f"{now} after {self.done}"
            if not called and now.round > first:
                called = after_first() is not None
            waited = time.monotonic() - struck
            wanted = self.kills is None or len(self.done) < self.kills
            patient = not self.doubled or (len(self.done) + 1) % self.doubled
            recovered = now.round > at or waited > self.rest
            if wanted and waited > self.every and (recovered or not patient):
                self._strike()
                struck, at = time.monotonic(), now.round
            self._revive()
            time.sleep(LOOK_SECONDS)

    def _finished(self) -> bool:
        return head(self.platform, self.study).status == "finished"

    def _strike(self) -> None:
        """Kill the next victim; every kind has its turn before one comes again."""
        if not self._victims:
            self._victims = [*COMPONENTS, "site", "child", "database"]
            self._random.shuffle(self._victims)
        victim = self._victims.pop()
        site = self._random.choice(self.platform.sites)
        strikes: dict[str, Callable[[], str]] = {
            "site": lambda: self._kill_site(site),
            "child": self._kill_child,
            "database": self._kill_database,
        }
        killed = strikes.get(victim, lambda: self._kill_leader(victim))()
        now = head(self.platform, self.study)
        self.done.append(f"{killed} in round {now.round}")
        print(f"chaos: killed {self.done[-1]}", flush=True)
        time.sleep(DOWN_SECONDS)

    def _kill_leader(self, name: str) -> str:
        """Kill the main process alone; what it leaves is for the service manager to end."""
        leader = self.platform.part(name).leader()
        assert leader is not None
        with contextlib.suppress(psutil.Error):
            psutil.Process(leader).kill()
        return name

    def _kill_site(self, site: str) -> str:
        self.platform.kill_site(site)
        return f"hospital {site}"

    def _kill_child(self) -> str:
        """Kill a process that trains; its worker lives on."""
        found: list[psutil.Process] = []

        def training() -> bool:
            found[:] = [child for site in self.platform.sites for child in self._children(site)]
            return bool(found) or self._finished()

        if not wait_until(training, CHILD_SECONDS) or not found:
            return self._kill_site(self._random.choice(self.platform.sites))
        child = self._random.choice(found)
        with contextlib.suppress(psutil.Error):
            child.kill()
        return f"child {child.pid}"

    def _children(self, site: str) -> list[psutil.Process]:
        """Processes in which a hospital's task runs: children of the supervisors that its worker forks."""
        leader = self.platform.part(f"site-{site}").leader()
        found: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            for supervisor in psutil.Process(leader).children():
                found += supervisor.children(recursive=True)
        return found

    def _kill_database(self) -> str:
        self.postgres.kill()
        time.sleep(DOWN_SECONDS)
        self.postgres.start()
        return "database"

    def _revive(self) -> None:
        if not self.postgres.processes():
            self.postgres.start()
        revived = self.platform.revive()
        if revived:
            print(f"chaos: started {', '.join(revived)} again", flush=True)


def leftovers(platform: Platform) -> list[str]:
    """Command lines of processes that belong to a home that is down."""
    parts = [
        platform.part(name) for name in (*COMPONENTS, "hospitals", *map("site-{}".format, platform.sites))
    ]
    return [" ".join(process.cmdline()) for process in processes_of(parts)]
