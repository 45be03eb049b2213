"""A hospital's task that hangs is ended a minute after its deadline, and a token ends with its task."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.schedule import INTAKE_SECONDS, task_seconds
from plugins.deadlines import GRACE_SECONDS
from plugins.jobs import Life
from tests.factories import tiny_study
from tests.plugins.gate_harness import ASH_INTAKE, ASH_LATER, ASH_TASK, RUN, Gate

START = {"state": "running", "pid": 1}


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """A gate whose clock stands at 1000 seconds."""
    gate = Gate(tmp_path)
    gate.gate.deadlines.clock = lambda: 1000.0
    return gate


def beat(gate: Gate, instance: str) -> int:
    """Send a sign of life."""
    return gate.task(instance, "PUT", f"task-instances/{instance}/heartbeat", {"pid": 1})


@pytest.mark.parametrize(
    ("instance", "name"), [(ASH_TASK, "train"), (ASH_LATER, "evaluate"), (ASH_INTAKE, "intake")]
)
def test_a_task_is_gone_a_minute_after_its_deadline(gate: Gate, instance: str, name: str) -> None:
    last = 1000.0 - GRACE_SECONDS - task_seconds(gate.federation.protocol, name)
    gate.jobs.lives[instance] = Life("running", last)
    assert beat(gate, instance) == 200
    gate.with_new_gate().gate.deadlines.clock = lambda: 1000.0
    gate.jobs.lives[instance] = Life("running", last - 0.1)
    assert beat(gate, instance) == 410
    assert gate.audited()[-1]["reason"] == "deadline"


def test_time_passes_for_a_task_that_was_looked_up_before(gate: Gate) -> None:
    gate.jobs.lives[ASH_TASK] = Life("running", 1000.0)
    assert beat(gate, ASH_TASK) == 200
    gate.gate.deadlines.clock = lambda: 1e9
    assert beat(gate, ASH_TASK) == 410


def test_a_second_try_has_the_time_of_the_first(gate: Gate) -> None:
    gate.jobs.lives[ASH_TASK] = Life("queued", 0.0)
    assert gate.task(ASH_TASK, "PATCH", f"task-instances/{ASH_TASK}/run", START) == 410
    gate.jobs.lives[ASH_TASK] = Life("queued", None)
    assert gate.task(ASH_TASK, "PATCH", f"task-instances/{ASH_TASK}/run", START) == 200


@pytest.mark.parametrize("life", [Life("success", 999.0), Life("failed", 999.0), Life("queued", None), None])
def test_a_token_reads_and_writes_only_while_its_task_runs(gate: Gate, life: Life | None) -> None:
    plan, answer = f"xcoms/tiny.round/{RUN}/open_round/plan", f"xcoms/tiny.round/{RUN}/ash.train/return_value"
    gate.jobs.lives[ASH_TASK] = Life("running", 999.0)
    assert gate.task(ASH_TASK, "GET", plan) == gate.task(ASH_TASK, "POST", answer, "{}") == 200
    gate.jobs.lives[ASH_TASK] = life
    assert gate.task(ASH_TASK, "GET", plan) == 410
    assert gate.task(ASH_TASK, "POST", answer, "{}") == 410
    assert gate.task(ASH_TASK, "DELETE", answer) == 410


def test_an_intake_has_ten_minutes_however_short_the_rounds_are() -> None:
    protocol = tiny_study(deadline_seconds=30)
    assert task_seconds(protocol, "intake") == INTAKE_SECONDS
    assert task_seconds(protocol, "train") == task_seconds(protocol, "evaluate") == 30
    assert task_seconds(tiny_study(deadline_seconds=3000), "intake") == 3000
