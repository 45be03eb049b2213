"""Rounds under masks: the coordinator gets the sum, bit for bit, whoever drops out, and nothing else."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consilium.simulation import Simulation, run_rounds
from consilium.status import study_status
from contracts.datasheet import DataSheet
from contracts.errors import ConsiliumError
from contracts.masking import MaskKey, UnmaskShares
from contracts.refusal import Refusal
from contracts.signing import SigningKey, parse_signed, to_text
from contracts.update import UpdateEnvelope
from durable.clock import now
from privacy.mask_keys import new_mask_key
from site_runtime.consent import pause
from site_runtime.steps import intake
from strategies.secure import Layout
from tasks.head import load_head
from tasks.replay import replay
from tasks.rounds import open_round
from tasks.store import load_record, save_sheet
from tests.factories import PRIVACY, STUDY, TinyFederation, write_tensors
from tests.masked import (
    SITES,
    Answers,
    Clear,
    asked,
    closed,
    exchange,
    five_hospitals,
    masked_study,
    opened,
    plain_model,
    run_exchange,
    trained,
    unmasked,
)

pytest_plugins = ("tests.masked_world",)
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def record_of(simulation: Simulation, number: int) -> dict[str, Any]:
    return load_record(simulation.coordinator, "tiny", str(number))


DROPOUTS = [
    ((), ()),
    (("ash",), ()),
    (("elm",), ()),
    ((), ("birch",)),
    ((), ("elm",)),
]


@pytest.mark.parametrize(("first", "second"), DROPOUTS)
def test_the_model_is_bit_for_bit_that_of_plain_aggregation_whoever_drops_out(
    five: Simulation,
    clear: Clear,
    first: tuple[str, ...],
    second: tuple[str, ...],
) -> None:
    plan = opened(five)
    request = asked(five, trained(five, plan, first))
    found = closed(five, unmasked(five, request, second))
    alive = sorted(set(SITES) - set(first))
    assert found.next == "round" and found.record["status"] == "closed"
    assert found.record["aggregation"] == "secure" and found.record["admitted"] == alive
    masks = found.record["secure"]
    assert (masks["alive"], masks["dead"], masks["liars"]) == (alive, sorted(first), [])
    assert masks["threshold"] == 4 and masks["answered"] == sorted(set(alive) - set(second))
    assert found.record["model"] == plain_model(five, plan, clear, alive)


def test_a_whole_study_replays_to_its_digests_statistics_histogram_and_dropouts_included(
    tmp_path: Path,
) -> None:
    protocol = masked_study(training=STUDY["training"], decision_threshold={"sensitivity": 0.9})
    simulation = five_hospitals(tmp_path, protocol)
    missing: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
        ((), ()),
        (("ash",), ()),
        ((), ("elm",)),
        ((), ()),
    ]
    nexts = [run_exchange(simulation, f"run-{n}", *gone).next for n, gone in enumerate(missing)]
    assert nexts == ["round", "round", "round", "finished"]
    assert load_head(simulation.coordinator, "tiny").threshold is not None
    replayed = list(replay(simulation.coordinator, "tiny"))
    assert [r.round for r in replayed] == [0, 1, 2, 3] and all(r.matches for r in replayed)


def test_a_masked_vector_that_was_changed_shows_in_the_replay(five: Simulation) -> None:
    found = [run_exchange(five, f"run-{n}") for n in range(2)]
    path = exchange(five).path_of(found[0].record["updates"][0]["tensors"])
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ConsiliumError, match="E509"):
        list(replay(five.coordinator, "tiny"))


def test_no_clear_update_is_in_any_file_or_answer(five: Simulation, clear: Clear) -> None:
    plan = opened(five)
    answers = trained(five, plan)
    request = asked(five, answers)
    closed(five, unmasked(five, request))
    files = [path for path in five.root.rglob("*") if path.is_file()]
    assert any(path.suffix == ".safetensors" and "outbox" in path.parts for path in files)
    for layout, vector in clear.values():
        needles = [vector.tobytes(), vector.view(np.int64).astype(np.float64).tobytes()]
        needles += [layout.decoded(vector).astype(kind).tobytes() for kind in (np.float32, np.float64)]
        found = [path for path in files if any(needle in path.read_bytes() for needle in needles)]
        assert found == []


def test_with_privacy_the_noise_is_in_what_is_masked_and_every_ledger_is_charged_once(
    tmp_path: Path,
    clear: Clear,
) -> None:
    simulation = five_hospitals(tmp_path, masked_study(privacy=PRIVACY))
    plan = opened(simulation)
    request = asked(simulation, trained(simulation, plan))
    record = closed(simulation, unmasked(simulation, request)).record
    assert record["model"] == plain_model(simulation, plan, clear, list(SITES))
    assert sorted(record["epsilon"]["sites"]) == sorted(SITES)
    assert {line["ledger_length"] for line in record["updates"]} == {2}  # its beginning, and one reservation


@pytest.mark.parametrize("hop", ["first", "second"])
def test_a_round_below_the_threshold_is_lost_and_the_next_one_trains_anew(five: Simulation, hop: str) -> None:
    gone = ("ash", "birch", "cedar")
    lost = run_exchange(five, "run-0", **{hop: gone})
    assert lost.next == "round" and lost.record["status"] == "lost" and "needed" in lost.record["reason"]
    assert lost.record["model"] == lost.record["base_model"] and lost.record["updates"] == []
    shown = study_status(five.coordinator, "tiny")["masks"]
    assert "round 1 is lost" in shown
    if hop == "first":
        # Their envelopes never came, so that the coordinator knows used keys: they refuse, and tell new ones.
        plan = opened(five, "run-1")
        answers = trained(five, plan)
        numbers = {site: parse_signed(answers[site] or "").document.get("number") for site in SITES}
        assert [site for site, number in numbers.items() if number == "E513"] == sorted(gone)
        request = asked(five, answers, "run-1")
        assert request.plan is None
        after = closed(five, {}, "run-1")
        assert after.record["status"] == "lost" and after.next == "finished"
    else:
        after = run_exchange(five, "run-1")
        assert after.record["status"] == "closed" and after.record["admitted"] == sorted(SITES)
    replayed = list(replay(five.coordinator, "tiny"))
    assert len(replayed) == 2 and all(r.matches for r in replayed)


def test_whose_envelope_got_lost_is_back_one_exchange_later_by_itself(tmp_path: Path) -> None:
    simulation = five_hospitals(tmp_path, masked_study(rounds=3))
    run_exchange(simulation, "run-0", first=("ash",))
    assert "ash" not in run_exchange(simulation, "run-1").record["admitted"]
    assert record_of(simulation, 2)["refused"]["ash"]["number"] == "E513"
    assert run_exchange(simulation, "run-2").record["admitted"] == sorted(SITES)


def test_a_hospital_that_was_not_asked_joins_with_the_key_of_its_data_sheet(five: Simulation) -> None:
    plan = opened(five, "run-0", present=set(SITES) - {"elm"})
    closed(five, unmasked(five, asked(five, trained(five, plan), "run-0")), "run-0")
    second = run_exchange(five, "run-1")
    assert "elm" in second.record["admitted"]


def test_a_hospital_without_a_mask_key_is_absent_and_joins_after_its_next_intake(five: Simulation) -> None:
    home = five.sites["elm"]
    sheet = parse_signed(intake(home, "tiny"))
    without = {**sheet.document}
    del without["mask"]
    key = SigningKey.load("elm", home.signing_key)
    save_sheet(five.coordinator, "tiny", "elm", to_text(key.sign(DataSheet.model_validate(without))))
    with pytest.raises(ConsiliumError, match=r"E506.*elm: no mask key yet"):
        open_round(five.coordinator, "tiny", "run", {"ash", "birch", "elm"})
    opened(five)
    assert record_of(five, 1)["absent"] == {"elm": "no mask key yet"}


def test_statistics_wait_for_the_silent_and_open_under_the_same_plan_and_request(tmp_path: Path) -> None:
    simulation = five_hospitals(tmp_path, masked_study(training=STUDY["training"]))
    first = opened(simulation, "run-0")
    assert asked(simulation, trained(simulation, first, SITES[:3]), "run-0").plan is None
    with pytest.raises(ConsiliumError, match=r"E506.*2 masked updates, at least 4 needed"):
        closed(simulation, {}, "run-0")
    again = opened(simulation, "run-1")
    assert again == first
    request = asked(simulation, trained(simulation, again), "run-1")
    with pytest.raises(ConsiliumError, match=r"E506.*2 hospitals answered"):
        closed(simulation, unmasked(simulation, request, SITES[:3]), "run-1")
    assert opened(simulation, "run-2") == first
    same = asked(simulation, trained(simulation, first), "run-2")
    assert same.plan == request.plan
    # Two have answered before; two more are enough.
    assert closed(simulation, unmasked(simulation, same, SITES[2:]), "run-2").next == "round"
    assert next(iter(replay(simulation.coordinator, "tiny"))).matches


def test_statistics_that_too_few_can_still_answer_end_the_study_by_number(tmp_path: Path) -> None:
    simulation = five_hospitals(tmp_path, masked_study(training=STUDY["training"]))
    plan = opened(simulation)
    for site in SITES[:3]:
        (simulation.sites[site].root / "keys" / "peers.json").unlink()
    assert asked(simulation, trained(simulation, plan)).plan is None
    with pytest.raises(ConsiliumError, match=r"E516.*ash: E807"):
        closed(simulation, {})
    head = load_head(simulation.coordinator, "tiny")
    assert head.status == "rejected" and (head.reason or "").startswith("E516")


def test_a_paused_hospital_ends_no_study(tmp_path: Path) -> None:
    simulation = five_hospitals(tmp_path, masked_study(training=STUDY["training"]))
    plan = opened(simulation)
    for site in SITES[:3]:
        pause(simulation.sites[site], "tiny")
    asked(simulation, trained(simulation, plan))
    with pytest.raises(ConsiliumError, match="E506"):
        closed(simulation, {})
    assert load_head(simulation.coordinator, "tiny").status == "running"


def refusing(simulation: Simulation, answers: Answers, number: str, sites: tuple[str, ...]) -> Answers:
    """The answers with these hospitals' replaced by a refusal."""
    changed = dict(answers)
    for site in sites:
        no = Refusal.of(ConsiliumError(number), study="tiny", site=site, stage="train")
        key = SigningKey.load(site, simulation.sites[site].signing_key)
        changed[site] = to_text(key.sign(no))
    return changed


@pytest.mark.parametrize("number", ["E122", "E302", "E319", "E402", "E407", "E803", "E805", "E899"])
def test_a_refusal_that_may_pass_ends_no_study(statistics: Simulation, number: str) -> None:
    """Two of five, of whom four are needed: the same plan is answered when their time has come."""
    plan = opened(statistics, "run-0")
    answers = trained(statistics, plan)
    assert asked(statistics, refusing(statistics, answers, number, SITES[:2]), "run-0").plan is None
    with pytest.raises(ConsiliumError, match=rf"E506.*ash: {number}"):
        closed(statistics, {}, "run-0")
    assert load_head(statistics.coordinator, "tiny").status == "running"
    assert opened(statistics, "run-1") == plan
    request = asked(statistics, answers, "run-1")
    with pytest.raises(ConsiliumError, match=rf"E506.*ash: {number}"):
        closed(statistics, refusing(statistics, unmasked(statistics, request), number, SITES[:2]), "run-1")
    assert run_exchange(statistics, "run-2").record["status"] == "closed"


@pytest.mark.parametrize("number", ["E303", "E401", "E511", "E514", "E807"])
def test_a_refusal_that_stays_ends_the_study_by_number(statistics: Simulation, number: str) -> None:
    answers = trained(statistics, opened(statistics))
    assert asked(statistics, refusing(statistics, answers, number, SITES[:2])).plan is None
    with pytest.raises(ConsiliumError, match=rf"E516.*ash: {number}"):
        closed(statistics, {})
    assert load_head(statistics.coordinator, "tiny").status == "rejected"


def test_there_is_one_request_for_a_plan_and_a_late_vector_stays_out(five: Simulation) -> None:
    plan = opened(five)
    answers = trained(five, plan)
    first = asked(five, answers | {"elm": None})
    again = asked(five, answers)
    assert again.plan == first.plan and again.roster == first.roster
    record = closed(five, unmasked(five, again)).record
    assert record["secure"]["late"] == ["elm"] and "elm" not in record["admitted"]
    requests = list((five.coordinator.study("tiny") / "requests").glob("*.json"))
    assert [path.read_text() for path in requests] == [first.plan]


def test_a_task_between_the_hops_that_failed_loses_no_round(five: Simulation) -> None:
    plan = opened(five, "run-0")
    trained(five, plan)
    with pytest.raises(ConsiliumError, match=r"E506.*nobody was asked"):
        closed(five, {}, "run-0")
    assert run_exchange(five, "run-1").record["status"] == "closed"


def test_a_wrong_share_is_found_and_its_hospital_is_named(five: Simulation) -> None:
    request = asked(five, trained(five, opened(five)))
    answers = unmasked(five, request)
    shares = UnmaskShares.model_validate(parse_signed(answers["birch"] or "").document)
    wrong = shares.model_copy(update={"own": shares.own | {"ash": "B" * 42 + "A"}})
    key = SigningKey.load("birch", five.sites["birch"].signing_key)
    record = closed(five, answers | {"birch": to_text(key.sign(wrong))}).record
    assert record["status"] == "closed" and record["secure"]["liars"] == ["birch"]


def lying(simulation: Simulation, answers: Answers, *sites: str) -> Answers:
    """The answers to a request with a wrong share in each of these."""
    changed = dict(answers)
    for site in sites:
        shares = UnmaskShares.model_validate(parse_signed(answers[site] or "").document)
        wrong = shares.model_copy(update={"own": shares.own | {"ash": "B" * 42 + "A"}})
        changed[site] = to_text(SigningKey.load(site, simulation.sites[site].signing_key).sign(wrong))
    return changed


def test_one_that_lies_and_one_that_is_late_end_no_study(statistics: Simulation) -> None:
    """Four of five have answered, four are needed, one of them is wrong: the fifth opens the sum."""
    request = asked(statistics, trained(statistics, opened(statistics, "run-0")), "run-0")
    answers = lying(statistics, unmasked(statistics, request), "birch")
    with pytest.raises(ConsiliumError, match=r"E506.*E434"):
        closed(statistics, answers | {"elm": None}, "run-0")
    assert opened(statistics, "run-1") and asked(statistics, {}, "run-1").plan == request.plan
    record = closed(statistics, {"elm": answers["elm"]}, "run-1").record
    assert record["status"] == "closed" and record["secure"]["liars"] == ["birch"]


def test_a_sum_that_nobody_left_could_open_ends_the_study_by_number(statistics: Simulation) -> None:
    request = asked(statistics, trained(statistics, opened(statistics)))
    answers = lying(statistics, unmasked(statistics, request), "birch", "cedar")
    with pytest.raises(ConsiliumError, match=r"E516.*E434"):
        closed(statistics, answers)
    assert load_head(statistics.coordinator, "tiny").status == "rejected"


def test_a_round_of_training_waits_for_nobody_when_shares_are_wrong(five: Simulation) -> None:
    request = asked(five, trained(five, opened(five)))
    answers = lying(five, unmasked(five, request), "birch") | {"elm": None}
    found = closed(five, answers)
    assert found.record["status"] == "lost" and "E434" in found.record["reason"] and found.next == "round"


def put_back(simulation: Simulation, backup: Path) -> None:
    """The coordinator as it was saved."""
    shutil.rmtree(simulation.coordinator.root)
    shutil.copytree(backup, simulation.coordinator.root, symlinks=True)


def another_second(plan: str) -> None:
    """Wait until a plan made again bears another time than this one."""
    while now() == parse_signed(plan).document["created"]:
        time.sleep(0.05)


def test_statistics_made_again_by_a_restored_coordinator_end_the_study_by_number(
    statistics: Simulation, tmp_path: Path
) -> None:
    backup = shutil.copytree(statistics.coordinator.root, tmp_path / "backup", symlinks=True)
    first = opened(statistics, "run-0")
    run_exchange(statistics, "run-0")
    put_back(statistics, backup)
    another_second(first)
    again = opened(statistics, "run-0")
    assert parse_signed(again).digest != parse_signed(first).digest
    asked(statistics, trained(statistics, again), "run-0")
    with pytest.raises(ConsiliumError, match=r"E516.*ash: E514.*elm: E514"):
        closed(statistics, {}, "run-0")
    assert load_head(statistics.coordinator, "tiny").status == "rejected"


def test_a_restored_coordinator_loses_the_rounds_that_were_answered_and_no_more(tmp_path: Path) -> None:
    simulation = five_hospitals(tmp_path / "five", masked_study(rounds=4, privacy=PRIVACY))
    backup = shutil.copytree(simulation.coordinator.root, tmp_path / "backup", symlinks=True)
    plan = opened(simulation, "run-0")
    for run in ("run-0", "run-1"):
        run_exchange(simulation, run)
    ledgers = [home.ledger(site).read_bytes() for site, home in simulation.sites.items()]
    put_back(simulation, backup)
    another_second(plan)
    refusals = []
    for number in (1, 2):
        lost = run_exchange(simulation, f"again-{number}").record
        assert lost["status"] == "lost"
        refusals.append({r["number"] for r in record_of(simulation, number)["refused"].values()})
    assert refusals == [{"E324"}, {"E514"}]
    assert ledgers == [home.ledger(site).read_bytes() for site, home in simulation.sites.items()]
    third = run_exchange(simulation, "again-3").record  # E514 brought everybody's next key
    assert third["status"] == "closed" and third["admitted"] == sorted(SITES)


def test_a_sum_beyond_what_honest_updates_make_is_not_taken(five: Simulation, monkeypatch: Any) -> None:
    plan = opened(five)
    honest = Layout.encoded
    with monkeypatch.context() as patch:

        def poisoned(layout: Layout, update: Any, site: str) -> Any:
            found = honest(layout, update, site)
            return found + np.uint64(1 << 61) if site == "ash" else found

        patch.setattr(Layout, "encoded", poisoned)
        answers = trained(five, plan)
    record = closed(five, unmasked(five, asked(five, answers))).record
    assert record["status"] == "lost" and "E518" in record["reason"]
    assert record["model"] == record["base_model"]


@pytest.mark.parametrize(
    "changes", [{"tensor_bytes": 5}, {"tensors": "0" * 64}, {"tensors": None, "tensor_bytes": None}]
)
def test_a_vector_that_is_not_what_its_envelope_says_is_refused(five: Simulation, changes: Any) -> None:
    answers = trained(five, opened(five))
    envelope = UpdateEnvelope.model_validate(parse_signed(answers["ash"] or "").document)
    key = SigningKey.load("ash", five.sites["ash"].signing_key)
    answers["ash"] = to_text(key.sign(envelope.model_copy(update=changes)))
    assert "ash" not in asked(five, answers).roster
    assert record_of(five, 1)["refused"]["ash"]["number"] == "E509"


def test_an_update_in_the_clear_is_refused_by_form(five: Simulation, tmp_path: Path) -> None:
    answers = trained(five, opened(five))
    path = write_tensors(tmp_path / "clear", {"network.weight": np.zeros((1, 3), np.float32)})
    digest = exchange(five).put(path)
    envelope = UpdateEnvelope.model_validate(parse_signed(answers["ash"] or "").document)
    changed = envelope.model_copy(update={"tensors": digest, "tensor_bytes": path.stat().st_size})
    key = SigningKey.load("ash", five.sites["ash"].signing_key)
    asked(five, answers | {"ash": to_text(key.sign(changed))})
    assert record_of(five, 1)["refused"]["ash"]["number"] == "E519"


def test_leave_one_site_out_and_a_sum_of_statistics_exclude_each_other() -> None:
    with pytest.raises(ConsiliumError, match=r"E101.*leave_one_site_out.*declared"):
        masked_study(training=STUDY["training"], validation={"leave_one_site_out": 5})


def test_leave_one_site_out_and_exact_sums_exclude_each_other() -> None:
    with pytest.raises(ConsiliumError, match=r"E101.*leave_one_site_out.*expected privacy.mode patient"):
        masked_study(validation={"leave_one_site_out": 5})


def test_a_fold_taken_off_the_sum_of_all_leaves_no_hospitals_update(tmp_path: Path, clear: Clear) -> None:
    """Both start from one model; what the sums tell together is its part under the noise of all others."""
    fields = {"validation": {"leave_one_site_out": 4}, "rounds": 1, "min_sites": 4, "privacy": PRIVACY}
    wide = {"name": "mlp", "hidden": [16]}  # of a few numbers the noise may be small by chance
    simulation = five_hospitals(tmp_path, masked_study(model=wide, **fields), SITES[:4])
    run_exchange(simulation, "run-0")
    layout = clear["ash"][0]
    first = {site: layout.decoded(vector) for site, (layout, vector) in clear.items()}
    without = run_exchange(simulation, "run-1").record["fold"]
    others = [site for site in SITES[:4] if site != without]
    again = {site: clear[site][0].decoded(clear[site][1]) for site in others}
    whole, part = sum(first.values()), sum(again.values())
    assert isinstance(whole, np.ndarray) and isinstance(part, np.ndarray)
    error = np.linalg.norm(whole - part - first[without])
    # Of the others nothing cancels: their noise is drawn anew under each plan.
    assert error > 0.5 * np.mean([np.linalg.norm(first[s] - again[s]) for s in others]) > 2.0**-layout.bits
    assert error > 0.5 * np.linalg.norm(first[without])


def test_more_hospitals_than_masks_can_sum_are_refused_before_there_is_a_plan(tmp_path: Path) -> None:
    protocol = masked_study()
    sites = tuple(f"s{number:02}" for number in range(65))
    federation = TinyFederation(tmp_path, protocol, sites)
    for site in sites:
        mask = MaskKey.sign(federation.keys[site], "tiny", protocol.hash, 0, new_mask_key()[1])
        save_sheet(federation.home, "tiny", site, federation.sheet(site, mask=mask))
    with pytest.raises(ConsiliumError, match=r"E512.*65 hospitals, at most 64"):
        open_round(federation.home, "tiny", "run", set(sites))
    head = load_head(federation.home, "tiny")
    assert head.plan is None and "at most 64" in (head.reason or "")
    found = open_round(federation.home, "tiny", "run", set(sites[:64]))
    assert found.plan is not None and len(found.roster) == 64
    with pytest.raises(ConsiliumError, match=r"E101.*min_sites 65, expected at most 64"):
        masked_study(min_sites=65)


def test_the_folds_are_summed_under_masks_too(tmp_path: Path) -> None:
    validation = {"leave_one_site_out": 4, "local_model": True}
    protocol = masked_study(validation=validation, rounds=1, min_sites=4, privacy=PRIVACY)
    simulation = five_hospitals(tmp_path, protocol, SITES[:4])
    run_rounds(simulation, lambda text: None)
    head = load_head(simulation.coordinator, "tiny")
    assert head.status == "finished" and sorted(head.folds) == list(SITES[:4])
    assert all(r.matches for r in replay(simulation.coordinator, "tiny"))
