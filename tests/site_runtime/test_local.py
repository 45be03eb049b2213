"""A hospital's own model: trained alone, with as many steps and the same noise, and never sent."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from contracts.canonical import digest
from contracts.errors import ConsiliumError
from contracts.signing import SigningKey, parse_signed, to_text
from contracts.update import UpdateEnvelope
from contracts.version import CODE_VERSION
from privacy.accountant import Spend, epsilon
from privacy.calibration import calibrate
from privacy.stream import derive_stream
from site_runtime.cohort import load_cohort
from site_runtime.config import load_site
from site_runtime.local import local_path
from site_runtime.steps import SiteRefused, train
from site_runtime.trainer import SiteTrainer
from tasks.rounds import close_round
from tasks.store import get_tensors, load_record
from tests.factories import PRIVACY, tiny_simulation, tiny_study
from tests.federations import exchange, ledger, opened, resigned, run_one

pytestmark = pytest.mark.filterwarnings("ignore")

LOCAL = {"validation": {"local_model": True}}
LAST = 3  # statistics, two rounds, local
BUDGET = {"epsilon": 25.0, "delta": 1e-3}


def trained(root, **changes):
    simulation = tiny_simulation(root, tiny_study(**(LOCAL | changes)), budget=BUDGET)
    for number in range(LAST):
        run_one(simulation, f"run-{number}")
    return simulation


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A private federation whose next exchange is the local models; tests copy it."""
    return trained(tmp_path_factory.mktemp("before"), privacy=PRIVACY)


@pytest.fixture
def private(before, tmp_path):
    shutil.copytree(before.root, tmp_path / "copy", symlinks=True)
    return type(before)(tmp_path / "copy", before.protocol)


def test_it_is_what_training_alone_for_as_many_steps_gives(private):
    """From the state that the first round started from, federated normalisation and all."""
    home, protocol = private.sites["ash"], private.protocol
    text, plan = opened(private)
    train(home, text, exchange(private))
    kept = load_file(local_path(home, protocol))
    first = load_record(private.coordinator, "tiny", "1")
    assert plan.kind == "local" and plan.base_model == first["base_model"]
    start = get_tensors(private.coordinator, plan.base_model)
    config = load_site(home)
    cohort = load_cohort(home, config, protocol, "training")

    def stream(purpose):
        key, plan_digest = home.noise_key.read_bytes(), digest(parse_signed(text).document)
        return derive_stream(
            key, plan=plan_digest, cohort=cohort.digest, code_version=CODE_VERSION, purpose=purpose
        )

    alone = SiteTrainer(
        protocol=protocol, plan=plan, cohort=cohort, declared_size=config.governance.declared_size,
        compute=config.compute, sampling=stream("sampling"), noise=stream("noise"),
        steps=protocol.rounds * protocol.training.steps,
    )(start)  # fmt: skip
    assert sorted(kept) == sorted(start)
    for name, value in kept.items():
        assert (value == alone.get(name, start[name])).all()
    assert any((kept[name] != start[name]).any() for name in alone)
    assert np.array_equal(kept["preprocessing.center"], start["preprocessing.center"])


def test_nothing_of_it_leaves_and_it_is_charged_once_as_planned(private):
    home, noise = private.sites["ash"], calibrate(private.protocol)
    text, _ = opened(private)
    blobs = {p.name for p in exchange(private).root.rglob("*")}
    answer = train(home, text, exchange(private))
    assert train(home, text, exchange(private)) == answer
    assert {p.name for p in exchange(private).root.rglob("*")} == blobs
    document = parse_signed(answer).document
    assert document.get("tensors") is None and document["planned_steps"] == 6
    assert ledger(private).spends()[-1] == Spend(0.2, noise.training, 6) and noise.local == noise.training
    assert len(ledger(private).spends()) == LAST + 1 and ledger(private).entries()[-2][1].purpose == "local"
    total = epsilon(ledger(private).spends(), 1e-3)
    assert total == pytest.approx(noise.epsilon, abs=1e-9) and total <= PRIVACY["epsilon"]


def test_its_envelope_says_nothing_of_the_data(private):
    """Two hospitals with other patients answer alike, up to their names, keys and digests."""
    text, _ = opened(private)
    told = []
    for site in ("ash", "birch"):
        fields = json.loads(train(private.sites[site], text, exchange(private)))["document"]
        apart = ("site", "cohort", "data_sheet", "ledger_head", "policy")
        told.append({name: value for name, value in fields.items() if name not in apart})
    assert told[0] == told[1]


def test_planned_anew_the_model_stays_and_nothing_is_spent(private):
    home = private.sites["ash"]
    text, _ = opened(private)
    first = parse_signed(train(home, text, exchange(private))).document
    kept, spent = local_path(home, private.protocol).read_bytes(), ledger(private).spends()
    anew = resigned(private, text, attempt=2, created="2000-01-01T00:00:00Z")
    second = parse_signed(train(home, anew, exchange(private))).document
    assert second["plan"] != first["plan"] and ledger(private).spends() == spent
    assert local_path(home, private.protocol).read_bytes() == kept


def test_cut_off_before_it_answered_the_retry_keeps_the_same_model_and_costs_nothing_more(
    private, monkeypatch
):
    home = private.sites["ash"]
    text, _ = opened(private)
    with monkeypatch.context() as patched:
        patched.setattr("site_runtime.training.keep", lambda *_: 1 / 0)
        with pytest.raises(SiteRefused):
            train(home, text, exchange(private))
    cut = local_path(home, private.protocol).read_bytes()
    train(home, text, exchange(private))
    assert local_path(home, private.protocol).read_bytes() == cut
    assert len(ledger(private).spends()) == LAST + 1
    assert ledger(private).committed(digest(parse_signed(text).document))


def test_a_local_plan_with_less_noise_or_under_another_number_is_refused(private):
    text, _ = opened(private)
    spent = ledger(private).spends()
    for changes, number in (
        ({"noise_multiplier": 0.1}, "E410"),
        ({"round": 2}, "E504"),
        ({"round": 4}, "E504"),
        ({"fold": "birch"}, "E504"),
        ({"kind": "training"}, "E504"),
    ):
        with pytest.raises(SiteRefused) as caught:
            train(private.sites["ash"], resigned(private, text, **changes), exchange(private))
        assert caught.value.number == number
    assert ledger(private).spends() == spent


def test_an_answer_with_tensors_is_not_admitted(private):
    text, plan = opened(private)
    answers = {s: train(home, text, exchange(private)) for s, home in private.sites.items()}
    envelope = UpdateEnvelope.model_validate(parse_signed(answers["ash"]).document)
    sent = envelope.model_copy(update={"tensors": plan.base_model, "tensor_bytes": 10})
    key = SigningKey.load("ash", private.sites["ash"].signing_key)
    with pytest.raises(ConsiliumError, match="E506"):
        close_round(private.coordinator, "tiny", "run", answers | {"ash": to_text(key.sign(sent))})
    assert load_record(private.coordinator, "tiny", "3")["refused"]["ash"]["number"] == "E501"


def test_a_study_that_plans_none_asks_for_none(tmp_path):
    simulation = tiny_simulation(tmp_path, tiny_study(privacy={"mode": "none"}))
    text, _ = opened(simulation)
    for number in (0, 1, 3):
        with pytest.raises(SiteRefused) as caught:
            plan = resigned(simulation, text, kind="local", round=number, base_model="0" * 64)
            train(simulation.sites["ash"], plan, exchange(simulation))
        assert caught.value.number == "E504"
