"""`consilium.exchange_gc`: once a day, throws away what nothing in the exchange is needed for any more."""

from __future__ import annotations

from airflow.sdk import DAG, task

from dags.steps import at_coordinator, default_args
from dags.view import current_view

if current_view().coordinator:
    with DAG(
        dag_id="consilium.exchange_gc",
        description="Throws away what no document of the coordinator names and is old enough",
        schedule="23 3 * * *",
        catchup=False,
        max_active_runs=1,
        tags=["consilium", "exchange"],
        default_args=default_args("consilium"),
    ):

        @task(task_id="collect")
        def collect() -> list[str]:
            """Return the names of the files that went: digests, and nothing of what was in them."""
            from tasks.exchange_gc import collect_daily

            return [content.path.name for content in at_coordinator(lambda home, run: collect_daily(home))]

        collect()
