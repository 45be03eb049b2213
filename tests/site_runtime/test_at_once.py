"""Plans that reach a hospital together: one answer for an exchange, and no epsilon beyond the approved one.

A hospital's worker runs several tasks side by side, and the coordinator decides when it queues them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consilium.simulation import Simulation
from contracts.plan import RoundPlan
from contracts.signing import SigningKey, parse_signed
from privacy.accountant import Spend, StudyCap, epsilon
from privacy.ledger import Ledger
from site_runtime import steps
from site_runtime.outbox import exclusively
from site_runtime.steps import SiteRefused, train
from tasks.store import get_tensors
from tests.factories import private_study, tiny_study, write_tensors
from tests.federations import exchange, four_hospitals, ledger, opened, resigned, run_one

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

LONG = 60.0  # seconds after which a test gives up


def at_once(jobs: list[Callable[[], Any]]) -> list[Any]:
    """What each job returns, when all run side by side."""
    found: list[Any] = [None] * len(jobs)

    def run(number: int) -> None:
        found[number] = jobs[number]()

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert not any(thread.is_alive() for thread in threads)
    return found


def answer(simulation: Simulation, plan: str) -> tuple[str, str]:
    """`answered` and the digest of the tensors, or `refused` and the number."""
    try:
        text = train(simulation.sites["ash"], plan, exchange(simulation))
    except SiteRefused as refusal:
        return "refused", refusal.number
    return "answered", parse_signed(text).document["tensors"]


def kept(simulation: Simulation) -> list[Path]:
    """What lies finished in the hospital's outbox."""
    return list(simulation.sites["ash"].outbox("").glob("[0-9a-f]*"))


@pytest.fixture
def met(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let three plans wait for each other behind the checks; where only one gets there, it goes on alone."""
    barrier, check = threading.Barrier(3), steps.check_plan

    def meeting(*arguments: Any) -> None:
        check(*arguments)
        with suppress(threading.BrokenBarrierError):
            barrier.wait(5.0)

    monkeypatch.setattr(steps, "check_plan", meeting)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Simulation:
    """After the statistics and the first round, without privacy; tests work on copies."""
    simulation = four_hospitals(tmp_path_factory.mktemp("trained"), tiny_study())
    run_one(simulation, "run-0")
    run_one(simulation, "run-1")
    return simulation


@pytest.fixture
def second(trained: Simulation, tmp_path: Path) -> tuple[Simulation, str, RoundPlan]:
    """The second round's plan as it reaches the hospitals."""
    shutil.copytree(trained.root, tmp_path / "copy", symlinks=True)
    simulation = Simulation(tmp_path / "copy", trained.protocol)
    return simulation, *opened(simulation, "run-2")


def from_another_model(simulation: Simulation, text: str, plan: RoundPlan, shift: float, attempt: int) -> str:
    """The plan anew, from a model that is a little further."""
    assert plan.base_model is not None
    model = get_tensors(simulation.coordinator, plan.base_model)
    moved = {k: v + np.float32(shift) if k.startswith("network.") else v for k, v in model.items()}
    path = write_tensors(simulation.root / "moved.safetensors", moved)
    return resigned(simulation, text, attempt=attempt, base_model=exchange(simulation).put(path))


@pytest.mark.usefixtures("met")
def test_of_plans_from_three_models_one_is_answered(second: Any) -> None:
    simulation, text, plan = second
    plans = [text, *(from_another_model(simulation, text, plan, 0.5 * n, n + 1) for n in (1, 2))]
    before = len(kept(simulation))
    found = at_once([lambda plan=plan: answer(simulation, plan) for plan in plans])
    assert sorted(kind for kind, _ in found) == ["answered", "refused", "refused"]
    assert {number for kind, number in found if kind == "refused"} == {"E324"}
    assert len(kept(simulation)) == before + 1  # of the others none was even trained
    # And later, in any order: the one that was answered, again.
    assert [answer(simulation, plan) for plan in plans] == found


@pytest.mark.usefixtures("met")
def test_the_approved_epsilon_is_not_passed_by_attempts_at_once(tmp_path: Path) -> None:
    protocol = private_study(rounds=2)
    simulation = four_hospitals(tmp_path, protocol)
    run_one(simulation, "run-0")
    text, _ = opened(simulation, "run-1")
    plans = [text, *(resigned(simulation, text, attempt=attempt) for attempt in (2, 3))]
    found = at_once([lambda plan=plan: answer(simulation, plan) for plan in plans])
    assert len({digest for kind, digest in found if kind == "answered"}) == 1
    spends, privacy = ledger(simulation).spends("tiny"), protocol.privacy
    assert len(spends) == 2  # the statistics and one round
    assert privacy.mode == "patient"
    assert epsilon(spends, privacy.delta, privacy.adjacency) <= privacy.epsilon


def test_reservations_at_once_count_each_other_under_the_studys_cap(tmp_path: Path) -> None:
    key, spend = SigningKey.generate("ash"), Spend(1.0, 5.0, 1)
    cap = StudyCap(epsilon([spend] * 3, 1e-5), 1e-5, "add-or-remove-one")

    def reserve(number: int) -> str:
        own = Ledger(tmp_path / "ash.jsonl", "ash", "ash", key)
        try:
            own.reserve(
                study="tiny",
                plan=f"{number:064x}",
                purpose="training",
                spend=spend,
                epsilon_cap=100.0,
                delta=1e-5,
                study_cap=cap,
            )
        except Exception as error:
            return str(error)[:4]
        return "reserved"

    found = at_once([lambda number=number: reserve(number) for number in range(12)])
    assert sorted(found) == ["E401"] * 9 + ["reserved"] * 3
    other = Ledger(tmp_path / "ash.jsonl", "ash", "ash", key)
    assert other.spends("tiny") == [spend] * 3


def test_a_study_does_not_wait_for_another(second: Any) -> None:
    simulation, text, _ = second
    with exclusively(simulation.sites["ash"], "other"):
        assert at_once([lambda: answer(simulation, text)])[0][0] == "answered"


def test_an_update_that_a_crash_kept_does_not_leave_after_another_was_answered(
    second: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the outbox and the note: what nobody was sent is no second answer later."""
    simulation, text, plan = second

    class Killed(BaseException):
        pass

    def die(*arguments: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("site_runtime.training.note_answer", die)
        train(simulation.sites["ash"], text, exchange(simulation))
    other = from_another_model(simulation, text, plan, 0.5, 2)
    sent = answer(simulation, other)
    assert sent[0] == "answered"
    assert answer(simulation, text) == ("refused", "E324")
    assert answer(simulation, other) == sent


HOLD = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, 2); print('held'); sys.stdin.read()"


def test_it_waits_for_the_study_and_a_killed_process_gives_it_back(second: Any) -> None:
    simulation, text, _ = second
    lock = simulation.sites["ash"].outbox(".tiny.lock")
    command = [sys.executable, "-u", "-c", HOLD, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        waiting = threading.Thread(target=answer, args=(simulation, text), daemon=True)
        waiting.start()
        waiting.join(1.0)
        assert waiting.is_alive()
        holder.kill()
    waiting.join(LONG)
    assert not waiting.is_alive()
    assert answer(simulation, text)[0] == "answered"
