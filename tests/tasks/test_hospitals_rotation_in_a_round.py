"""Hospitals change their keys while an exchange under masks is open: it closes, and can be replayed."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

import pytest

from consilium.simulation import Simulation
from contracts.errors import ConsiliumError
from contracts.signing import parse_signed
from site_runtime.peers import follow_rotations
from site_runtime.rotation import begin_rotation, finish_rotation
from site_runtime.steps import intake
from tasks.head import load_head
from tasks.membership import rotate, rotations
from tasks.replay import replay
from tasks.store import load_record, save_sheet
from tests.factories import STUDY
from tests.masked import (
    DECLARED,
    SITES,
    asked,
    closed,
    five_hospitals,
    masked_study,
    opened,
    run_exchange,
    trained,
    unmasked,
)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

FIRST = {"training": DECLARED, "statistics": STUDY["training"]}  # the first exchange of the study


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Simulation]:
    """By the kind of the first exchange, five hospitals after intake; tests work on copies."""
    root = tmp_path_factory.mktemp("prepared")
    return {k: five_hospitals(root / k, masked_study(training=training)) for k, training in FIRST.items()}


@pytest.fixture(params=list(FIRST))
def five(request: pytest.FixtureRequest, prepared: dict[str, Simulation], tmp_path: Path) -> Simulation:
    found = prepared[request.param]
    shutil.copytree(found.root, tmp_path / "copy", symlinks=True)
    return Simulation(tmp_path / "copy", found.protocol)


def change_keys(simulation: Simulation, sites: Collection[str], followers: Collection[str] = SITES) -> None:
    """New keys at these hospitals and at the coordinator; the followers take the kit that says so."""
    for site in sites:
        document = begin_rotation(simulation.sites[site], officer="Dr. A. Smith", reason="yearly")
        rotate(simulation.coordinator, document, "Dr. B. Jones")
        finish_rotation(simulation.sites[site])
    follow(simulation, followers)


def follow(simulation: Simulation, sites: Collection[str]) -> None:
    for site in sites:
        follow_rotations(simulation.sites[site], rotations(simulation.coordinator))


@pytest.mark.parametrize("who", [("ash",), SITES])
@pytest.mark.parametrize("before", ["training", "unmasking"])
def test_an_exchange_closes_with_everybody_in_it(five: Simulation, before: str, who: Collection[str]) -> None:
    plan = opened(five)
    if before == "training":
        change_keys(five, who)
    request = asked(five, trained(five, plan))
    if before == "unmasking":
        change_keys(five, who)
    record = closed(five, unmasked(five, request)).record
    assert record["status"] == "closed" and record["admitted"] == sorted(SITES)
    assert record["secure"]["answered"] == sorted(SITES)
    assert next(iter(replay(five.coordinator, "tiny"))).matches


@pytest.mark.parametrize("before", ["asking", "closing"])
def test_an_answer_on_its_way_by_an_old_key_counts_as_missing(five: Simulation, before: str) -> None:
    """It is sent again, by the new key, when the same is asked again."""
    answers = trained(five, opened(five))
    if before == "asking":
        change_keys(five, ["ash"])
    shares = unmasked(five, asked(five, answers))
    if before == "closing":
        change_keys(five, ["ash"])
    record = closed(five, shares).record
    missing = record["secure"]["dead"] if before == "asking" else record["secure"]["refused"]
    assert record["status"] == "closed" and list(missing) == ["ash"]


def test_a_closed_exchange_replays_after_a_change(five: Simulation) -> None:
    run_exchange(five, "run")
    change_keys(five, SITES)
    assert next(iter(replay(five.coordinator, "tiny"))).matches


def test_its_next_mask_key_comes_with_an_intake_if_the_old_key_signed_the_last_one(five: Simulation) -> None:
    request = asked(five, trained(five, opened(five, "run-0")), "run-0")
    change_keys(five, ["ash"])
    closed(five, unmasked(five, request), "run-0")
    opened(five, "run-1")
    number = load_head(five.coordinator, "tiny").round
    assert load_record(five.coordinator, "tiny", str(number))["absent"] == {"ash": "no mask key yet"}
    run_exchange(five, "run-1")
    save_sheet(five.coordinator, "tiny", "ash", intake(five.sites["ash"], "tiny"))
    if load_head(five.coordinator, "tiny").status == "running":
        assert "ash" in run_exchange(five, "run-2").record["admitted"]


def test_a_mask_key_by_a_key_that_is_not_followed_here_waits_for_the_kit(
    prepared: dict, tmp_path: Path
) -> None:
    """Ash signs its mask key by the new key, and two hospitals have not taken the kit: they say E803."""
    shutil.copytree(prepared["statistics"].root, tmp_path / "copy", symlinks=True)
    five = Simulation(tmp_path / "copy", prepared["statistics"].protocol)
    change_keys(five, ["ash"], SITES[:3])
    save_sheet(five.coordinator, "tiny", "ash", intake(five.sites["ash"], "tiny"))
    plan = opened(five, "run-0")
    answers = trained(five, plan)
    said = {site: parse_signed(text or "").document.get("number") for site, text in answers.items()}
    assert [site for site, number in said.items() if number == "E803"] == ["dogwood", "elm"]
    asked(five, answers, "run-0")
    with pytest.raises(ConsiliumError, match=r"E506.*dogwood: E803"):
        closed(five, {}, "run-0")
    follow(five, SITES)
    assert run_exchange(five, "run-1").record["admitted"] == sorted(SITES)
