"""A hospital's task that hangs must not hold a round: the gate ends it some time after its deadline.

At its deadline a task ends itself. One that cannot (a hung process, a lost clock) still sends signs of life,
and Airflow would wait for ever; a refused one ends at the hands of its supervisor. Time runs from when the
task was given to the hospital's queue, not from when the hospital chose to fetch it. The plan may be older,
where a round is resumed under it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from contracts.errors import ConsiliumError
from contracts.schedule import task_seconds
from plugins.jobs import Jobs, Task
from plugins.refused import Refused
from tasks.head import load_protocol
from tasks.home import CoordinatorHome

GRACE_SECONDS = 60  # to fetch a task and to end it
_KEPT = 4096


@dataclass
class Deadlines:
    """When each running task of a site is to be over, in seconds since the epoch."""

    home: CoordinatorHome
    jobs: Jobs
    clock: Callable[[], float] = time.time
    _ends: OrderedDict[str, float] = field(default_factory=OrderedDict)

    def check(self, instance: str, task: Task, endpoint: str) -> None:
        """Check a start, a sign of life or an answer of a site's task.

        Raises:
            Refused: 410, its time is up, or it is over; 403, no study has this task.
        """
        if endpoint == "heartbeat" and instance in self._ends:
            return self._in_time(instance)
        life = self.jobs.life(instance)
        if endpoint in ("read", "write", "delete"):
            # Airflow asks for no state here: without this a token would write on after the task has ended.
            if life is None or life.state != "running":
                raise Refused(410, "task_over", str(life and life.state))
            return None
        if life is None or life.given is None:
            return None  # over, as Airflow says itself
        self._ends[instance] = life.given + self._seconds(task) + GRACE_SECONDS
        while len(self._ends) > _KEPT:
            self._ends.popitem(last=False)
        return self._in_time(instance)

    def is_over(self, instance: str, task: Task) -> bool:
        """Say whether the time of a task is up that may still lie in its queue.

        Raises:
            Refused: 403, no study has this task.
        """
        life = self.jobs.life(instance)
        if life is None or life.given is None:
            return False
        return self.clock() > life.given + self._seconds(task) + GRACE_SECONDS

    def _in_time(self, instance: str) -> None:
        if self.clock() > self._ends[instance]:
            raise Refused(410, "deadline")

    def _seconds(self, task: Task) -> int:
        study, name = task.dag.rpartition(".")[0], task.task.partition(".")[2]
        try:
            return task_seconds(load_protocol(self.home, study), name)
        except ConsiliumError as error:
            raise Refused(403, "no_study", str(error)[:100]) from error
