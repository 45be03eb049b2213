"""Policy over every DAG, as the coordinator sees it and as one hospital sees it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from airflow.sdk.execution_time.context import set_current_context

from contracts.canonical import canonical_json
from site_runtime.home import SiteHome
from tasks.exchange import DirectoryExchange
from tests.factories import TinyFederation, tiny_study, write_tensors

STUDIES = {
    "tiny": tiny_study(),
    "nightly": tiny_study(
        study="nightly",
        cadence="cron",
        cron="0 2 * * *",
        intake_cron="0 1 * * *",
        sign_off={"roles": ["clinician", "quality"]},
    ),
    "summed": tiny_study(study="summed", strategy={"aggregation": {"method": "secure"}}, min_sites=3),
}
SITES = ("ash", "birch", "cedar")
OWN = {"consilium.watchdog", "consilium.exchange_gc"}  # of the coordinator, whatever it studies
SITE_STEPS = {"intake": {"intake"}, "round": {"train"}, "release": {"evaluate", "verify"}}


class Bag:
    """All DAGs of one view."""

    def __init__(self, dags: dict[str, Any], errors: dict[str, str], sites: tuple[str, ...]) -> None:
        self.dags, self.errors, self.sites = dags, errors, sites

    def kinds(self) -> Iterator[tuple[str, Any]]:
        """The DAGs of studies with their kind."""
        for name, dag in self.dags.items():
            kind = name.rsplit(".", 1)[1]
            if kind in SITE_STEPS:
                yield kind, dag

    def site_tasks(self) -> Iterator[tuple[str, Any]]:
        """The tasks that run in hospitals, with the hospital."""
        for _, dag in self.kinds():
            for task in dag.tasks:
                if "." in task.task_id:
                    yield task.task_id.split(".")[0], task


@pytest.fixture(scope="module", params=["coordinator", "site"])
def bag(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bag]:
    """The DAG files parsed as Airflow parses them."""
    from airflow.dag_processing.dagbag import DagBag

    from consilium.airflow_home import dags_folder
    from tasks.head import register_study

    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CONSILIUM_HOME", raising=False)
        patch.delenv("CONSILIUM_SITE_HOME", raising=False)
        if request.param == "coordinator":
            federation = TinyFederation(home, STUDIES["tiny"], SITES)
            for name in ("nightly", "summed"):
                register_study(federation.home, STUDIES[name])
            patch.setenv("CONSILIUM_HOME", str(home))
            sites = SITES
        else:
            site = SiteHome(home / "sites" / "birch")
            for name, protocol in STUDIES.items():
                site.approval(name).parent.mkdir(parents=True, exist_ok=True)
                site.approval(name).write_bytes(canonical_json(protocol))
                site.approval(name).with_suffix(".consent.json").write_text("{}")
            patch.setenv("CONSILIUM_SITE_HOME", str(site.root))
            sites = ("birch",)
        found = DagBag(dags_folder())
        yield Bag(dict(found.dags), dict(found.import_errors), sites)


def test_every_file_parses_and_every_study_has_its_dags(bag: Bag) -> None:
    assert bag.errors == {}
    wanted = {f"{study}.{kind}" for study in STUDIES for kind in SITE_STEPS}
    assert set(bag.dags) == wanted | (OWN if len(bag.sites) > 1 else set())


def test_a_site_lays_out_its_own_tasks_under_the_same_names(bag: Bag) -> None:
    for kind, dag in bag.kinds():
        steps = SITE_STEPS[kind] | ({"unmask"} if dag.dag_id == "summed.round" else set())
        wanted = {f"{site}.{step}" for site in bag.sites for step in steps}
        assert {task.task_id for task in dag.tasks if "." in task.task_id} == wanted


def test_a_sites_task_runs_in_its_own_worker(bag: Bag) -> None:
    for site, task in bag.site_tasks():
        assert task.queue == site
        assert task.executor == "EdgeExecutor"


def test_a_sites_task_keeps_values_out_of_logs_and_takes_no_arguments(bag: Bag) -> None:
    for _, task in bag.site_tasks():
        assert task.show_return_value_in_logs is False
        assert task.multiple_outputs is False
        assert not task.op_args and not task.op_kwargs  # rendered arguments would be uploaded
        assert not task.outlets and not task.inlets


def test_every_task_has_owner_retry_rule_and_deadline(bag: Bag) -> None:
    for dag in bag.dags.values():
        for task in dag.tasks:
            assert task.owner == "consilium"
            assert task.execution_timeout is not None or task.task_id.startswith("approve_")
    for site, task in bag.site_tasks():
        assert task.retries == 1 and task.retry_delay <= timedelta(seconds=5), site
        deadline = timedelta(seconds=30)
        assert task.execution_timeout == (timedelta(minutes=10) if "intake" in task.task_id else deadline)


def test_runs_never_overlap_nor_catch_up(bag: Bag) -> None:
    for dag in bag.dags.values():
        assert dag.max_active_runs == 1
        assert dag.catchup is False
        assert "consilium" in dag.tags


def test_fifty_hospitals_work_at_once_in_every_step() -> None:
    """Airflow's default is 16: the others would wait for those, a whole deadline for some that hang."""
    from dags.study_intake import intake_dag
    from dags.study_release import release_dag
    from dags.study_round import round_dag
    from dags.view import View

    view = View(studies=[], sites=[f"site{number:02}" for number in range(50)], coordinator=True)
    for laid_out in (intake_dag, round_dag, release_dag):
        assert laid_out(STUDIES["summed"], view).max_active_tasks > 50


def test_a_queue_outside_the_federation_serves_the_coordinator(bag: Bag) -> None:
    for dag in bag.dags.values():
        for task in dag.tasks:
            if "." not in task.task_id:
                assert task.queue not in bag.sites
                assert task.executor in (None, "LocalExecutor")


def test_cadence_decides_what_starts_a_round(bag: Bag) -> None:
    assert "Asset" in type(bag.dags["tiny.round"].timetable).__name__
    assert "Asset" not in type(bag.dags["nightly.round"].timetable).__name__
    assert bag.dags["nightly.round"].schedule == "0 2 * * *"
    assert bag.dags["tiny.intake"].schedule is None


def test_the_coordinator_clears_its_exchange_once_a_day(bag: Bag, tmp_path: Path) -> None:
    if len(bag.sites) == 1:
        return  # a hospital has none
    dag = bag.dags["consilium.exchange_gc"]
    assert dag.schedule == "23 3 * * *"
    store = DirectoryExchange(Path(os.environ["CONSILIUM_HOME"]) / "coordinator" / "exchange")
    old, new = (
        store.put(write_tensors(tmp_path / str(value), {"w": np.full(4, value, np.float32)}))
        for value in (1.0, 2.0)
    )
    os.utime(store.path_of(old), (0, 0))
    with set_current_context({"run_id": "scheduled"}):
        assert dag.get_task("collect").python_callable() == [old]
    assert store.path_of(new).is_file() and not store.path_of(old).exists()


def test_a_round_closes_whatever_its_sites_did(bag: Bag) -> None:
    for study in STUDIES:
        close = bag.dags[f"{study}.round"].get_task("close_round")
        assert close.trigger_rule == "all_done"
        before, step = ("open_unmasking", "unmask") if study == "summed" else ("open_round", "train")
        assert {before, *(f"{site}.{step}" for site in bag.sites)} <= close.upstream_task_ids


def test_under_masks_sites_are_asked_twice_and_counted_between(bag: Bag) -> None:
    dag = bag.dags["summed.round"]
    asking, close = dag.get_task("open_unmasking"), dag.get_task("close_round")
    assert asking.trigger_rule == "all_done"
    assert asking.upstream_task_ids == {"open_round", *(f"{site}.train" for site in bag.sites)}
    for site in bag.sites:
        assert dag.get_task(f"{site}.unmask").upstream_task_ids == {"open_unmasking"}
    # Directly below both, so that it is skipped with them and never by one of them alone.
    assert {"open_round", "open_unmasking"} <= close.upstream_task_ids
    assert "open_unmasking" not in bag.dags["tiny.round"].task_ids


def test_every_role_of_the_protocol_is_asked_and_only_its_user_may_answer(bag: Bag) -> None:
    for study, protocol in STUDIES.items():
        dag = bag.dags[f"{study}.release"]
        questions = {task.task_id: task for task in dag.tasks if task.task_id.startswith("approve_")}
        assert set(questions) == {f"approve_{role}" for role in protocol.sign_off.roles}
        for role in protocol.sign_off.roles:
            asked = questions[f"approve_{role}"]
            assert asked.assigned_users == [{"id": role, "name": role}]
            assert asked.options == ["Approve", "Reject"] and not asked.multiple and not asked.defaults
            assert asked.params.get_param("role").schema["enum"] == [role]
            assert f"/candidates/{study}/validation.html" in asked.body
            assert asked.upstream_task_ids == {"collect"}


def test_publication_hears_every_answer_whatever_became_of_the_questions(bag: Bag) -> None:
    # It decides by itself (tests/tasks/test_publication.py): a rejection must reach it, and so must silence.
    for study, protocol in STUDIES.items():
        publish = bag.dags[f"{study}.release"].get_task("publish")
        asked = {f"approve_{role}" for role in protocol.sign_off.roles}
        assert publish.upstream_task_ids == {"collect", *asked}
        assert publish.trigger_rule == "all_done"
