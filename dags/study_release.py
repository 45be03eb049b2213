"""`<study>.release`: evaluate everywhere, judge, export, verify everywhere, ask a person, publish."""

from __future__ import annotations

from typing import Any

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import DAG, Param, TaskGroup, TriggerRule, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from contracts.study import StudyProtocol
from dags.steps import (
    answers,
    at_coordinator,
    default_args,
    exchange,
    finished_asset,
    follow,
    opened,
    site_task,
)
from dags.view import View, current_view

APPROVE, REJECT = "Approve", "Reject"

BODY = """\
Release candidate of **{title}** (study `{study}`).

Candidate digest: `{{{{ ti.xcom_pull(task_ids='collect') }}}}`

All acceptance gates of the protocol passed, and every hospital ran the exported model on its own holdout.
Read the [validation page](/candidates/{study}/validation.html) first. What you sign is this digest: another
candidate needs another signature.
"""


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
        tags=["consilium", study, "release"],
        default_args=default_args("consilium"),
    ) as dag:

        @task.branch(task_id="open_evaluation")
        def open_evaluation() -> list[str]:
            from tasks.presence import present_sites
            from tasks.release import open_evaluation

            todo = at_coordinator(lambda home, run: open_evaluation(home, study, run, present_sites(home)))
            return follow(todo.plan, todo.roster, "evaluate", "judge", todo.reason)

        @task(task_id="judge", trigger_rule=TriggerRule.ALL_DONE)
        def judge() -> None:
            from tasks.release import judge

            opened("open_evaluation")
            found = answers(view.sites, "evaluate")
            at_coordinator(lambda home, run: judge(home, study, run, found))

        @task.branch(task_id="export")
        def export() -> list[str]:
            from tasks.presence import present_sites
            from tasks.release import export

            todo = at_coordinator(lambda home, run: export(home, study, run, present_sites(home)))
            return follow(todo.plan, todo.roster, "verify", "collect", todo.reason)

        @task(task_id="collect", trigger_rule=TriggerRule.ALL_DONE)
        def collect() -> str:
            from tasks.release import collect_verification

            opened("export")
            found = answers(view.sites, "verify")
            candidate = at_coordinator(lambda home, run: collect_verification(home, study, run, found))
            if candidate is None:
                raise AirflowSkipException("nothing to approve")
            return str(candidate)

        # An administrator cannot answer: only the user named here (anybody else gets 403).
        # Not an ApprovalOperator: a rejection would only skip what follows, and the head must hear of it.
        approve = HITLOperator(
            task_id="approve",
            options=[APPROVE, REJECT],
            subject=f"Release {study}?",
            body=BODY.format(title=protocol.title, study=study),
            params={
                "name": Param("", type="string", title="Your name", maxLength=200),
                "role": Param("clinician", type="string", title="Your role", maxLength=200),
                "reason": Param("", type="string", title="Reason", maxLength=500),
            },
            assigned_users={"id": "clinician", "name": "clinician"},
            retries=0,
            execution_timeout=None,  # a person may take days
        )

        @task(task_id="publish")
        def publish(answer: dict[str, Any], candidate: str) -> str:
            from dags.approval import approval_of
            from tasks.release import publish, reject

            if answer["chosen_options"] != [APPROVE]:
                at_coordinator(lambda home, run: reject(home, study, candidate))
                raise AirflowFailException("the candidate was rejected: there is no release")
            approval = approval_of(answer, candidate)
            return str(at_coordinator(lambda home, run: publish(home, study, run, approval)))

        opening, judging, exporting, collected = open_evaluation(), judge(), export(), collect()
        opening >> judging >> exporting >> collected >> approve
        publish(approve.output, collected)
        for site in view.sites:
            with TaskGroup(site, tooltip=f"hospital {site}"):
                evaluation = site_task(site, "evaluate", protocol, evaluate_at, plan_from="open_evaluation")
                verification = site_task(site, "verify", protocol, evaluate_at, plan_from="export")
            opening >> evaluation >> judging
            exporting >> verification >> collected
    return dag


_view = current_view()
for _protocol in _view.studies:
    globals()[f"{_protocol.study}.release"] = release_dag(_protocol, _view)
