"""A hospital that reports that it is there and fetches nothing must not hold a round either.

Airflow gives up a task that lies in the queue after one time for all studies, the longest. So what lies
there beyond its own study's deadline is ended here, as a worker would report it: Airflow then fails the task,
or lets it try again, which the gate and this watch end in the same way.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field

from plugins.deadlines import Deadlines
from plugins.refused import Refused

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 10.0


@dataclass
class Overdue:
    """Looks at the queues of hospitals, in a thread of its own, while the API server lives."""

    deadlines: Deadlines
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin with the server."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="gate-overdue", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End with the server."""
        self._ended.set()

    def once(self) -> list[str]:
        """End every job that lies in its queue for too long; returns the ids of their task instances."""
        jobs, ended = self.deadlines.jobs, []
        for instance in jobs.waiting():
            task = jobs.task(instance)
            try:
                over = task is not None and self.deadlines.is_over(instance, task)
            except Refused:  # no study has this task: nothing is known of its time
                continue
            if over and jobs.give_up(instance):
                ended.append(instance)
        return ended

    def _run(self) -> None:
        while not self._ended.wait(INTERVAL_SECONDS):
            try:
                for instance in self.once():
                    log.warning("gate: task instance %s was not started before its deadline", instance)
            except Exception as error:  # the database may be away; the next pass finds the same
                log.error("gate: queues could not be looked at: %r", error)
