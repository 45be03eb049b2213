"""A threshold from training at real hospitals: charged once, the same bytes again, locked for every one."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from consilium.simulation import outcome, run_release
from contracts.errors import ConsiliumError
from contracts.plan import RosterEntry, RoundPlan
from contracts.refusal import Refusal
from contracts.signing import SigningKey, open_signed, parse_signed
from contracts.update import UpdateEnvelope
from contracts.version import CODE_VERSION
from models.registry import initial_state, load_model
from privacy.accountant import Spend
from privacy.calibration import calibrate, planned_spends, spend_of
from privacy.histogram import risk_counts
from site_runtime.cohort import CohortArrays, load_cohort
from site_runtime.config import load_site
from site_runtime.evaluator import remember_evaluation
from site_runtime.home import SiteHome
from site_runtime.risks import latest_risks
from site_runtime.steps import SiteRefused, evaluate, train
from site_runtime.training import remaining
from strategies.normalisation import class_weights
from tasks.exchange import DirectoryExchange
from tasks.head import load_head
from tasks.replay import replay
from tasks.rounds import close_round
from tasks.sealed import seal_key
from tasks.store import get_tensors, load_record
from tests.factories import (
    PRIVACY,
    STUDY,
    ZERO,
    opened_plan,
    private_study,
    tiny_rows,
    tiny_simulation,
    tiny_study,
)
from tests.federations import ledger, resigned

pytestmark = pytest.mark.filterwarnings("ignore")

RULE = {"sensitivity": 0.8}
# So few patients decide a threshold only with little noise.
LOUD = PRIVACY | {"epsilon": 20.0, "threshold_fraction": 0.3}


def ruled(**changes):
    """The tiny private study with a rule for its threshold and balanced class weights."""
    fields = {
        "privacy": LOUD,
        "decision_threshold": RULE,
        "training": STUDY["training"] | {"class_weights": "balanced"},
    }
    return private_study(**(fields | changes))


def plan_of(protocol, kind, number, **changes):
    fields = {
        "study": protocol.study,
        "protocol_hash": protocol.hash,
        "kind": kind,
        "round": number,
        "rounds": protocol.rounds,
        "roster": [RosterEntry(site="ash", data_sheet=ZERO, declared_size=90)],
        "code_versions": [CODE_VERSION],
        "deadline_seconds": 30,
        "created": "2026-01-01T00:00:00Z",
    }
    return RoundPlan.model_validate(fields | changes)


@pytest.mark.parametrize("changes", [{}, {"decision_threshold": 0.5}])
def test_what_is_spent_and_what_is_still_planned_is_always_the_whole_study(changes):
    """The histogram is counted from the first exchange on: what could not be finished is not begun."""
    protocol = ruled(**({"privacy": PRIVACY} | changes))
    noise = calibrate(protocol)
    planned = planned_spends(protocol, noise)
    kinds = ["statistics", "training", "training", *(["histogram"] if noise.histogram else [])]

    def steps(spends):
        total = Counter()
        for spend in spends:
            total[spend.sample_rate, spend.noise_multiplier] += spend.steps
        return total

    spent: list[Spend] = []
    for number, kind in enumerate(kinds):
        spent.append(spend_of(protocol, kind, noise.of(kind)))
        still = remaining(protocol, plan_of(protocol, kind, number), noise, "ash")
        assert steps([*spent, *still]) == steps(planned)
    assert still == []


def test_a_risk_does_not_depend_on_who_else_is_counted():
    """Not even in its last bit: at the edge of a bin that bit would move another patient."""
    protocol = tiny_study(model={"name": "mlp", "hidden": [64]})
    draw = np.random.default_rng(0)
    x = np.stack([draw.uniform(0, 100, 70), draw.uniform(0, 20, 70), draw.integers(0, 2, 70)], axis=1)
    x = x[:, None, :].astype(np.float32)
    y = draw.integers(0, 2, (70, 1)).astype(np.float32)
    none = np.empty((70, 1, 0), np.float32)
    cohort = {"x": x, "mask": np.ones((70, 1), bool), "y": y, "auxiliary": none, "digest": ZERO}
    state = initial_state(protocol)
    everyone, _ = latest_risks(protocol, state, CohortArrays(**cohort))
    for gone in (0, 13, 69):
        kept = np.arange(70) != gone
        fewer = {k: v[kept] if isinstance(v, np.ndarray) else v for k, v in cohort.items()}
        risk, label = latest_risks(protocol, state, CohortArrays(**fewer))
        assert (risk == everyone[kept]).all()
        assert np.abs(risk_counts(everyone, y[:, 0]) - risk_counts(risk, label)).sum() == 1


@pytest.mark.parametrize(
    ("changes", "number"),
    [({"decision_threshold": 0.4}, "E605"), ({"base_model": "1" * 64}, "E605"), ({}, None)],
)
def test_a_hospital_answers_for_one_threshold(tmp_path, changes, number):
    protocol, home = ruled(), SiteHome(tmp_path / "ash")
    home.state("tiny").mkdir(parents=True)
    first = {"base_model": ZERO, "decision_threshold": 0.32}
    remember_evaluation(home, protocol, plan_of(protocol, "evaluation", 3, **first), ZERO, "ash")
    for kind in ("evaluation", "verification"):
        again = plan_of(protocol, kind, 3, **(first | {"artefact": ZERO} | changes))
        if number is None:
            remember_evaluation(home, protocol, again, ZERO, "ash")
        else:
            with pytest.raises(ConsiliumError, match=number):
                remember_evaluation(home, protocol, again, ZERO, "ash")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A federation of two hospitals after the last round, with the plan of the histogram; tests copy it."""
    root = tmp_path_factory.mktemp("trained")
    budget = {"epsilon": 25.0, "delta": 1e-3}
    simulation = tiny_simulation(root, ruled(), rows=tiny_rows(200), budget=budget)
    for number in range(3):
        close(simulation, opened_plan(simulation, f"run-{number}"), f"run-{number}")
    return simulation, opened_plan(simulation, "run-3")


@pytest.fixture
def private(trained, tmp_path):
    simulation, plan = trained
    root = tmp_path / "copy"
    shutil.copytree(simulation.root, root, symlinks=True)
    return type(simulation)(root, simulation.protocol), plan


def exchange(simulation):
    return DirectoryExchange(simulation.coordinator.exchange)


def close(simulation, plan, run_id):
    """Have both hospitals answer a plan and close its round."""
    answers = {s: train(home, plan, exchange(simulation)) for s, home in simulation.sites.items()}
    return close_round(simulation.coordinator, "tiny", run_id, answers)


def refused(simulation, step, plan, site="ash"):
    with pytest.raises(SiteRefused) as caught:
        step(simulation.sites[site], plan, exchange(simulation))
    key = SigningKey.load(site, simulation.sites[site].signing_key)
    return open_signed(caught.value.document, Refusal, site, key.public).number


@pytest.mark.slow
def test_the_histogram_is_charged_once_and_sent_again_with_the_same_bytes(private):
    simulation, plan = private
    before = len(ledger(simulation).spends())
    first = train(simulation.sites["ash"], plan, exchange(simulation))
    assert train(simulation.sites["ash"], plan, exchange(simulation)) == first
    noise = calibrate(simulation.protocol)
    assert ledger(simulation).spends()[before:] == [Spend(1.0, noise.histogram, 1)]
    assert ledger(simulation).entries()[-2][1].purpose == "histogram"
    anew = train(simulation.sites["ash"], resigned(simulation, plan, attempt=2), exchange(simulation))
    tensors = [UpdateEnvelope.model_validate(parse_signed(text).document).tensors for text in (first, anew)]
    assert tensors[0] == tensors[1] and len(ledger(simulation).spends()) == before + 1


@pytest.mark.slow
def test_cut_off_before_its_update_was_kept_the_retry_gives_the_same_bytes_and_costs_nothing_more(
    private, monkeypatch
):
    simulation, plan = private
    home, before = simulation.sites["ash"], len(ledger(simulation).spends())
    whole = simulation.root.parent / "whole"
    shutil.copytree(home.root, whole / "ash", symlinks=True)
    reference = parse_signed(train(SiteHome(whole / "ash"), plan, exchange(simulation))).document
    with monkeypatch.context() as patched:
        patched.setattr("site_runtime.training.keep", lambda *_: 1 / 0)
        assert refused(simulation, train, plan) == "E899"
    assert len(ledger(simulation).spends()) == before + 1
    again = parse_signed(train(home, plan, exchange(simulation))).document
    assert again["tensors"] == reference["tensors"]
    assert len(ledger(simulation).spends()) == before + 1


@pytest.mark.slow
def test_what_leaves_is_the_counts_of_training_patients_with_the_declared_noise(private):
    simulation, plan = private
    home, document = simulation.sites["ash"], RoundPlan.model_validate(parse_signed(plan).document)
    text = train(home, plan, exchange(simulation))
    sent = load_file(exchange(simulation).path_of(parse_signed(text).document["tensors"]))
    cohort = load_cohort(home, load_site(home), simulation.protocol)
    model = load_model(simulation.protocol, exchange(simulation).path_of(document.base_model))
    with torch.no_grad():
        risk = torch.sigmoid(model(torch.from_numpy(cohort.x[:, 0, :]))).numpy()
    noise = sent["histogram"] - risk_counts(risk, cohort.y[:, 0])
    assert 0.6 < noise.std() / document.noise_multiplier < 1.4  # 100 draws
    assert list(sent) == ["histogram"] and sent["histogram"].dtype == np.float32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ({"noise_multiplier": 0.1}, "E410"),
        ({"noise_multiplier": None}, "E410"),
        ({"round": 2}, "E504"),
        ({"round": 4}, "E504"),
        ({"kind": "training"}, "E504"),
        ({"base_model": None}, "E503"),
    ],
)
def test_a_histogram_plan_that_does_not_fit_is_refused_and_nothing_is_spent(private, changes, number):
    simulation, plan = private
    before = ledger(simulation).spends()
    assert refused(simulation, train, resigned(simulation, plan, **changes)) == number
    assert ledger(simulation).spends() == before


@pytest.mark.slow
def test_an_evaluation_without_the_locked_threshold_is_refused(private):
    simulation, plan = private
    asked = {
        "kind": "evaluation",
        "noise_multiplier": None,
        "seal_key": seal_key(simulation.coordinator).public,
    }
    assert refused(simulation, evaluate, resigned(simulation, plan, **asked)) == "E426"
    with_one = asked | {"decision_threshold": 0.3, "attempt": 2}
    evaluate(simulation.sites["ash"], resigned(simulation, plan, **with_one), exchange(simulation))
    other = asked | {"decision_threshold": 0.4, "attempt": 3}
    assert refused(simulation, evaluate, resigned(simulation, plan, **other)) == "E605"


@pytest.mark.slow
def test_from_label_counts_to_a_release_that_says_where_its_threshold_came_from(private):
    simulation, plan = private
    assert close(simulation, plan, "run-3").next == "finished"
    home, head = simulation.coordinator, load_head(simulation.coordinator, "tiny")
    record = load_record(home, "tiny", "3")
    assert record["kind"] == "histogram" and head.threshold == record["threshold"]["value"]
    assert record["epsilon"]["maximum"] <= LOUD["epsilon"]
    assert all(r.matches for r in replay(home, "tiny"))
    negative, positive = class_weights(get_tensors(home, head.model))
    assert positive == pytest.approx(1.5, rel=0.25) and negative == pytest.approx(0.75, rel=0.15)
    release = run_release(simulation, lambda text: None)
    manifest = json.loads((release / "manifest.json").read_text())
    assert manifest["decision_threshold"] == head.threshold
    assert json.loads((release / "golden.json").read_text())["decision_threshold"] == head.threshold
    said = json.loads((release / "validation.json").read_text())["_study"]
    assert said["decision_threshold"] == head.threshold and "histogram" in said["decision_threshold_source"]
    assert "sensitivity of at least 0.8" in (release / "README.txt").read_text()
    assert outcome(simulation)["privacy"]["maximum"] == record["epsilon"]["maximum"]
    evaluated = json.loads((simulation.sites["ash"].state("tiny") / "evaluated.json").read_bytes())
    assert evaluated[simulation.protocol.hash]["threshold"] == head.threshold
