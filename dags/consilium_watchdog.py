"""`consilium.watchdog`: rings again for a study that should be moving and is not."""

from __future__ import annotations

from airflow.sdk import DAG, get_current_context, task

from dags.steps import at_coordinator, default_args, doorbell, finished_asset, ring, round_asset
from dags.view import current_view

if current_view().coordinator:
    with DAG(
        dag_id="consilium.watchdog",
        description="Rings again when a study is running and nothing is active",
        schedule="* * * * *",
        catchup=False,
        max_active_runs=1,
        tags=["consilium", "watchdog"],
        default_args=default_args("consilium") | {"retries": 0},
    ):

        @task(task_id="ring", outlets=[doorbell("watchdog")])
        def ring_idle() -> list[str]:
            """Ring the doorbell of every idle study; the events say nothing but that somebody rang."""
            from tasks.watchdog import idle_studies

            instance = get_current_context()["ti"]

            def active(study: str) -> bool:
                return instance.get_dr_count(dag_id=f"{study}.round", states=["queued", "running"]) > 0

            idle = at_coordinator(lambda home, run: idle_studies(home, active))
            bells = {"round": round_asset, "finished": finished_asset}
            ring("watchdog", [bells[bell](study) for study, bell in idle.items()])
            return sorted(idle)

        ring_idle()
