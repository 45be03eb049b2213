"""How a step runs as an Airflow task: at a site in its edge worker, at the coordinator in the scheduler."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, AssetAlias, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException, AirflowTaskTimeout

from contracts.errors import ConsiliumError
from contracts.schedule import SITE_RETRIES, task_seconds
from contracts.study import StudyProtocol
from durable.files import is_full

if TYPE_CHECKING:
    from site_runtime.home import SiteHome
    from tasks.home import CoordinatorHome

PLAN = "plan"
REFUSAL = "refusal"
COORDINATOR_TIMEOUT = timedelta(hours=1)

SiteStep = Callable[["SiteHome", str | None], str]


def round_asset(study: str) -> Asset:
    """Rung when the next round of a study may open."""
    return Asset(name=f"{study}/round", uri=f"consilium://{study}/round")


def finished_asset(study: str) -> Asset:
    """Rung when the last round of a study is closed."""
    return Asset(name=f"{study}/finished", uri=f"consilium://{study}/finished")


def doorbell(owner: str) -> AssetAlias:
    """The outlet of a task that rings only sometimes; the events are chosen when it runs."""
    return AssetAlias(name=f"consilium/{owner}")


def default_args(owner: str) -> dict[str, Any]:
    """Arguments of the coordinator's tasks, which act on the head and may be repeated at will.

    What is tried again is a moved head, and what died with a killed scheduler or database: each of these
    takes one attempt. A numbered refusal is final (`at_coordinator`).
    """
    return {
        "owner": owner,
        "retries": 5,
        "retry_delay": timedelta(seconds=2),
        "execution_timeout": COORDINATOR_TIMEOUT,
    }


def site_task(site: str, name: str, protocol: StudyProtocol, step: SiteStep, plan_from: str | None) -> Any:
    """Make the task of one site: it runs in the hospital's worker and returns one signed string.

    The return value is never logged. A refusal is pushed under its own key and fails the task for good; a
    worker that died is tried once more, under the same reservation. At the deadline it ends.

    Args:
        step: what runs at the site, given its home and the signed plan.
        plan_from: the coordinator's task that pushed the plan; None for intake.
    """

    @task(
        task_id=name,
        executor="EdgeExecutor",
        queue=site,
        show_return_value_in_logs=False,
        multiple_outputs=False,
        execution_timeout=timedelta(seconds=task_seconds(protocol, name)),
        retries=SITE_RETRIES,
        retry_delay=timedelta(seconds=1),
    )
    def at_site() -> str:
        return run_at_site(step, plan_from)

    return at_site()


def run_at_site(step: SiteStep, plan_from: str | None) -> str:
    """Run a step in a hospital and turn a refusal into a failure that is not tried again."""
    from site_runtime.home import SiteHome
    from site_runtime.steps import SiteRefused

    instance = get_current_context()["ti"]
    plan = None if plan_from is None else instance.xcom_pull(task_ids=plan_from, key=PLAN, map_indexes=-1)
    if plan_from is not None and plan is None:
        raise AirflowFailException("no plan to answer")
    try:
        return step(SiteHome(Path(os.environ["CONSILIUM_SITE_HOME"])), plan)
    except SiteRefused as refused:
        instance.xcom_push(key=REFUSAL, value=refused.document)
        raise AirflowFailException(f"refused with {refused.number}; the hospital's log says why") from None
    except AirflowTaskTimeout:
        raise AirflowFailException("the deadline of the round has passed") from None


def exchange(home: SiteHome) -> Any:
    """The exchange as this site's worker reaches it: a bucket that its policy allows, or the coordinator."""
    from durable.bucket import BucketExchange
    from site_runtime.exchange import HttpExchange
    from site_runtime.kit import allowed_bucket

    if (bucket := allowed_bucket(home)) is not None:
        return BucketExchange(bucket)
    url, site = os.environ["CONSILIUM_COORDINATOR_URL"], os.environ["CONSILIUM_SITE"]
    return HttpExchange(url, site, home.edge_key, home.ca if home.ca.exists() else None)


def coordinator_home() -> CoordinatorHome:
    """The coordinator's home, from the environment of its scheduler."""
    from tasks.home import CoordinatorHome

    return CoordinatorHome(Path(os.environ["CONSILIUM_HOME"]) / "coordinator")


def answers(sites: list[str], name: str) -> dict[str, str | None]:
    """What each site's task returned, or its refusal, or None: nothing is read from states or events."""
    instance = get_current_context()["ti"]
    found: dict[str, str | None] = {}
    for site in sites:
        one = {"task_ids": f"{site}.{name}", "map_indexes": -1}
        found[site] = instance.xcom_pull(**one) or instance.xcom_pull(**one, key=REFUSAL)
    return found


def follow(plan: str | None, roster: list[str], name: str, then: str, reason: str) -> list[str]:
    """Push the plan and return the tasks to follow: those of its roster and what comes after them.

    With nothing to do nothing is followed, and every task of the run is skipped.
    """
    if plan is None:
        print(reason)
        return []
    get_current_context()["ti"].xcom_push(key=PLAN, value=plan)
    return [*(f"{site}.{name}" for site in roster), then]


def opened(task_id: str) -> None:
    """Check that the task which makes the plan has made one: after its failure there is nothing to collect.

    Raises:
        AirflowFailException: it has not.
    """
    if not was_pushed(task_id):
        raise AirflowFailException(f"{task_id} made no plan")


def was_pushed(task_id: str) -> bool:
    """Say whether a task of this run has pushed a plan, or the request to unmask a sum."""
    pushed = get_current_context()["ti"].xcom_pull(task_ids=task_id, key=PLAN, map_indexes=-1)
    return pushed is not None


def ring(owner: str, assets: list[Asset]) -> None:
    """Ring the assets through the doorbell that this task has as its outlet."""
    for asset in assets:
        get_current_context()["outlet_events"][doorbell(owner)].add(asset)


def at_coordinator(step: Callable[[CoordinatorHome, str], Any]) -> Any:
    """Run a coordinator's step with its home and the id of this run; a numbered refusal is not repeated.

    Raises:
        AirflowFailException: the step refused. Only E507 (the head moved meanwhile) is tried again.
    """
    run = get_current_context()["run_id"]
    try:
        return step(coordinator_home(), run)
    except ConsiliumError as error:
        if error.number == "E507":
            raise
        # The log's page cuts a long line off: one line for each part of the reason.
        for line in (f"{error.number} {error.name}", error.sentence, *error.detail.split("; ")):
            logging.getLogger(__name__).error(line)
        raise AirflowFailException(str(error)) from None
    except OSError as error:
        if is_full(error):  # tried again: it goes on as soon as there is room
            logging.getLogger(__name__).error(str(ConsiliumError("E122", str(error))))
        raise
