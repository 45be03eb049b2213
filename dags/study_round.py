"""`<study>.round`: one run is one round. Open, train at every site of the roster, close.

With secure aggregation the sites are asked twice: who trained is counted between the two hops.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, TaskGroup, TriggerRule, task

from contracts.study import StudyProtocol
from dags.steps import (
    answers,
    at_coordinator,
    default_args,
    doorbell,
    exchange,
    finished_asset,
    follow,
    opened,
    ring,
    round_asset,
    site_task,
    was_pushed,
)
from dags.view import View, current_view


def train_at(home: Any, plan: str | None) -> str:
    """The site's step."""
    from site_runtime.steps import train

    assert plan is not None
    return train(home, plan, exchange(home))


def unmask_at(home: Any, request: str | None) -> str:
    """The site's second step, where updates are summed under masks."""
    from site_runtime.steps import unmask

    assert request is not None
    return unmask(home, request, exchange(home))


def round_dag(protocol: StudyProtocol, view: View) -> DAG:
    """Lay out the rounds of one study. The asset is a doorbell: every task acts on the head."""
    study = protocol.study
    with DAG(
        dag_id=f"{study}.round",
        description=f"{protocol.title}: one run is one round",
        schedule=protocol.cron if protocol.cadence == "cron" else [round_asset(study)],
        catchup=False,
        max_active_runs=1,
        max_active_tasks=view.tasks_at_once,
        tags=["consilium", study, "round"],
        default_args=default_args("consilium"),
    ) as dag:

        @task.branch(task_id="open_round")
        def open_round() -> list[str]:
            from tasks.presence import present_sites
            from tasks.rounds import open_round

            todo = at_coordinator(lambda home, run: open_round(home, study, run, present_sites(home)))
            then = "open_unmasking" if protocol.secure else "close_round"
            return follow(todo.plan, todo.roster, "train", then, todo.reason)

        @task.branch(task_id="open_unmasking", trigger_rule=TriggerRule.ALL_DONE)
        def open_unmasking() -> list[str]:
            from tasks.unmasking import open_unmasking

            opened("open_round")
            found = answers(view.sites, "train")
            todo = at_coordinator(lambda home, run: open_unmasking(home, study, run, found))
            # Without a request too: closing decides what becomes of the round.
            return [*follow(todo.plan, todo.roster, "unmask", "close_round", todo.reason), "close_round"]

        @task(task_id="close_round", trigger_rule=TriggerRule.ALL_DONE, outlets=[doorbell(study)])
        def close_round() -> str:
            from tasks.masked_round import masks_line
            from tasks.rounds import close_round

            opened("open_round")
            found = answers(view.sites, "unmask" if was_pushed("open_unmasking") else "train")
            closed = at_coordinator(lambda home, run: close_round(home, study, run, found))
            assets = {"round": [round_asset(study)], "finished": [finished_asset(study)]}
            if summary := masks_line(closed.record):
                print(summary)
            ring(study, assets.get(closed.next, []))
            return str(closed.next)

        opening, closing = open_round(), close_round()
        opening >> closing
        unmasking = open_unmasking() if protocol.secure else None
        if unmasking is not None:
            opening >> unmasking >> closing  # and closing below both: with nothing to do all are skipped
        for site in view.sites:
            with TaskGroup(site, tooltip=f"hospital {site}"):
                training = site_task(site, "train", protocol, train_at, plan_from="open_round")
                if unmasking is not None:
                    answer = site_task(site, "unmask", protocol, unmask_at, plan_from="open_unmasking")
            if unmasking is None:
                opening >> training >> closing
            else:
                opening >> training >> unmasking >> answer >> closing
    return dag


_view = current_view()
for _protocol in _view.studies:
    globals()[f"{_protocol.study}.round"] = round_dag(_protocol, _view)
