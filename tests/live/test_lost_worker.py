"""A hospital's worker dies: the round closes with the quorum in time, and the hospital comes back."""

from __future__ import annotations

import os
import signal
import time

import pytest

from consilium.platform import Platform
from consilium.processes import processes_of
from tasks.presence import present_sites
from tasks.store import load_record
from tests.live.driver import finish, intake, start, state_of, wait

pytestmark = pytest.mark.live

LOST = "va"


def comes_back(platform: Platform, study: str, next_round: int) -> None:
    """Start the worker again and see that the hospital trains in the next round."""
    platform.start_site(LOST)
    wait("the worker is back", lambda: LOST in present_sites(platform.coordinator), 120)
    finish(platform, f"{study}.round", start(platform, study))
    record = load_record(platform.coordinator, study, str(next_round))
    assert record["admitted"] == sorted(platform.sites)


def closed_without(platform: Platform, study: str, round_number: int) -> None:
    """Check that a round was closed by the other hospitals and says who was silent."""
    record = load_record(platform.coordinator, study, str(round_number))
    assert record["status"] == "closed"
    assert LOST in record["expected"]
    assert record["silent"] == [LOST]
    assert record["admitted"] == sorted(set(platform.sites) - {LOST})


def test_a_worker_that_dies_while_its_task_is_queued(platform: Platform) -> None:
    study, dag = "heart-queued", "heart-queued.round"
    intake(platform, study)
    # Stopped, it fetches nothing, and is still counted present when the round opens.
    for process in processes_of([platform.part(f"site-{LOST}")]):
        os.kill(process.pid, signal.SIGSTOP)
    run = start(platform, study)
    began = time.monotonic()
    wait("queued", lambda: state_of(platform, dag, run, f"{LOST}.train") == "queued", 30)
    platform.kill_site(LOST)
    assert finish(platform, dag, run, 90).state in ("success", "failed")
    assert time.monotonic() - began < 60  # the protocol's deadline
    closed_without(platform, study, 1)
    comes_back(platform, study, 2)


def test_a_worker_that_dies_while_its_task_runs(platform: Platform) -> None:
    study, dag = "heart-running", "heart-running.round"
    intake(platform, study)
    run = start(platform, study)
    began = time.monotonic()
    wait("running", lambda: state_of(platform, dag, run, f"{LOST}.train") == "running", 30)
    platform.kill_site(LOST)
    assert finish(platform, dag, run, 120).state in ("success", "failed")
    assert time.monotonic() - began < 60 + 10  # the deadline, and what it takes to open and close
    closed_without(platform, study, 1)
    comes_back(platform, study, 2)
