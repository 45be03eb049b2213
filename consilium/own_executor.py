"""Where the coordinator's own tasks run: in few processes, however many hospitals there are."""

from __future__ import annotations

from airflow.executors.local_executor import LocalExecutor

MOST_PROCESSES = 8  # of 40 MB each; LocalExecutor starts all at once, before there is any task


class OwnExecutor(LocalExecutor):
    """Airflow's LocalExecutor with a number of its own.

    `[core] parallelism` counts the tasks of all executors together, so it grows with the federation; stock
    LocalExecutor would start as many processes.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.parallelism = min(self.parallelism, MOST_PROCESSES)
