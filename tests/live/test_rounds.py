"""Rounds in real Airflow: fresh randomness in a warm worker, and a head that no button moves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from consilium.platform import Platform
from tasks.store import load_record
from tests.live.driver import fingerprint, finish, head, intake, quiet, start, wait, wait_finished

pytestmark = pytest.mark.live


def change(platform: Platform, site: str, round_number: int) -> np.ndarray:
    """What a site sent in a round of the private study, as one vector."""
    plan = load_record(platform.coordinator, "heart-private", str(round_number))["plan"]
    path: Path = platform.site(site).outbox(plan) / "update.safetensors"
    return np.concatenate([tensor.ravel() for _, tensor in sorted(load_file(path).items())])


def test_two_rounds_on_one_warm_worker_draw_different_batches_and_noise(platform: Platform) -> None:
    """At this epsilon an update is almost all noise: drawn twice from one inherited generator, the two
    updates of a hospital would be the same but for their bases (correlation 1)."""
    intake(platform, "heart-private")
    workers = {site: platform.part(f"site-{site}").leader() for site in platform.sites}
    start(platform, "heart-private")
    wait_finished(platform, "heart-private")
    for site in platform.sites:
        part = platform.part(f"site-{site}")
        assert part.alive() and part.leader() == workers[site]  # the same worker forked both tasks
        first, second = (change(platform, site, n) for n in (1, 2))
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.95
    across = [change(platform, site, 1) for site in platform.sites]
    for i in range(len(across)):
        for j in range(i):
            assert abs(np.corrcoef(across[i], across[j])[0, 1]) < 0.95


def test_nothing_that_airflow_repeats_moves_a_finished_study(platform: Platform) -> None:
    """Clear round 2 of 6, pause and unpause, ring three times at once, delete a run."""
    study, dag = "heart-live", "heart-live.round"
    intake(platform, study)
    start(platform, study)
    wait_finished(platform, study)
    quiet(platform, study)
    airflow = platform.airflow
    before = fingerprint(platform, study)
    assert f"coordinator/studies/{study}/head.json" in before
    runs = airflow.runs(dag)
    assert len([run for run in runs if run.state == "success"]) >= 7  # statistics and six rounds

    airflow.clear_run(dag, runs[2].id)
    assert finish(platform, dag, runs[2].id).state == "success"
    quiet(platform, study)
    assert fingerprint(platform, study) == before

    airflow.pause(dag)
    airflow.ring(f"consilium://{study}/round")
    airflow.pause(dag, paused=False)
    for _ in range(3):
        airflow.ring(f"consilium://{study}/round")
    rung = len(runs)
    wait("a run that was rung", lambda: len(airflow.runs(dag)) > rung, 60)
    quiet(platform, study)
    airflow.delete_run(dag, runs[3].id)
    by_hand = start(platform, study)
    finish(platform, dag, by_hand)
    states = {name: task.state for name, task in airflow.tasks(dag, by_hand).items()}
    assert states.pop("open_round") == "success"
    assert set(states.values()) == {"skipped"}
    quiet(platform, study)
    assert fingerprint(platform, study) == before


def test_the_records_name_every_hospital(platform: Platform) -> None:
    assert head(platform, "heart-live").round == 6
    for number in range(7):
        record = load_record(platform.coordinator, "heart-live", str(number))
        assert record["expected"] == record["admitted"] == sorted(platform.sites)
        assert record["refused"] == {} and record["silent"] == []
