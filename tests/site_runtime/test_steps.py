"""A hospital's steps: one plan, one reservation, one update, however often it is asked."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import yaml

from contracts.errors import ConsiliumError
from contracts.plan import RoundPlan
from contracts.refusal import Refusal
from contracts.signing import SigningKey, open_signed, parse_signed, to_text
from contracts.update import UpdateEnvelope
from privacy.ledger import Ledger
from site_runtime.cohort import read_frozen
from site_runtime.config import load_site
from site_runtime.consent import approve_by_scripts, pause, withdraw
from site_runtime.intake import run_intake
from site_runtime.steps import SiteRefused, intake, train
from tasks.exchange import DirectoryExchange
from tasks.federation import coordinator_key
from tasks.rounds import close_round
from tests.factories import (
    PRIVACY,
    opened_plan,
    private_study,
    tiny_rows,
    tiny_simulation,
    tiny_study,
    write_csv,
)
from tests.model_zoo import table, zoo

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A private federation after intake, with its first plan; tests work on copies."""
    root = tmp_path_factory.mktemp("prepared")
    simulation = tiny_simulation(root, private_study())
    return simulation, opened_plan(simulation)


@pytest.fixture
def private(prepared, tmp_path):
    simulation, plan = prepared
    root = tmp_path / "copy"
    shutil.copytree(simulation.root, root, symlinks=True)
    return type(simulation)(root, simulation.protocol), plan


def exchange(simulation):
    return DirectoryExchange(simulation.coordinator.exchange)


def ledger(simulation, site="ash"):
    home = simulation.sites[site]
    return Ledger(home.ledger(site), site, site, SigningKey.load(site, home.signing_key))


def refused(simulation, plan, site="ash"):
    """The refusal of a site, opened with its key."""
    with pytest.raises(SiteRefused) as caught:
        train(simulation.sites[site], plan, exchange(simulation))
    key = SigningKey.load(site, simulation.sites[site].signing_key)
    return open_signed(caught.value.document, Refusal, site, key.public)


def resigned(simulation, plan, key=None, **changes):
    """The plan with some fields changed, signed by the coordinator (or by somebody else)."""
    document = RoundPlan.model_validate(parse_signed(plan).document).model_copy(update=changes)
    return to_text((key or coordinator_key(simulation.coordinator)).sign(document))


def test_asked_twice_it_sends_the_same_update_and_spends_once(private):
    simulation, plan = private
    first = train(simulation.sites["ash"], plan, exchange(simulation))
    spent = ledger(simulation).spends()
    assert train(simulation.sites["ash"], plan, exchange(simulation)) == first
    assert ledger(simulation).spends() == spent and len(spent) == 1


def test_a_round_planned_anew_gets_the_same_bytes_and_spends_nothing(private):
    simulation, plan = private
    anew = resigned(simulation, plan, attempt=2, created="2000-01-01T00:00:00Z")
    answers = [train(simulation.sites["ash"], p, exchange(simulation)) for p in (plan, anew)]
    first, second = (parse_signed(answer).document for answer in answers)
    assert first["plan"] != second["plan"] and first["tensors"] == second["tensors"]
    assert len(ledger(simulation).spends()) == 1


def test_the_epsilon_that_was_approved_is_never_passed(private):
    """Plans that cannot be answered with an earlier update are refused once the promise would break."""
    simulation, plan = private
    train(simulation.sites["ash"], plan, exchange(simulation))
    shutil.rmtree(simulation.sites["ash"].state("tiny") / "answers")
    assert refused(simulation, resigned(simulation, plan, attempt=2)).number == "E401"


def test_an_update_that_was_finished_and_lost_is_not_made_again(private):
    simulation, plan = private
    train(simulation.sites["ash"], plan, exchange(simulation))
    shutil.rmtree(simulation.sites["ash"].root / "outbox")
    assert refused(simulation, plan).number == "E411"


def test_a_plan_for_an_earlier_cohort_is_refused(tmp_path):
    simulation = tiny_simulation(tmp_path, private_study())
    plan = opened_plan(simulation)
    write_csv(tmp_path / "federation" / "ash" / "data.csv", tiny_rows(130))
    intake(simulation.sites["ash"], "tiny")
    assert refused(simulation, plan).number == "E511"


def test_with_privacy_an_envelope_says_nothing_of_the_data(tmp_path):
    """Cohorts of 119, 120 and 121 patients with one declared size: only digests differ."""
    said = []
    for patients in (119, 120, 121):
        root = tmp_path / str(patients)
        simulation = tiny_simulation(root, private_study(), rows=tiny_rows(patients))
        text = train(simulation.sites["ash"], opened_plan(simulation), exchange(simulation))
        fields = parse_signed(text).document
        digests = ("plan", "cohort", "tensors", "data_sheet", "ledger_head", "protocol_hash", "policy")
        said.append({k: v for k, v in fields.items() if k not in digests})
    assert said[0] == said[1] == said[2]


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ({"noise_multiplier": 0.5}, "E410"),
        ({"noise_multiplier": None}, "E410"),
        ({"protocol_hash": "f" * 64}, "E301"),
        ({"rounds": 3}, "E301"),
        ({"code_versions": ["9.9.9"]}, "E305"),
        ({"roster": []}, "E306"),
        ({"kind": "evaluation"}, "E802"),
        ({"study": "other"}, "E301"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_and_nothing_is_spent(private, changes, number):
    simulation, plan = private
    if "roster" in changes:
        entries = RoundPlan.model_validate(parse_signed(plan).document).roster
        changes = {"roster": [e for e in entries if e.site != "ash"]}
    answer = refused(simulation, resigned(simulation, plan, **changes))
    assert answer.number == number
    assert not simulation.sites["ash"].ledger("ash").exists() or ledger(simulation).spends() == []


def test_only_the_pinned_coordinator_is_obeyed(private):
    simulation, plan = private
    assert (
        refused(simulation, resigned(simulation, plan, SigningKey.generate("coordinator"))).number == "E814"
    )
    assert refused(simulation, "no plan at all").number == "E802"


def test_pause_and_withdrawal_are_heard(private):
    simulation, plan = private
    pause(simulation.sites["ash"], "tiny")
    assert refused(simulation, plan).number == "E302"
    withdraw(simulation.sites["birch"], "tiny")
    assert refused(simulation, plan, "birch").number == "E303"


def test_a_cohort_that_changed_after_intake_is_refused(private):
    simulation, plan = private
    for path in simulation.sites["ash"].cohort("tiny").glob("*.parquet"):
        path.chmod(0o600)
        path.write_bytes(path.read_bytes()[:-8] + b"\0" * 8)
    assert refused(simulation, plan).number == "E210"


def with_budget(simulation, **budget):
    """Give hospital ash another budget."""
    config = simulation.sites["ash"].config
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "budget": budget}))


def intake_refusal(simulation, monkeypatch):
    """The number with which ash refuses an intake, without reading its source."""
    monkeypatch.setattr("site_runtime.connectors.read", lambda *a: pytest.fail("the source was read"))
    with pytest.raises(SiteRefused) as caught:
        intake(simulation.sites["ash"], simulation.protocol.study)
    monkeypatch.undo()
    return caught.value.number


def test_a_study_over_the_cap_is_refused_before_its_data_are_read(private, monkeypatch):
    simulation, plan = private
    with_budget(simulation, epsilon=1.0)
    assert intake_refusal(simulation, monkeypatch) == "E401"
    assert refused(simulation, plan).number == "E401"
    assert not list((simulation.sites["ash"].root / "outbox").glob("[0-9a-f]*/"))


def test_a_second_study_on_the_lineage_is_refused_when_the_cap_would_be_passed(tmp_path, monkeypatch):
    from consilium.simulation import prepare, run_intake

    simulation = tiny_simulation(tmp_path, private_study(), budget={"epsilon": 3.0, "delta": 1e-3})
    second = prepare(tmp_path, private_study(study="second"), tmp_path / "federation")
    run_intake(second, lambda text: None)  # alone it would fit
    plan = opened_plan(second)
    train(simulation.sites["ash"], opened_plan(simulation), exchange(simulation))
    assert refused(second, plan).number == "E401"
    assert intake_refusal(second, monkeypatch) == "E401"
    assert ledger(simulation).spends("second") == []


def test_a_model_that_couples_patients_is_refused_before_its_data_are_read(private, monkeypatch):
    simulation, _ = private
    home, fields = (
        simulation.sites["ash"],
        {"name": "cnn", "image": [8, 8], "hidden": [4, 6], "norm": "batch"},
    )
    protocol = zoo(model=fields)["cnn"]
    with pytest.raises(ConsiliumError, match="E404"):
        approve_by_scripts(home, protocol)
    assert not home.approval(protocol.study).exists()


def test_a_cohort_that_an_interrupted_intake_froze_is_not_trained_on(tmp_path):
    """The data sheet that left names the cohort: another one under it would be nobody's."""
    simulation = tiny_simulation(tmp_path, private_study())
    plan = opened_plan(simulation)
    home = simulation.sites["ash"]
    sheet = home.state("tiny") / "sheet.json"
    before = sheet.read_bytes()
    write_csv(load_site(home).source.path, tiny_rows(130))
    intake(home, "tiny")
    sheet.write_bytes(before)  # as a kill would leave it
    assert refused(simulation, plan).number == "E210"
    assert not home.ledger("ash").exists()


def test_an_update_killed_before_it_was_noted_is_sent_again_when_the_round_is_planned_anew(
    private, monkeypatch
):
    simulation, plan = private
    site = simulation.sites["ash"]

    class Killed(BaseException):
        pass

    def die(*arguments):
        raise Killed

    monkeypatch.setattr("site_runtime.training.Ledger.commit", die)
    with pytest.raises(Killed):
        train(site, plan, exchange(simulation))
    monkeypatch.undo()
    first = parse_signed(train(site, plan, exchange(simulation))).document
    anew = resigned(simulation, plan, attempt=2)
    again = parse_signed(train(site, anew, exchange(simulation))).document
    assert again["tensors"] == first["tensors"] and again["plan"] != first["plan"]
    assert len(ledger(simulation).spends()) == 1


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
@pytest.mark.slow
def test_every_precision_that_is_let_through_makes_updates_that_are_admitted(tmp_path, precision):
    from consilium.simulation import run_rounds
    from tasks.store import load_record

    protocol = zoo(rounds=1)["lstm"]
    compute = {"accelerator": "cpu", "precision": precision}
    simulation = tiny_simulation(tmp_path, protocol, table(protocol, 120, seed=1), compute=compute)
    run_rounds(simulation, lambda text: None)
    assert load_record(simulation.coordinator, protocol.study, "1")["admitted"] == ["ash", "birch"]


def test_state_kept_by_round_is_not_set_back_by_a_task_that_is_run_again(private):
    from contracts.plan import RoundPlan as Plan
    from site_runtime.outbox import keep, kept_state, restore_state

    simulation, plan = private
    home, document = simulation.sites["ash"], Plan.model_validate(parse_signed(plan).document)
    home.outbox("").mkdir()
    for number in (1, 2):
        keep(home, f"{number}" * 64, document, None, {"clip": np.array([float(number)])})
        restore_state(home, simulation.protocol, number, f"{number}" * 64)
    restore_state(home, simulation.protocol, 1, "1" * 64)  # round 1's task is cleared
    assert kept_state(home, simulation.protocol, 3)["clip"] == 2.0
    assert kept_state(home, simulation.protocol, 2)["clip"] == 1.0
    assert kept_state(home, simulation.protocol, 1) == {}
    # The model of a fold begins with nothing, and keeps its own.
    assert kept_state(home, simulation.protocol, 5, "elm") == {}
    restore_state(home, simulation.protocol, 5, "1" * 64, "elm")
    assert kept_state(home, simulation.protocol, 6, "elm")["clip"] == 1.0
    assert kept_state(home, simulation.protocol, 6)["clip"] == 2.0
    assert kept_state(home, simulation.protocol, 6, "oak") == {}


def test_delta_must_be_below_one_over_the_declared_size(tmp_path):
    simulation = tiny_simulation(tmp_path, private_study(privacy=PRIVACY | {"delta": 9.9e-3}))
    site = simulation.sites["ash"]
    site.config.write_text(site.config.read_text().replace("declared_size: 90", "declared_size: 110"))
    plan = opened_plan(simulation)
    entries = RoundPlan.model_validate(parse_signed(plan).document).roster
    larger = [e.model_copy(update={"declared_size": 110}) if e.site == "ash" else e for e in entries]
    assert refused(simulation, resigned(simulation, plan, roster=larger)).number == "E403"


@pytest.mark.parametrize("compute", [{"devices": 2}, {"precision": "16-mixed"}])
def test_hardware_that_would_break_the_mechanism_is_refused(private, compute):
    simulation, plan = private
    config = simulation.sites["ash"].config
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "compute": compute}))
    assert refused(simulation, plan).number == "E412"
    assert not simulation.sites["ash"].ledger("ash").exists()


def test_a_study_without_privacy_needs_the_hospitals_leave(tmp_path):
    simulation = tiny_simulation(tmp_path, tiny_study())
    site = simulation.sites["ash"]
    site.config.write_text(site.config.read_text().replace("exact_updates: true", "exact_updates: false"))
    with pytest.raises(ConsiliumError, match="E304"):
        approve_by_scripts(site, simulation.protocol)
    assert refused(simulation, opened_plan(simulation)).number == "E323"  # and nothing was approved under it


def test_a_refusal_tells_the_coordinator_no_detail(private):
    simulation, plan = private
    answer = refused(simulation, resigned(simulation, plan, noise_multiplier=0.5))
    assert "0.5" not in answer.sentence
    assert "0.5" in simulation.sites["ash"].log.read_text()


def test_both_sites_updates_close_the_round(private):
    simulation, plan = private
    answers = {s: train(home, plan, exchange(simulation)) for s, home in simulation.sites.items()}
    record = close_round(simulation.coordinator, "tiny", "run", answers).record
    assert record["status"] == "closed" and record["admitted"] == ["ash", "birch"]
    envelope = UpdateEnvelope.model_validate(parse_signed(answers["ash"]).document)
    assert record["epsilon"]["sites"]["ash"] == envelope.epsilon_study <= PRIVACY["epsilon"]


def test_an_older_ledger_is_a_rollback(private):
    simulation, plan = private
    home = simulation.sites["ash"]
    answers = {s: train(h, plan, exchange(simulation)) for s, h in simulation.sites.items()}
    close_round(simulation.coordinator, "tiny", "run", answers)
    shutil.rmtree(home.ledger("ash").parent)
    assert refused(simulation, opened_plan(simulation, "next")).number == "E407"


def test_a_later_intake_keeps_every_patient_on_their_side(private):
    simulation, _ = private
    home = simulation.sites["ash"]
    before = read_frozen(home, simulation.protocol)
    run_intake(home, "tiny", simulation.protocol)
    assert read_frozen(home, simulation.protocol) == before
    assert json.loads(home.approval("tiny").read_text()) == simulation.protocol.body()
    assert load_site(home).site == "ash"
