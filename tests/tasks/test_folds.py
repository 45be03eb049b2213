"""Leave-one-site-out: a model for each hospital that it had no part in, within the study's epsilon."""

from __future__ import annotations

import json
import shutil

import pytest

from consilium.simulation import Simulation, run_intake, run_release, run_rounds
from contracts.errors import ConsiliumError
from contracts.plan import RoundPlan
from contracts.signing import SigningKey, parse_signed, to_text
from privacy.accountant import Spend, epsilon
from privacy.calibration import calibrate, planned_spends, projection
from privacy.ledger import Ledger
from release.verify import verified, verify_release
from site_runtime.steps import SiteRefused, train
from tasks.federation import coordinator_key
from tasks.folds import exchange_records
from tasks.head import advance, load_head
from tasks.release_key import release_key
from tasks.replay import replay
from tasks.rounds import close_round, open_round
from tasks.store import load_record, save_record
from tasks.watchdog import idle_studies
from tests.factories import PRIVACY, TinyFederation, honest_answer, open_next, tiny_study, write_csv
from tests.federations import (
    SITES,
    exchange,
    four_hospitals,
    opened,
    planned_study,
    rows_of,
    run_all,
    run_one,
)

pytestmark = pytest.mark.filterwarnings("ignore")

FIRST = 4  # statistics, two rounds, local; then two rounds a fold
LAST = FIRST + 2 * len(SITES) - 1


def copied(simulation, folder):
    shutil.copytree(simulation.root, folder, symlinks=True)
    return Simulation(folder, simulation.protocol)


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory):
    """Four hospitals of a study without privacy, before any exchange; tests copy them."""
    return four_hospitals(tmp_path_factory.mktemp("enrolled"), planned_study())


@pytest.fixture(scope="module")
def finished(enrolled, tmp_path_factory):
    simulation = copied(enrolled, tmp_path_factory.mktemp("finished") / "copy")
    return simulation, run_all(simulation)


@pytest.fixture(scope="module")
def private_finished(tmp_path_factory):
    study = planned_study(privacy=PRIVACY | {"epsilon": 20.0})
    simulation = four_hospitals(tmp_path_factory.mktemp("private"), study)
    run_rounds(simulation, lambda text: None)
    return simulation


def ledger(simulation, site):
    home = simulation.sites[site]
    return Ledger(home.ledger(site), site, site, SigningKey.load(site, home.signing_key))


@pytest.mark.slow
def test_every_hospital_gets_a_model_it_had_no_part_in_and_the_main_one_stays(finished):
    simulation, plans = finished
    home, head = simulation.coordinator, load_head(simulation.coordinator, "tiny")
    assert (head.status, head.round, head.fold_sites) == ("finished", LAST, list(SITES))
    main = load_record(home, "tiny", "2")
    assert (head.model, head.optimiser) == (main["model"], main["optimiser"])
    assert sorted(head.folds) == list(SITES) and len({*head.folds.values(), head.model}) == 5
    folds = plans[FIRST:]
    assert [p.fold for p in folds] == [site for site in SITES for _ in range(2)]
    for plan in folds:
        assert sorted(e.site for e in plan.roster) == [s for s in SITES if s != plan.fold]
        assert plan.kind == "training" and plan.purpose == "fold"
    assert [head.folds[s] for s in SITES] == [
        load_record(home, "tiny", str(n))["model"] for n in range(FIRST + 1, LAST + 1, 2)
    ]
    assert all(r.matches for r in replay(home, "tiny"))
    assert [r.round for r in replay(home, "tiny")] == [0, 1, 2, *range(FIRST, LAST + 1)]


@pytest.mark.slow
def test_another_cohort_at_the_hospital_left_out_changes_no_byte_of_its_fold(enrolled, finished, tmp_path):
    """Nothing is random here: every patient is in every batch, and nothing is noised."""
    other = copied(enrolled, tmp_path / "other")
    source = enrolled.root / "federation" / "birch" / "data.csv"
    before = source.read_bytes()
    try:
        write_csv(source, rows_of("birch", shift=-15))
        run_intake(other, lambda text: None)
    finally:
        source.write_bytes(before)
    plans = run_all(other)
    assert len(plans) == LAST + 1
    one, two = finished[0].coordinator, other.coordinator
    same = {site: load_head(one, "tiny").folds[site] == load_head(two, "tiny").folds[site] for site in SITES}
    assert same == {"ash": False, "birch": True, "cedar": False, "dogwood": False}
    for number in (FIRST + 2, FIRST + 3):
        records = [load_record(home, "tiny", str(number)) for home in (one, two)]
        assert records[0]["fold"] == "birch" and records[0]["base_model"] == records[1]["base_model"]
        sent = [{u["site"]: u["tensors"] for u in record["updates"]} for record in records]
        assert sent[0] == sent[1] and sorted(sent[0]) == ["ash", "cedar", "dogwood"]
    assert load_head(one, "tiny").model != load_head(two, "tiny").model


@pytest.mark.slow
def test_a_fold_is_the_model_that_the_others_train_when_the_hospital_never_comes(
    enrolled, finished, tmp_path
):
    """To the last byte, normalisation and all: nothing is random here."""
    simulation = copied(enrolled, tmp_path / "without")
    for number in range(3):
        run_one(simulation, f"run-{number}", without="cedar")
    head = load_head(simulation.coordinator, "tiny")
    assert head.fold_sites == ["ash", "birch", "dogwood"]
    assert head.model == load_head(finished[0].coordinator, "tiny").folds["cedar"]


@pytest.mark.slow
def test_everything_composed_is_what_was_planned_and_within_the_promise(private_finished):
    simulation = private_finished
    protocol, noise = simulation.protocol, calibrate(simulation.protocol)
    promised = protocol.privacy.epsilon
    for site in SITES:
        spends = ledger(simulation, site).spends("tiny")
        assert sorted(spends, key=repr) == sorted(planned_spends(protocol, noise), key=repr)
        assert epsilon(spends, 1e-3) == pytest.approx(noise.epsilon, abs=1e-9)
        purposes = [
            o.purpose for e, o in ledger(simulation, site).entries() if e.document["kind"] == "reserve"
        ]
        assert purposes.count("fold") == 6 and purposes.count("local") == 1
    assert projection(protocol, noise)[-1].epsilon == noise.epsilon <= promised
    told = [r["epsilon"]["maximum"] for r in exchange_records(simulation.coordinator, protocol)]
    assert max(told) == pytest.approx(noise.epsilon, abs=1e-9)
    assert all(r.matches for r in replay(simulation.coordinator, "tiny"))


@pytest.mark.slow
def test_its_release_replays_the_ledgers_and_states_all_of_it(private_finished, tmp_path):
    simulation = copied(private_finished, tmp_path / "released")
    folder = run_release(simulation, lambda text: None)
    checks = verify_release(folder, release_key(simulation.coordinator).public)
    assert verified(checks), [check for check in checks if not check.passed]
    said = json.loads((folder / "dp_statement.json").read_text())
    planned = calibrate(simulation.protocol).epsilon
    assert said["epsilon"] == pytest.approx(planned, abs=1e-9)
    assert said["mechanism"]["models_trained"] == 5 and said["mechanism"]["leave_one_site_out"] == 4
    for hospital in said["hospitals"]:
        made = {name: part["releases"] for name, part in hospital["by_purpose"].items()}
        assert made == {"statistics": 1, "training": 6, "local": 6, "fold": 18}
    text = (folder / "dp_statement.md").read_text()
    assert "5 models" in text
    snippet = next(line for line in text.splitlines() if line.startswith("    epsilon(["))
    stated = eval(snippet.strip(), {"Spend": Spend, "epsilon": epsilon})  # what a reader runs
    assert stated == pytest.approx(planned, abs=1e-9)


@pytest.mark.slow
def test_killed_between_local_models_and_folds_it_resumes_to_the_same_folds(enrolled, finished, tmp_path):
    simulation = copied(enrolled, tmp_path / "killed")
    run_all(simulation, until=FIRST)
    assert load_head(simulation.coordinator, "tiny").round == FIRST
    text, plan = opened(simulation, "run-4")
    train(simulation.sites["birch"], text, exchange(simulation))  # and then the coordinator is gone
    again, same = opened(simulation, "by-hand")
    assert (again, same) == (text, plan)
    answers = {e.site: train(simulation.sites[e.site], again, exchange(simulation)) for e in plan.roster}
    close_round(simulation.coordinator, "tiny", "by-hand", answers)
    for number in range(FIRST + 1, LAST + 1):
        run_one(simulation, f"run-{number}")
    assert load_head(simulation.coordinator, "tiny").folds == load_head(finished[0].coordinator, "tiny").folds
    for run_id in ("run-3", "by-hand", f"run-{LAST}", "another"):
        assert open_round(simulation.coordinator, "tiny", run_id, set(SITES)).plan is None


@pytest.mark.slow
def test_a_crash_between_record_and_head_closes_the_fold_from_its_record(enrolled, tmp_path, monkeypatch):
    simulation = copied(enrolled, tmp_path / "crashed")
    run_all(simulation, until=FIRST + 1)
    text, plan = opened(simulation, "run-5")
    answers = {e.site: train(simulation.sites[e.site], text, exchange(simulation)) for e in plan.roster}
    with monkeypatch.context() as patched:
        patched.setattr("tasks.rounds.advance", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            close_round(simulation.coordinator, "tiny", "run-5", answers)
    record = load_record(simulation.coordinator, "tiny", "5")
    assert record["status"] == "closed"
    assert close_round(simulation.coordinator, "tiny", "run-5", {}).record == record
    assert load_head(simulation.coordinator, "tiny").folds == {"ash": record["model"]}


@pytest.mark.slow
def test_replay_notices_another_model_of_a_fold(finished, tmp_path):
    simulation = copied(finished[0], tmp_path / "forged")
    home, head = simulation.coordinator, load_head(simulation.coordinator, "tiny")
    advance(home, head, folds={**head.folds, "ash": head.folds["birch"]})
    with pytest.raises(ConsiliumError, match="E510"):
        list(replay(home, "tiny"))
    advance(home, load_head(home, "tiny"), folds=head.folds)
    record = load_record(home, "tiny", str(FIRST))
    save_record(home, "tiny", str(FIRST), record | {"model": head.model})
    assert [r.round for r in replay(home, "tiny") if not r.matches] == [FIRST]


@pytest.fixture(scope="module")
def before_folds(enrolled, tmp_path_factory):
    """The study when its first fold, without ash, is opened; and that plan."""
    simulation = copied(enrolled, tmp_path_factory.mktemp("before") / "copy")
    run_all(simulation, until=FIRST)
    return simulation, opened(simulation, "run-4")[0]


def resigned(simulation, plan, **changes):
    document = RoundPlan.model_validate(parse_signed(plan).document).model_copy(update=changes)
    return to_text(coordinator_key(simulation.coordinator).sign(document))


def number_of(simulation, site, plan, **changes):
    """Answer a plan altered so; returns the number of the refusal, or None."""
    try:
        train(simulation.sites[site], resigned(simulation, plan, **changes), exchange(simulation))
    except SiteRefused as refused:
        return refused.number
    return None


@pytest.mark.slow
def test_a_hospital_holds_the_coordinator_to_the_folds_that_were_planned(before_folds, tmp_path):
    simulation, plan = copied(before_folds[0], tmp_path / "copy"), before_folds[1]
    birch, *others = RoundPlan.model_validate(parse_signed(plan).document).roster
    ash = birch.model_copy(update={"site": "ash"})
    for changes, number in (
        ({"fold": "birch", "round": FIRST + 2}, "E504"),  # the fold without itself
        ({"fold": "birch", "round": FIRST + 2, "roster": [ash, *others]}, "E306"),
        ({"round": LAST + 1}, "E504"),  # one fold too many
        ({"round": 2}, "E504"),  # the main training again, as a fold
        ({"fold": None}, "E504"),  # a fold as the main training
        ({"fold": "dogwood"}, "E504"),  # who is on the roster
        ({"roster": [ash, birch, *others]}, "E504"),  # nobody is left out
        ({"fold": "zelkova"}, "E504"),  # as the first, although birch comes before it
        ({"fold": "aspen", "round": LAST}, "E504"),  # as the last, although birch comes after it
        ({"kind": "local"}, "E504"),
    ):
        assert number_of(simulation, "birch", plan, **changes) == number, changes
    assert number_of(simulation, "birch", plan) is None  # and none of that was noted


@pytest.mark.slow
def test_a_fold_comes_once_in_order_and_from_one_model(before_folds, tmp_path):
    simulation, plan = copied(before_folds[0], tmp_path / "copy"), before_folds[1]
    base = RoundPlan.model_validate(parse_signed(plan).document).base_model
    head = load_head(simulation.coordinator, "tiny")
    assert number_of(simulation, "cedar", plan) is None
    assert number_of(simulation, "cedar", plan, attempt=2) is None  # the same bytes again
    assert number_of(simulation, "cedar", plan, attempt=3, base_model=head.model) == "E504"
    assert number_of(simulation, "cedar", plan, fold="aspen") == "E504"  # another first fold
    assert number_of(simulation, "cedar", plan, round=FIRST + 2) == "E504"  # ash a second time
    assert number_of(simulation, "cedar", plan, round=FIRST + 2, fold="alder") == "E504"  # out of order
    assert number_of(simulation, "cedar", plan, round=FIRST + 1, base_model=base) is None


def test_more_hospitals_than_declared_are_refused_when_it_opens(tmp_path):
    study = tiny_study(validation={"leave_one_site_out": 3})
    federation = TinyFederation(tmp_path, study, ("ash", "birch", "cedar", "dogwood"))
    with pytest.raises(ConsiliumError, match=r"E607.*4 hospitals, at most 3: ash, birch, cedar, dogwood"):
        open_round(federation.home, "tiny", "run", set(federation.keys))
    head = load_head(federation.home, "tiny")
    assert head.plan is None and "E607" in (head.reason or "")
    plan, _ = open_next(federation, "run-0", {"ash", "birch", "cedar"})
    assert len(plan.roster) == 3


def test_who_joins_late_or_was_not_in_the_last_round_has_no_part_in_the_folds(tmp_path, monkeypatch):
    study = tiny_study(validation={"leave_one_site_out": 4})
    federation = TinyFederation(tmp_path, study, ("ash", "birch", "cedar", "dogwood"))
    there = [{"ash", "birch", "cedar", "dogwood"}, {"birch", "cedar", "dogwood"}, {"ash", "birch", "cedar"}]
    for number, present in enumerate(there):
        plan, digest = open_next(federation, f"run-{number}", present)
        answers = {s: honest_answer(federation, plan, digest, s, tmp_path) for s in present}
        close_round(federation.home, "tiny", f"run-{number}", answers)
    head = load_head(federation.home, "tiny")
    assert (head.status, head.fold_sites) == ("running", ["ash", "birch", "cedar"])
    plan, digest = open_next(federation, "run-3")
    assert plan.fold == "ash" and [e.site for e in plan.roster] == ["birch", "cedar"]
    answers = {"birch": honest_answer(federation, plan, digest, "birch", tmp_path)}
    closed = close_round(federation.home, "tiny", "run-3", answers)  # one fewer than min_sites is enough
    assert closed.record["admitted"] == ["birch"]
    monkeypatch.setattr("tasks.watchdog.seconds_since", lambda timestamp: 1000.0)
    for present, rung in (({"ash", "birch"}, True), ({"ash", "dogwood"}, False)):
        monkeypatch.setattr("tasks.watchdog.present_sites", lambda home, there=present: there)
        assert ("tiny" in idle_studies(federation.home)) == rung
    with pytest.raises(ConsiliumError, match=r"E506.*0 of at least 1"):
        open_round(federation.home, "tiny", "run-4", {"ash", "dogwood"})
