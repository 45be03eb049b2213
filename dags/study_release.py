"""`<study>.release`: evaluate everywhere, judge, export, verify everywhere, ask a person, publish."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from airflow.sdk import DAG, TaskGroup, TriggerRule, conf, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from contracts.study import StudyProtocol
from dags.approval import CANDIDATE, answer_of, question_id, users_who_started
from dags.question import question
from dags.steps import (
    answers,
    at_coordinator,
    coordinator_home,
    default_args,
    exchange,
    finished_asset,
    follow,
    opened,
    site_task,
)
from dags.view import View, current_view


def evaluate_at(home: Any, plan: str | None) -> str:
    """The site's step, for the trained model and for the exported one."""
    from site_runtime.steps import evaluate

    assert plan is not None
    return evaluate(home, plan, exchange(home))


def release_dag(protocol: StudyProtocol, view: View) -> DAG:
    """Lay out the release of one study."""
    study = protocol.study
    with DAG(
        dag_id=f"{study}.release",
        description=f"{protocol.title}: from the trained model to a signed release",
        schedule=[finished_asset(study)],
        catchup=False,
        max_active_runs=1,
        max_active_tasks=view.tasks_at_once,
        tags=["consilium", study, "release"],
        default_args=default_args("consilium"),
    ) as dag:

        @task.branch(task_id="open_evaluation")
        def open_evaluation() -> list[str]:
            from tasks.evaluation import open_evaluation
            from tasks.presence import present_sites

            todo = at_coordinator(lambda home, run: open_evaluation(home, study, run, present_sites(home)))
            return follow(todo.plan, todo.roster, "evaluate", "judge", todo.reason)

        @task(task_id="judge", trigger_rule=TriggerRule.ALL_DONE)
        def judge() -> None:
            from tasks.evaluation import judge

            opened("open_evaluation")
            found = answers(view.sites, "evaluate")
            with naming_the_page(study):
                at_coordinator(lambda home, run: judge(home, study, run, found))

        @task.branch(task_id="export")
        def export() -> list[str]:
            from tasks.candidate import export
            from tasks.presence import present_sites

            todo = at_coordinator(lambda home, run: export(home, study, run, present_sites(home)))
            return follow(todo.plan, todo.roster, "verify", "collect", todo.reason)

        @task(task_id="collect", trigger_rule=TriggerRule.ALL_DONE)
        def collect() -> str:
            from tasks.candidate import collect_verification

            skip_when_released(study)
            opened("export")
            found = answers(view.sites, "verify")
            user = next(iter(users_who_started(get_current_context()["dag_run"])), None)
            with naming_the_page(study):
                candidate = at_coordinator(
                    lambda home, run: collect_verification(home, study, run, found, user)
                )
            if candidate is None:  # rejected meanwhile: nobody is to be asked about nothing
                raise AirflowFailException(f"study {study} has ended without a release")
            return str(candidate)

        @task(task_id="publish", trigger_rule=TriggerRule.ALL_DONE)
        def publish() -> str:
            from tasks.publication import publish

            instance = get_current_context()["ti"]
            if instance.xcom_pull(task_ids="collect", map_indexes=-1) is None:
                skip_when_released(study)
                raise AirflowFailException("no candidate was made: there is nothing to publish")
            given = {}
            for role in protocol.sign_off.roles:
                asked = {"task_ids": question_id(role), "map_indexes": -1}
                given[role] = answer_of(
                    instance.xcom_pull(**asked), instance.xcom_pull(**asked, key=CANDIDATE)
                )
            users = users_who_started(get_current_context()["dag_run"])
            return str(at_coordinator(lambda home, run: publish(home, study, run, given, users)))

        opening, judging, exporting, collected = open_evaluation(), judge(), export(), collect()
        # Whatever became of the questions: publication looks at every answer itself, and at none that is
        # missing as if it were a yes.
        publishing = publish()
        opening >> judging >> exporting >> collected >> publishing
        for role in protocol.sign_off.roles:
            collected >> question(protocol, role) >> publishing
        for site in view.sites:
            with TaskGroup(site, tooltip=f"hospital {site}"):
                evaluation = site_task(site, "evaluate", protocol, evaluate_at, plan_from="open_evaluation")
                verification = site_task(site, "verify", protocol, evaluate_at, plan_from="export")
            opening >> evaluation >> judging
            exporting >> verification >> collected
    return dag


def skip_when_released(study: str) -> None:
    """Skip the task of a run that came after the release: it has nothing to do, and nothing failed."""
    from tasks.head import load_head

    if load_head(coordinator_home(), study).status == "released":
        raise AirflowSkipException(f"study {study} is released")


@contextlib.contextmanager
def naming_the_page(study: str) -> Iterator[None]:
    """Let the log of a step that a gate stopped name the page that says which gate, and where."""
    from tasks.stopped import release_folder

    try:
        yield
    except AirflowFailException:
        if (release_folder(coordinator_home(), study) / "stopped" / "validation.html").is_file():
            url = f"{conf.get('api', 'base_url', fallback='')}/candidates/{study}/validation.html"
            logging.getLogger(__name__).error("the gates, by hospital: %s", url)
        raise


_view = current_view()
for _protocol in _view.studies:
    globals()[f"{_protocol.study}.release"] = release_dag(_protocol, _view)
