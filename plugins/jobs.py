"""Which site a task instance or a job belongs to, and how far it is, from Airflow's own database."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from contracts.schedule import SITE_RETRIES

_KEPT = 4096
_COORDINATES = ("dag_id", "task_id", "run_id", "map_index", "try_number")  # of an attempt
_UNSTARTED = ("queued", "restarting")  # edge3 calls a job so that was fetched and not yet reported as running


@dataclass(frozen=True)
class Task:
    """Where a task instance belongs. `queue` is a site's name for a task of a site."""

    dag: str
    run: str
    task: str
    queue: str


@dataclass(frozen=True)
class Life:
    """How far a task instance is.

    Attributes:
        state: as Airflow names it.
        given: seconds since the epoch when this task was first given to its site's queue, over the tries
            since it was cleared last; None before it, or when it is over.
        retries: whether another try may follow this one.
    """

    state: str | None
    given: float | None
    retries: bool = True


# States of a task instance whose job a worker may have.
_AT_WORK = ("queued", "running", "restarting")


@dataclass
class Jobs:
    """Looks up owners and remembers them: a task instance's coordinates and queue never change."""

    _tasks: OrderedDict[str, Task] = field(default_factory=OrderedDict)

    def task(self, instance: str) -> Task | None:
        """The task instance with this id (one attempt of a task), or None."""
        if instance in self._tasks:
            return self._tasks[instance]
        from airflow.models.taskinstance import TaskInstance as Row
        from airflow.utils.session import create_session
        from sqlalchemy import select

        try:
            identifier = UUID(instance)
        except ValueError:
            return None
        with create_session(scoped=False) as session:
            query = select(Row.dag_id, Row.run_id, Row.task_id, Row.queue).where(Row.id == identifier)
            row = session.execute(query, execution_options={"include_all_attempts": True}).one_or_none()
        if row is None:
            return None
        found = Task(dag=row.dag_id, run=row.run_id, task=row.task_id, queue=row.queue)
        self._tasks[instance] = found
        while len(self._tasks) > _KEPT:
            self._tasks.popitem(last=False)
        return found

    def life(self, instance: str) -> Life | None:
        """How far a task instance is; None for an attempt that is over because another was made."""
        from airflow.models.taskinstance import TaskInstance as Row
        from airflow.models.taskinstancehistory import TaskInstanceHistory as Past
        from airflow.utils.session import create_session
        from sqlalchemy import func, select

        with create_session(scoped=False) as session:
            row = session.execute(
                select(
                    *(Row.dag_id, Row.run_id, Row.task_id, Row.map_index),
                    *(Row.state, Row.queued_dttm, Row.start_date, Row.try_number, Row.max_tries),
                ).where(Row.id == UUID(instance))
            ).one_or_none()
            if row is None:
                return None
            alive = row.state in ("queued", "running", "restarting")
            times = [row.queued_dttm or row.start_date] if alive else []
            if row.try_number > 1:
                # Clearing sets max_tries to the tries that were plus the retries: older tries do not count.
                query = select(func.min(func.coalesce(Past.queued_dttm, Past.start_date))).where(
                    Past.dag_id == row.dag_id,
                    Past.run_id == row.run_id,
                    Past.task_id == row.task_id,
                    Past.map_index == row.map_index,
                    Past.try_number > row.max_tries - SITE_RETRIES,
                )
                times.append(session.scalar(query))
            known = [time.timestamp() for time in times if time is not None]
            return Life(
                state=row.state and str(row.state),
                given=min(known, default=None),
                retries=bool(row.try_number <= row.max_tries),
            )

    def at_work(self, dag: str, task: str, run: str, attempt: int, index: int) -> bool:
        """Say whether this attempt of a task is the present one and waits or runs."""
        from airflow.models.taskinstance import TaskInstance as Row
        from airflow.utils.session import create_session
        from sqlalchemy import select

        query = select(Row.state).where(
            *(Row.dag_id == dag, Row.task_id == task, Row.run_id == run),
            *(Row.try_number == attempt, Row.map_index == index),
        )
        with create_session(scoped=False) as session:
            return session.scalar(query) in _AT_WORK

    def owner(self, dag: str, task: str, run: str) -> str | None:
        """The queue of the edge job of a task in a run: the site it was given to."""
        from airflow.providers.edge3.models.edge_job import EdgeJobModel as Row
        from airflow.utils.session import create_session
        from sqlalchemy import select

        with create_session(scoped=False) as session:
            query = select(Row.queue).where(Row.dag_id == dag, Row.task_id == task, Row.run_id == run)
            queues = set(session.scalars(query))
        return queues.pop() if len(queues) == 1 else None

    def waiting(self) -> list[str]:
        """Task instances whose edge job no worker has started."""
        from airflow.models.taskinstance import TaskInstance
        from airflow.providers.edge3.models.edge_job import EdgeJobModel as Row
        from airflow.utils.session import create_session
        from sqlalchemy import and_, select

        # By its coordinates: only later versions of Airflow write a task instance's id into its job.
        same = [getattr(Row, name) == getattr(TaskInstance, name) for name in _COORDINATES]
        with create_session(scoped=False) as session:
            query = select(TaskInstance.id).join(Row, and_(*same)).where(Row.state.in_(_UNSTARTED))
            return [str(found) for found in session.scalars(query)]

    def give_up(self, instance: str) -> bool:
        """Report a job that nobody started as failed, and say whether it was still waiting.

        EdgeExecutor hands that on to the scheduler as it does a worker's report (edge3 5.1, `_purge_jobs`).
        """
        from airflow.models.taskinstance import TaskInstance
        from airflow.providers.edge3.models.edge_job import EdgeJobModel as Row
        from airflow.utils.session import create_session
        from sqlalchemy import select, update

        with create_session(scoped=False) as session:
            columns = [getattr(TaskInstance, name) for name in _COORDINATES]
            found = session.execute(select(*columns).where(TaskInstance.id == UUID(instance))).one_or_none()
            if found is None:
                return False
            same = [getattr(Row, name) == value for name, value in zip(_COORDINATES, found, strict=True)]
            failed = update(Row).where(*same, Row.state.in_(_UNSTARTED))
            return bool(
                session.execute(failed.values(state="failed", last_update=datetime.now(UTC))).rowcount
            )

    def silence(self, worker: str) -> None:
        """Declare a worker that was heard of long ago gone, so that its successor may register."""
        from airflow.providers.edge3.models.edge_worker import EdgeWorkerModel as Row
        from airflow.providers.edge3.models.edge_worker import EdgeWorkerState
        from airflow.utils.session import create_session
        from sqlalchemy import select

        with create_session(scoped=False) as session:
            row = session.scalar(select(Row).where(Row.worker_name == worker))
            if row is not None:
                row.state = EdgeWorkerState.UNKNOWN
