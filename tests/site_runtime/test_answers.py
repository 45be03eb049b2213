"""Whatever is asked after a crash: an exchange has one answer, and it is sent in the same bytes or not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from consilium.simulation import Simulation, ask
from contracts.signing import parse_signed
from contracts.study import StudyProtocol
from site_runtime.steps import train
from site_runtime.training import make_update
from tasks.exchange import DirectoryExchange
from tests.factories import opened_plan, private_study, tiny_simulation, tiny_study
from tests.federations import resigned
from tests.kills import moments

UNUSED = shutil.ignore_patterns("birch", "federation")
DECLARED = {"steps": 3, "sample_rate": 0.2, "learning_rate": 0.5, "normalisation": "declared"}
EXACT = tiny_study(training=DECLARED)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", [EXACT, private_study(training=DECLARED)], ids=["exact", "private"])
def test_killed_between_any_two_writes_no_second_answer_leaves(
    tmp_path: Path, protocol: StudyProtocol
) -> None:
    assert make_update is not None  # imported before anything is killed
    simulation = tiny_simulation(tmp_path / "world", protocol)
    plan = opened_plan(simulation)
    anew = [
        resigned(simulation, plan, attempt=2),
        resigned(simulation, plan, created="2030-01-01T00:00:00Z"),  # of a restored coordinator
    ]

    def begin(target: Path) -> None:
        shutil.copytree(simulation.root, target, symlinks=True, ignore=UNUSED)
        site_train(target, protocol, plan)

    def check(target: Path) -> None:
        for text in (*anew, plan, anew[0]):
            site_train(target, protocol, text)
        sent = {p.name for p in (target / "coordinator" / "exchange").rglob("*") if len(p.name) == 64}
        base = parse_signed(plan).document.get("base_model")
        assert len(sent - {base}) == 1

    assert moments(begin, check, tmp_path / "killed") >= 4


def site_train(root: Path, protocol: StudyProtocol, plan: str) -> str:
    """What the hospital answers, which may be its refusal."""
    simulation = Simulation(root, protocol)
    return ask(train, simulation.sites["ash"], plan, DirectoryExchange(simulation.coordinator.exchange))
