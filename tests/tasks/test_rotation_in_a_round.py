"""The coordinator changes its key while an exchange is open: it closes as it would have without."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from consilium.simulation import Simulation, ask
from contracts.errors import ConsiliumError
from contracts.refusal import Refusal
from contracts.signing import SigningKey, parse_signed, to_text
from privacy.ledger import Ledger
from site_runtime.consent import pause
from site_runtime.joining import follow_coordinator
from site_runtime.steps import train
from tasks.exchange import DirectoryExchange
from tasks.federation import coordinator_key
from tasks.head import load_head
from tasks.membership import rotate_coordinator, rotations
from tasks.replay import replay
from tasks.rounds import ClosedRound, close_round, open_round
from tasks.store import load_record
from tests.factories import opened_plan, private_study, tiny_simulation
from tests.masked import (
    SITES,
    Answers,
    Clear,
    asked,
    closed,
    opened,
    plain_model,
    run_exchange,
    trained,
    unmasked,
)

pytest_plugins = ("tests.masked_world",)
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

MOMENTS = ("training", "asking", "unmasking", "closing")  # before which the key changes
FOLLOWING: dict[str, Collection[str]] = {"all": SITES, "two": SITES[:2], "nobody": ()}


def change_key(simulation: Simulation) -> None:
    rotate_coordinator(simulation.coordinator, officer="Dr. A. Smith", reason="yearly")


def follow(simulation: Simulation, sites: Collection[str]) -> None:
    """Have these hospitals pin the key in force, by the word of the one that they have pinned."""
    home = simulation.coordinator
    for site in sites:
        follow_coordinator(simulation.sites[site], rotations(home), coordinator_key(home).public)


def disturbed(five: Simulation, before: str, following: Collection[str]) -> ClosedRound:
    """One run in which the key changes, and some hospitals learn it at once."""

    def now(moment: str) -> None:
        if moment == before:
            change_key(five)
            follow(five, following)

    plan = opened(five, "run-0")
    now("training")
    answers = trained(five, plan)
    now("asking")
    request = asked(five, answers, "run-0")
    now("unmasking")
    shares: Answers = {} if request.plan is None else unmasked(five, request)
    now("closing")
    return closed(five, shares, "run-0")


def refusals(simulation: Simulation) -> set[str]:
    """The numbers with which hospitals refused in the exchange, at either hop."""
    record = load_record(simulation.coordinator, "tiny", "1")
    both = (record["refused"], record["secure"].get("refused", {}))
    return {refusal["number"] for hop in both for refusal in hop.values()}


@pytest.mark.parametrize("before", MOMENTS)
@pytest.mark.parametrize("following", FOLLOWING)
def test_a_sum_under_masks_is_opened_whenever_the_key_changes(
    five: Simulation, clear: Clear, before: str, following: str
) -> None:
    try:
        found = disturbed(five, before, FOLLOWING[following])
    except ConsiliumError as waits:
        # Hospitals and request disagree about the key. Once all know it, the next run asks the same again.
        assert waits.number == "E506" and refusals(five) == {"E814"}
        assert load_head(five.coordinator, "tiny").round == 1
        follow(five, SITES)
        found = run_exchange(five, "run-1")
    record = found.record
    assert record["status"] == "closed" and record["attempts"] == []
    (plan,) = (five.coordinator.study("tiny") / "plans").glob("*.json")
    assert record["model"] == plain_model(five, plan.read_text(), clear, record["admitted"])
    assert len(record["admitted"]) >= 4 and len(list(plan.parents[1].glob("requests/*.json"))) == 1
    follow(five, SITES)
    assert run_exchange(five, "run-2").next == "finished"
    assert all(line.matches for line in replay(five.coordinator, "tiny"))


@pytest.mark.parametrize("before", ["unmasking", "closing"])
def test_hospitals_that_have_the_old_key_answer_what_it_signed(five: Simulation, before: str) -> None:
    """The request was on its way: no second run is needed."""
    assert disturbed(five, before, ()).record["status"] == "closed"


def test_the_request_is_handed_out_again_under_the_new_key_and_its_digest_stays(five: Simulation) -> None:
    plan = opened(five, "run-0")
    answers = trained(five, plan)
    first = parse_signed(asked(five, answers, "run-0").plan or "")
    change_key(five)
    again = asked(five, answers, "run-0")
    signed = parse_signed(again.plan or "")
    assert signed.key == coordinator_key(five.coordinator).public != first.key
    assert (signed.digest, signed.document) == (first.digest, first.document)
    folder = five.coordinator.study("tiny") / "requests"
    assert [path.read_text() for path in folder.glob("*.json")] == [again.plan]
    follow(five, SITES)
    assert closed(five, unmasked(five, again), "run-0").record["status"] == "closed"


def test_no_round_is_lost_while_hospitals_do_not_know_the_new_key(five: Simulation) -> None:
    change_key(five)
    for attempt in range(3):
        with pytest.raises(ConsiliumError, match=r"E506.*ash: E814"):
            run_exchange(five, f"run-{attempt}")
    assert load_head(five.coordinator, "tiny").round == 1
    follow(five, SITES)
    assert run_exchange(five, "run").record["admitted"] == list(SITES)


def test_a_round_that_the_new_key_would_not_save_is_lost_as_ever(five: Simulation) -> None:
    """Two of five follow late, which with no other hospital is one too few."""
    change_key(five)
    follow(five, SITES[:3])
    for site in SITES[:3]:
        pause(five.sites[site], "tiny")
    assert run_exchange(five, "run").record["status"] == "lost"


def test_a_request_by_a_stranger_is_no_request_of_this_coordinator(five: Simulation) -> None:
    request = asked(five, trained(five, opened(five)))
    (path,) = (five.coordinator.study("tiny") / "unmasking").glob("*.json")
    stranger = SigningKey.generate("coordinator")
    path.write_text(to_text(stranger.sign_again(parse_signed(request.plan or ""))))
    with pytest.raises(ConsiliumError, match="E803"):
        closed(five, unmasked(five, request))


def spent(simulation: Simulation, site: str) -> int:
    home = simulation.sites[site]
    return Ledger(home.ledger(site), site, site, SigningKey.load(site, home.signing_key)).length


def test_a_plain_round_goes_on_under_its_plan_and_nobody_spends_twice(tmp_path: Path) -> None:
    """Ash knew the new key, and so refused the plan by the old one; birch had trained."""
    simulation = tiny_simulation(tmp_path, private_study())
    exchange = DirectoryExchange(simulation.coordinator.exchange)

    def answers(plan: str) -> dict[str, str | None]:
        return {site: ask(train, home, plan, exchange) for site, home in simulation.sites.items()}

    plan = opened_plan(simulation, "run-0")
    change_key(simulation)
    follow(simulation, ["ash"])
    with pytest.raises(ConsiliumError, match=r"E506.*ash \(E814"):
        close_round(simulation.coordinator, "tiny", "run-0", answers(plan))
    follow(simulation, ["birch"])
    before = {site: spent(simulation, site) for site in ("ash", "birch")}
    again = opened_plan(simulation, "run-1")
    assert parse_signed(again).digest == parse_signed(plan).digest
    record = close_round(simulation.coordinator, "tiny", "run-1", answers(again)).record
    assert record["admitted"] == ["ash", "birch"] and record["attempt"] == 1
    assert spent(simulation, "birch") == before["birch"] == spent(simulation, "ash") > before["ash"]


def test_a_hospital_that_refuses_for_another_reason_still_has_its_round_planned_anew(tmp_path: Path) -> None:
    simulation = tiny_simulation(tmp_path, private_study())
    home = simulation.coordinator
    plan = parse_signed(opened_plan(simulation, "run-0"))

    def refusal(number: str) -> Callable[[], Any]:
        no = Refusal.of(ConsiliumError(number), study="tiny", site="ash", stage="train", plan=plan.digest)
        key = SigningKey.load("ash", simulation.sites["ash"].signing_key)
        return lambda: close_round(home, "tiny", "run-0", {"ash": to_text(key.sign(no)), "birch": None})

    for number, attempt in (("E814", 1), ("E302", 2)):
        with pytest.raises(ConsiliumError, match="E506"):
            refusal(number)()
        opened = open_round(home, "tiny", "run-0", set(simulation.sites)).plan
        assert parse_signed(opened or "").document["attempt"] == attempt
