"""Keys that changed and members that left while a study runs: what counts now, what can be replayed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from consilium.simulation import Simulation, run_evaluation, run_rounds
from contracts.errors import ConsiliumError
from contracts.plan import RoundPlan
from contracts.signing import SigningKey, parse_signed, to_text
from contracts.update import UpdateEnvelope
from site_runtime.joining import follow_coordinator
from site_runtime.rotation import begin_rotation, finish_rotation
from site_runtime.steps import SiteRefused, train
from tasks.answers import gather, open_answer, open_stored
from tasks.exchange import DirectoryExchange
from tasks.federation import coordinator_key, load_federation
from tasks.intake import admit_sheets, admitted_sheets
from tasks.membership import revoke, rotate, rotate_coordinator, rotations
from tasks.replay import replay
from tasks.reports import stored_reports
from tasks.store import load_plan, load_record, plan_text
from tests.factories import TinyFederation, opened_plan, private_study, tiny_simulation, tiny_study

WHO = {"officer": "Dr. A. Smith", "reason": "yearly"}


@pytest.fixture
def simulation(tmp_path: Path) -> Simulation:
    return tiny_simulation(tmp_path, tiny_study())


def change_keys(simulation: Simulation, site: str) -> None:
    """New keys of a site, at the coordinator and in force at the site."""
    home = simulation.sites[site]
    rotate(simulation.coordinator, begin_rotation(home, **WHO), "Dr. B")
    finish_rotation(home)


def answers(simulation: Simulation, plan: str) -> dict[str, str | None]:
    exchange = DirectoryExchange(simulation.coordinator.exchange)
    return {site: train(home, plan, exchange) for site, home in simulation.sites.items()}


def opened(plan: str) -> RoundPlan:
    return RoundPlan.model_validate(parse_signed(plan).document)


def test_a_live_answer_by_a_rotated_key_is_refused_and_a_stored_one_is_not(simulation: Simulation) -> None:
    plan = opened_plan(simulation)
    results = answers(simulation, plan)
    change_keys(simulation, "ash")
    found = gather(simulation.coordinator, opened(plan), results, UpdateEnvelope)
    assert found.refused == {"ash": "E803"} and list(found.documents) == ["birch"]
    federation, text = load_federation(simulation.coordinator), results["ash"]
    assert text is not None
    with pytest.raises(ConsiliumError, match="E803"):
        open_answer(federation, "ash", text, UpdateEnvelope, opened(plan))
    assert open_stored(federation, "ash", text, UpdateEnvelope, opened(plan))[0].site == "ash"
    later = opened(plan).model_copy(update={"created": "9999-01-01T00:00:00Z"})
    with pytest.raises(ConsiliumError, match="E803"):
        open_stored(federation, "ash", text, UpdateEnvelope, later)  # the key had ended
    stranger = SigningKey.generate("ash").sign(UpdateEnvelope.model_validate(parse_signed(text).document))
    with pytest.raises(ConsiliumError, match="E803"):
        open_stored(federation, "ash", to_text(stranger), UpdateEnvelope, opened(plan))
    kept = gather(simulation.coordinator, opened(plan), {}, UpdateEnvelope, {"ash": text})
    assert list(kept.documents) == ["ash"] and kept.silent == ["birch"]


def test_a_member_that_was_revoked_while_a_round_was_open_is_among_the_refused(
    simulation: Simulation,
) -> None:
    plan = opened_plan(simulation)
    results = answers(simulation, plan)
    revoke(simulation.coordinator, "ash", "ended", "Dr. B")
    found = gather(simulation.coordinator, opened(plan), results, UpdateEnvelope)
    assert found.refused == {"ash": "E808"} and list(found.documents) == ["birch"]
    silent = gather(simulation.coordinator, opened(plan), {}, UpdateEnvelope, {"ash": results["ash"] or ""})
    assert silent.refused == {"ash": "E808"} and silent.silent == ["birch"]


def test_sheets_of_revoked_and_unknown_sites_are_refused(tmp_path: Path) -> None:
    federation = TinyFederation(tmp_path, protocol := tiny_study())
    federation.keys["willow"] = SigningKey.generate("willow")
    revoke(federation.home, "ash", "ended", "Dr. B")
    assert set(admitted_sheets(federation.home, "tiny", protocol.hash)) == {"birch", "cedar"}
    sheets = {site: federation.sheet(site) for site in federation.keys}
    record = admit_sheets(federation.home, "tiny", sheets)
    assert record["admitted"] == ["birch", "cedar"]
    assert record["refused"] == {"ash": "E808", "willow": "E806"}


def test_a_sheet_by_a_rotated_key_still_counts(simulation: Simulation) -> None:
    change_keys(simulation, "ash")
    assert set(admitted_sheets(simulation.coordinator, "tiny", simulation.protocol.hash)) == {"ash", "birch"}
    run_rounds(simulation, lambda text: None)
    assert load_record(simulation.coordinator, "tiny", "2")["admitted"] == ["ash", "birch"]


def test_replay_reproduces_every_round_across_changes_of_all_keys_and_a_revocation(tmp_path: Path) -> None:
    simulation = tiny_simulation(tmp_path, private_study())
    run_rounds(simulation, lambda text: None)
    change_keys(simulation, "ash")
    run_evaluation(simulation, lambda text: None)
    change_keys(simulation, "ash")
    rotate_coordinator(simulation.coordinator, **WHO)
    revoke(simulation.coordinator, "birch", "ended", "Dr. B")
    home = simulation.coordinator
    found = list(replay(home, "tiny"))
    assert len(found) == 3 and all(one.matches for one in found)
    plan = load_record(home, "tiny", "evaluation")["plan"]
    assert [report.site for report in stored_reports(home, "tiny", plan)] == ["ash", "birch"]


def test_an_answer_that_nobody_signed_breaks_the_replay(simulation: Simulation) -> None:
    run_rounds(simulation, lambda text: None)
    change_keys(simulation, "ash")
    (path,) = (simulation.coordinator.study("tiny") / "answers").glob(
        f"{load_record(simulation.coordinator, 'tiny', '1')['plan']}/ash.json"
    )
    envelope = UpdateEnvelope.model_validate(parse_signed(path.read_text()).document)
    path.write_text(to_text(SigningKey.generate("ash").sign(envelope)))
    with pytest.raises(ConsiliumError, match="E803"):
        list(replay(simulation.coordinator, "tiny"))


@pytest.fixture
def rotated(simulation: Simulation) -> Iterator[tuple[Simulation, str]]:
    """A simulation whose coordinator changed its key while a plan was open, and the plan from before."""
    plan = opened_plan(simulation)
    rotate_coordinator(simulation.coordinator, **WHO)
    yield simulation, plan


def test_an_open_plan_is_signed_again_by_the_coordinators_new_key(rotated: tuple[Simulation, str]) -> None:
    simulation, plan = rotated
    home = simulation.coordinator
    digest = parse_signed(plan).digest
    again = parse_signed(plan_text(home, "tiny", digest))
    assert again.key == coordinator_key(home).public != parse_signed(plan).key and again.digest == digest
    assert load_plan(home, "tiny", digest) == opened(plan)


def test_a_hospital_takes_plans_by_the_new_key_when_the_old_one_vouched_for_it(
    rotated: tuple[Simulation, str],
) -> None:
    simulation, plan = rotated
    home, site = simulation.coordinator, simulation.sites["ash"]
    exchange = DirectoryExchange(home.exchange)
    anew = plan_text(home, "tiny", parse_signed(plan).digest)
    with pytest.raises(SiteRefused, match="E814"):
        train(site, anew, exchange)
    with pytest.raises(ConsiliumError, match="E812"):
        follow_coordinator(site, [], coordinator_key(home).public)
    follow_coordinator(site, rotations(home), coordinator_key(home).public)
    train(site, anew, exchange)
    with pytest.raises(SiteRefused, match="E814"):
        train(site, plan, exchange)  # by the former key


def test_a_plan_by_a_stranger_is_no_plan_of_this_coordinator(rotated: tuple[Simulation, str]) -> None:
    simulation, plan = rotated
    home, digest = simulation.coordinator, parse_signed(plan).digest
    path = home.study("tiny") / "plans" / f"{digest}.json"
    path.write_text(to_text(SigningKey.generate("coordinator").sign(opened(plan))))
    for step in (load_plan, plan_text):
        with pytest.raises(ConsiliumError, match="E803"):
            step(home, "tiny", digest)
