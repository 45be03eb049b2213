"""Owners and starts of tasks, from Airflow's own tables."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from contracts.schedule import task_seconds
from plugins.deadlines import GRACE_SECONDS, Deadlines
from plugins.gate import SiteGate
from plugins.jobs import Jobs, Life, Task
from plugins.overdue import Overdue
from tests.factories import TinyFederation, tiny_study
from tests.plugins.gate_harness import Gate

RUN = "manual__2026-01-01T00:00:00+00:00"


def at(second: int) -> datetime:
    """A moment."""
    return datetime.fromtimestamp(1_800_000_000 + second, UTC)


@pytest.fixture
def tables() -> Iterator[Any]:
    """A way to insert rows into Airflow's tables, which are empty before and after."""
    from airflow import settings
    from airflow.models import import_all_models
    from airflow.models.base import Base
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.taskinstancehistory import TaskInstanceHistory
    from airflow.providers.edge3.models.edge_job import EdgeJobModel
    from airflow.providers.edge3.models.edge_logs import EdgeLogsModel  # noqa: F401  the executor clears it
    from airflow.providers.edge3.models.edge_worker import EdgeWorkerModel  # noqa: F401
    from sqlalchemy import create_engine, delete, insert

    import_all_models()
    models = (TaskInstance, TaskInstanceHistory, EdgeJobModel)
    Base.metadata.create_all(settings.engine)
    EdgeJobModel.metadata.create_all(settings.engine)
    plain = create_engine(settings.engine.url)  # holds no foreign keys: a task needs no DAG here

    def add(model: str, **values: Any) -> None:
        (table,) = (m.__table__ for m in models if m.__name__ == model)
        with plain.begin() as connection:
            connection.execute(insert(table).values(**values))

    yield add
    with plain.begin() as connection:
        for model in models:
            connection.execute(delete(model.__table__))


def instance(
    tries: int, max_tries: int, state: str, start: int | None, queued: int | None = None
) -> tuple[str, dict[str, Any]]:
    """A row of a task of ash, and its id."""
    identifier = uuid.uuid4()
    row = {
        "id": identifier,
        "dag_id": "tiny.round",
        "run_id": RUN,
        "task_id": "ash.train",
        "map_index": -1,
        "queue": "ash",
        "pool": "default_pool",
        "pool_slots": 1,
        "try_number": tries,
        "max_tries": max_tries,
        "state": state,
        "start_date": None if start is None else at(start),
        "queued_dttm": None if queued is None else at(queued),
    }
    return str(identifier), row


def past(tries: int, start: int | None, queued: int | None = None) -> dict[str, Any]:
    """A row of an earlier try."""
    _, row = instance(tries, 1, "failed", start, queued)
    row["task_instance_id"] = row.pop("id")
    return row


def test_a_task_is_known_by_its_id_and_nothing_else(tables: Any) -> None:
    identifier, row = instance(1, 1, "running", 0)
    tables("TaskInstance", **row)
    jobs = Jobs()
    assert jobs.task(identifier) == Task("tiny.round", RUN, "ash.train", "ash")
    for nobody in (str(uuid.uuid4()), "x", "", "'; drop table task_instance"):
        assert jobs.task(nobody) is None


def test_time_runs_from_when_the_task_was_given_to_its_site(tables: Any) -> None:
    """A hospital that reports that it is there and fetches nothing gains no time by it."""
    identifier, row = instance(1, 1, "queued", None, queued=3)
    tables("TaskInstance", **row)
    assert Jobs().life(identifier) == Life("queued", at(3).timestamp())
    identifier, row = instance(1, 1, "running", 900, queued=4)
    tables("TaskInstance", **row | {"task_id": "birch.train"})
    assert Jobs().life(identifier) == Life("running", at(4).timestamp())


def test_the_first_try_counts_over_the_tries(tables: Any) -> None:
    identifier, row = instance(2, 1, "running", 50, queued=40)
    tables("TaskInstance", **row)
    tables("TaskInstanceHistory", **past(1, 7, queued=5))
    assert Jobs().life(identifier) == Life("running", at(5).timestamp(), retries=False)


def test_a_try_that_was_never_fetched_counts_too(tables: Any) -> None:
    identifier, row = instance(2, 1, "queued", None, queued=40)
    tables("TaskInstance", **row)
    tables("TaskInstanceHistory", **past(1, None, queued=5))
    assert Jobs().life(identifier) == Life("queued", at(5).timestamp(), retries=False)


def test_a_task_that_waits_at_the_coordinator_has_its_time_before_it(tables: Any) -> None:
    identifier, row = instance(1, 1, "scheduled", None)
    tables("TaskInstance", **row)
    assert Jobs().life(identifier) == Life("scheduled", None)


def test_a_task_that_was_cleared_begins_anew(tables: Any) -> None:
    """Airflow sets max_tries to the tries that were plus the retries when a task is cleared."""
    identifier, row = instance(3, 3, "running", 900, queued=899)
    tables("TaskInstance", **row)
    tables("TaskInstanceHistory", **past(1, 7, queued=5))
    tables("TaskInstanceHistory", **past(2, 50, queued=40))
    assert Jobs().life(identifier) == Life("running", at(899).timestamp())


def test_an_attempt_that_gave_way_to_another_is_over(tables: Any) -> None:
    row = past(1, 7)
    tables("TaskInstanceHistory", **row)
    assert Jobs().life(str(row["task_instance_id"])) is None


@pytest.mark.parametrize(
    ("state", "working"),
    [("queued", True), ("running", True), ("success", False), ("failed", False), ("up_for_retry", False)],
)
def test_the_present_attempt_is_at_work_until_its_task_is_over(
    tables: Any, state: str, working: bool
) -> None:
    _, row = instance(2, 1, state, 50)
    tables("TaskInstance", **row)
    jobs = Jobs()
    assert jobs.at_work("tiny.round", "ash.train", RUN, 2, -1) is working
    for other in (("ash.train", RUN, 1, -1), ("ash.train", RUN, 2, 0), ("ash.train", "other", 2, -1)):
        assert not jobs.at_work("tiny.round", *other)


def test_a_hospital_frees_the_executors_slots_although_it_calls_its_jobs_running(
    tables: Any, tmp_path: Path
) -> None:
    """Airflow's own worker API and executor behind the gate; the tasks ended three hours ago."""
    from airflow.providers.edge3.executors.edge_executor import EdgeExecutor
    from airflow.providers.edge3.models.edge_job import EdgeJobModel
    from airflow.providers.edge3.worker_api.app import create_edge_worker_api_app
    from airflow.providers.edge3.worker_api.auth import jwt_token_authorization_rest
    from airflow.utils.session import create_session
    from sqlalchemy import select

    api = create_edge_worker_api_app()
    api.dependency_overrides[jwt_token_authorization_rest] = lambda: None  # the pass is not the subject
    airflow = FastAPI()
    airflow.mount("/edge_worker", api)
    gate = Gate(tmp_path)
    gate.gate = SiteGate(airflow, gate.home)
    old = datetime.now(UTC) - timedelta(hours=3)
    slots = 4
    reports: dict[str, dict[str, str]] = {}
    for number in range(slots):
        identifier, row = instance(1, 1, "success", 0)
        run = f"manual__{number}"
        tables("TaskInstance", **row | {"run_id": run})
        job = {"dag_id": "tiny.round", "run_id": run, "task_id": "ash.train", "map_index": -1}
        job |= {"try_number": 1, "task_instance_id": identifier, "state": "running", "queue": "ash"}
        job |= {"command": "{}", "concurrency_slots": 1, "queued_dttm": old, "last_update": old}
        tables("EdgeJobModel", **job)
        path = f"jobs/state/tiny.round/ash.train/{run}/1/-1/running"
        reports[path] = {"task_instance_id": identifier}
    executor = EdgeExecutor(parallelism=slots)
    with create_session(scoped=False) as session:
        executor.running |= {executor._job_key(job) for job in session.scalars(select(EdgeJobModel))}
    assert executor.slots_available == 0
    for _ in range(2):
        assert {gate.edge("ash", "PATCH", path, body) for path, body in reports.items()} == {200}
        executor.sync()
    assert executor.slots_available == slots


def test_a_job_belongs_to_the_queue_it_lies_on(tables: Any) -> None:
    job = {"dag_id": "tiny.round", "run_id": RUN, "map_index": -1, "try_number": 1, "state": "running"}
    job |= {"command": "{}", "concurrency_slots": 1, "queued_dttm": at(0), "last_update": at(0)}
    job |= {"task_instance_id": str(uuid.uuid4())}
    tables("EdgeJobModel", task_id="ash.train", queue="ash", **job)
    jobs = Jobs()
    assert jobs.owner("tiny.round", "ash.train", RUN) == "ash"
    assert jobs.owner("tiny.round", "birch.train", RUN) is None
    assert jobs.owner("tiny.round", "ash.train", "other") is None


def test_a_job_that_nobody_fetched_before_its_deadline_is_given_up(tables: Any, tmp_path: Path) -> None:
    """Under a longer study beside it Airflow would let it wait for that one's time. Running ones are left."""
    federation = TinyFederation(tmp_path, tiny_study())
    seconds = task_seconds(federation.protocol, "train") + GRACE_SECONDS
    job = {"dag_id": "tiny.round", "run_id": RUN, "map_index": -1, "try_number": 1, "queue": "ash"}
    job |= {"command": "{}", "concurrency_slots": 1, "queued_dttm": at(0), "last_update": None}
    found = {}
    for name, state, queued in (
        ("ash.train", "queued", 0),
        ("cedar.train", "running", 0),
        ("birch.train", "queued", 2),
    ):
        identifier, row = instance(1, 1, state, None, queued=queued)
        tables("TaskInstance", **row | {"task_id": name})
        tables("EdgeJobModel", task_id=name, state=state, task_instance_id="", **job)
        found[name] = identifier
    jobs = Jobs()
    overdue = Overdue(Deadlines(federation.home, jobs, clock=lambda: at(1).timestamp() + seconds))
    assert set(jobs.waiting()) == {found["ash.train"], found["birch.train"]}
    assert overdue.once() == [found["ash.train"]]
    assert jobs.waiting() == [found["birch.train"]] and overdue.once() == []


def test_the_executor_takes_a_job_that_was_given_up_for_failed_and_frees_its_slot(tables: Any) -> None:
    from airflow.models.taskinstancekey import TaskInstanceKey
    from airflow.providers.edge3.executors.edge_executor import EdgeExecutor
    from airflow.utils.state import TaskInstanceState

    identifier, row = instance(1, 1, "queued", None, queued=0)
    tables("TaskInstance", **row)
    job = {"dag_id": "tiny.round", "task_id": "ash.train", "run_id": RUN, "map_index": -1, "try_number": 1}
    job |= {"command": "{}", "concurrency_slots": 1, "queued_dttm": at(0), "state": "queued", "queue": "ash"}
    tables("EdgeJobModel", task_instance_id="", **job)
    executor, key = EdgeExecutor(), TaskInstanceKey("tiny.round", "ash.train", RUN, 1, -1)
    executor.running.add(key)
    executor.sync()
    assert key in executor.running
    assert Jobs().give_up(identifier)
    executor.sync()
    assert executor.event_buffer[key][0] == TaskInstanceState.FAILED and key not in executor.running
