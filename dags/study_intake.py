"""`<study>.intake`: every hospital freezes its cohort and publishes a data sheet."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, TaskGroup, TriggerRule, task

from contracts.study import StudyProtocol
from dags.steps import answers, at_coordinator, default_args, site_task
from dags.view import View, current_view


def intake_at(study: str) -> Any:
    """The site's step of this study."""

    def step(home: Any, plan: str | None) -> str:
        from site_runtime.steps import intake

        return intake(home, study)

    return step


def intake_dag(protocol: StudyProtocol, view: View) -> DAG:
    """Lay out the intake of one study."""
    study = protocol.study
    with DAG(
        dag_id=f"{study}.intake",
        description=f"{protocol.title}: freeze the cohorts",
        schedule=protocol.intake_cron,
        catchup=False,
        max_active_runs=1,
        max_active_tasks=view.tasks_at_once,
        tags=["consilium", study, "intake"],
        default_args=default_args("consilium"),
    ) as dag:

        @task(task_id="collect", trigger_rule=TriggerRule.ALL_DONE, multiple_outputs=False)
        def collect() -> dict[str, Any]:
            from tasks.intake import admit_sheets

            found = answers(view.sites, "intake")
            return dict(at_coordinator(lambda home, run: admit_sheets(home, study, found)))

        collected = collect()
        for site in view.sites:
            with TaskGroup(site, tooltip=f"hospital {site}"):
                site_task(site, "intake", protocol, intake_at(study), plan_from=None) >> collected
    return dag


_view = current_view()
for _protocol in _view.studies:
    globals()[f"{_protocol.study}.intake"] = intake_dag(_protocol, _view)
