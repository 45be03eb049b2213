"""Rounds under masks in real Airflow: two hops at every hospital, and nobody's update at the coordinator."""

from __future__ import annotations

import pytest

from consilium.platform import Platform
from tasks.replay import replay
from tasks.store import load_record
from tests.live.driver import head, intake, quiet, start, wait_finished

pytestmark = pytest.mark.live


def test_a_study_is_summed_under_masks_by_two_hops_of_every_hospital(platform: Platform) -> None:
    study, dag = "heart-secure", "heart-secure.round"
    intake(platform, study)
    run = start(platform, study)
    wait_finished(platform, study)
    assert head(platform, study).round == 2
    for number in (1, 2):
        record = load_record(platform.coordinator, study, str(number))
        assert (record["status"], record["aggregation"]) == ("closed", "secure")
        assert record["secure"]["alive"] == sorted(platform.sites) and record["secure"]["dead"] == []
        assert "influence" not in record
    states = {name: task.state for name, task in platform.airflow.tasks(dag, run).items()}
    assert states["open_unmasking"] == "success"
    assert all(states[f"{site}.{hop}"] == "success" for site in platform.sites for hop in ("train", "unmask"))
    assert all(round.matches for round in replay(platform.coordinator, study))
    quiet(platform, study)
