"""Keys that change and members that leave while updates are summed under masks: what is stored stays good."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from consilium.simulation import Simulation, ask
from contracts.errors import ConsiliumError
from contracts.signing import SigningKey, parse_signed, to_text
from contracts.update import UpdateEnvelope
from site_runtime.steps import train
from tasks.membership import revoke, rotate_coordinator
from tasks.replay import replay
from tasks.rounds import open_round
from tests.masked import (
    SITES,
    asked,
    closed,
    exchange,
    five_hospitals,
    masked_study,
    opened,
    run_exchange,
    trained,
    unmasked,
)
from tests.tasks.test_federation_keys import change_keys

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

CHANGES = {
    "rotated": lambda five: change_keys(five, "elm"),
    "revoked": lambda five: revoke(five.coordinator, "elm", "ended", "Dr. B"),
    "coordinator": lambda five: rotate_coordinator(five.coordinator, officer="Dr. B", reason="Yearly."),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Simulation:
    """Five hospitals after their first exchange; tests work on copies."""
    simulation = five_hospitals(tmp_path_factory.mktemp("prepared"), masked_study(rounds=4))
    run_exchange(simulation, "run-1")
    return simulation


@pytest.fixture
def five(prepared: Simulation, tmp_path: Path) -> Simulation:
    shutil.copytree(prepared.root, tmp_path / "copy", symlinks=True)
    return Simulation(tmp_path / "copy", prepared.protocol)


@pytest.mark.parametrize("change", CHANGES)
def test_a_closed_exchange_replays_after_a_change_of_keys(five: Simulation, change: str) -> None:
    CHANGES[change](five)
    assert all(found.matches for found in replay(five.coordinator, "tiny"))


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_keys_between_the_hops_does_not_hold_the_sum(five: Simulation, change: str) -> None:
    """Whose vector was admitted is in the sum; a share that comes by a key of before is refused."""
    shares = unmasked(five, asked(five, trained(five, opened(five))))
    CHANGES[change](five)
    done = closed(five, shares)
    assert done.next == "round" and done.record["admitted"] == [*SITES]
    assert all(found.matches for found in replay(five.coordinator, "tiny"))


def test_after_a_revocation_between_the_hops_the_study_goes_on(five: Simulation) -> None:
    """The other four ask and answer again, and then the next exchange is theirs."""
    asked(five, trained(five, opened(five)))
    revoke(five.coordinator, "elm", "ended", "Dr. B")
    rest = SITES[:4]
    for run in ("again", "next"):
        found = open_round(five.coordinator, "tiny", run, set(rest))
        assert found.plan is not None
        answers = {site: ask(train, five.sites[site], found.plan, exchange(five)) for site in rest}
        request = asked(five, answers, run)
        assert closed(five, unmasked(five, request, {"elm"}), run).record["status"] == "closed"


def test_a_stored_vector_by_a_key_that_nobody_had_is_no_answer(five: Simulation) -> None:
    plan = opened(five)
    shares = unmasked(five, asked(five, trained(five, plan)))
    path = five.coordinator.study("tiny") / "answers" / parse_signed(plan).digest / "elm.json"
    envelope = UpdateEnvelope.model_validate(parse_signed(path.read_text()).document)
    path.write_text(to_text(SigningKey.generate("elm").sign(envelope)))
    with pytest.raises(ConsiliumError, match="E803"):
        closed(five, shares)
