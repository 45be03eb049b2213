"""A coordinator with the real signing key that misbehaves: every request is refused at the hospital.

Each case sends a hospital one plan, says with which number it must answer, and checks that nothing left but
that refusal and that the privacy ledger was not charged.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consilium.simulation import Simulation
from contracts.canonical import canonical_json
from contracts.plan import RoundPlan
from contracts.refusal import Refusal
from contracts.signing import Signed, SigningKey, open_signed, parse_signed, to_text
from contracts.study import parse_study
from models.registry import initial_state
from privacy.ledger import Ledger
from site_runtime.decisions import load_consent
from site_runtime.egress import egress_records
from site_runtime.home import SiteHome
from site_runtime.steps import SiteRefused, evaluate, train
from tasks.exchange import DirectoryExchange
from tasks.federation import coordinator_key
from tasks.rounds import close_round
from tasks.sealed import seal_key
from tests.factories import opened_plan, private_study, tiny_simulation, write_tensors

pytestmark = pytest.mark.filterwarnings("ignore")

STUDY = private_study(rounds=3)


@dataclass(frozen=True)
class World:
    """A federation after rounds 0 and 1: round 2 is open, ash has not answered it yet."""

    simulation: Simulation
    folder: Path
    statistics: str  # signed plans of the closed exchanges
    first: str
    second: str  # of the open one

    @property
    def exchange(self) -> DirectoryExchange:
        return DirectoryExchange(self.simulation.coordinator.exchange)

    @property
    def site(self) -> SiteHome:
        return self.simulation.sites["ash"]

    @property
    def plan(self) -> RoundPlan:
        return RoundPlan.model_validate(parse_signed(self.second).document)

    def base(self) -> dict[str, np.ndarray]:
        from tasks.store import get_tensors

        assert self.plan.base_model is not None
        return dict(get_tensors(self.simulation.coordinator, self.plan.base_model))

    def put(self, tensors: dict[str, np.ndarray]) -> str:
        return self.exchange.put(write_tensors(self.folder / "forged.safetensors", tensors))

    def signed(self, document: dict[str, Any], key: SigningKey | None = None, **changes: Any) -> str:
        """Sign any document as the coordinator, whether or not it is a plan."""
        key = key or coordinator_key(self.simulation.coordinator)
        body = json.loads(canonical_json(document))
        unsigned = Signed(
            type="RoundPlan", signer="coordinator", key=key.public, document=body, signature="A" * 86
        )
        unsigned = unsigned.model_copy(update=changes)
        return to_text(unsigned.model_copy(update={"signature": key.sign_bytes(unsigned.signed_bytes())}))

    def changed(self, text: str | None = None, **changes: Any) -> str:
        """A plan (the open one) with some fields changed, signed again."""
        return self.signed({**parse_signed(text or self.second).document, **changes})

    def with_model(self, tensors: dict[str, np.ndarray], **changes: Any) -> str:
        """The open plan from another model, which lies in the exchange under its true digest."""
        return self.changed(base_model=self.put(tensors), **changes)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("rogue")
    simulation = tiny_simulation(root / "world", STUDY)
    exchange, plans = DirectoryExchange(simulation.coordinator.exchange), []
    for run in ("run-0", "run-1"):
        plans.append(opened_plan(simulation, run))
        answers: dict[str, str | None] = {
            site: train(home, plans[-1], exchange) for site, home in simulation.sites.items()
        }
        close_round(simulation.coordinator, STUDY.study, run, answers)
    return World(simulation, root, plans[0], plans[1], opened_plan(simulation, "run-2"))


@pytest.fixture
def world(prepared: World, tmp_path: Path) -> World:
    root = tmp_path / "world"
    shutil.copytree(prepared.simulation.root, root, symlinks=True)
    simulation = Simulation(root, STUDY)
    return World(simulation, tmp_path, prepared.statistics, prepared.first, prepared.second)


def network(base: dict[str, np.ndarray]) -> str:
    return next(name for name in base if name.startswith("network."))


def edited(
    base: dict[str, np.ndarray], name: str, change: Callable[[np.ndarray], np.ndarray]
) -> dict[str, np.ndarray]:
    return base | {name: change(base[name]).astype(np.float32)}


def roster(world: World, *sites: str) -> list[dict[str, Any]]:
    entries = {e["site"]: e for e in parse_signed(world.second).document["roster"]}
    return [entries[site] for site in sites]


def sheet_of_birch(world: World) -> list[dict[str, Any]]:
    ash, birch = roster(world, "ash", "birch")
    return [ash | {"data_sheet": birch["data_sheet"]}, birch]


def evaluation(world: World, **changes: Any) -> str:
    fields = {
        "kind": "evaluation",
        "noise_multiplier": None,
        "seal_key": seal_key(world.simulation.coordinator).public,
    }
    return world.changed(**{**fields, **changes})


def another_protocol(**changes: Any) -> Callable[[World], str]:
    """A plan for a protocol of the same name that the hospital never approved."""

    def plan(world: World) -> str:
        return world.changed(protocol_hash=parse_study({**STUDY.body(), **changes}).hash)

    return plan


TRAINING = STUDY.body()["training"]
IDENTIFIER = {"name": "insurance_number", "kind": "numeric", "unit": "1", "range": [0, 1e9]}
STRANGER = SigningKey.generate("coordinator")

# What the coordinator does: (the plan, the number with which the hospital refuses).
ATTACKS: dict[str, tuple[Callable[[World], str], str]] = {
    # The model.
    "a replaced model": (lambda w: w.changed(base_model="1" * 64), "E509"),
    "NaN": (lambda w: w.with_model(edited(w.base(), network(w.base()), lambda a: a * np.nan)), "E325"),
    "infinity": (lambda w: w.with_model(edited(w.base(), network(w.base()), lambda a: a + np.inf)), "E325"),
    "poisoned scale": (
        lambda w: w.with_model(edited(w.base(), network(w.base()), lambda a: a + 1e6)),
        "E325",
    ),
    "a norm that overflows": (
        lambda w: w.with_model(edited(w.base(), network(w.base()), lambda a: np.full_like(a, 3e38))),
        "E325",
    ),
    "another architecture": (
        lambda w: w.with_model(edited(w.base(), network(w.base()), lambda a: np.zeros((7, 7)))),
        "E325",
    ),
    "one tensor more": (lambda w: w.with_model(w.base() | {"extra": np.zeros(3, np.float32)}), "E325"),
    "one tensor fewer": (
        lambda w: w.with_model({k: v for k, v in w.base().items() if k != network(w.base())}),
        "E325",
    ),
    "other types": (lambda w: w.with_model({k: v.astype(np.float64) for k, v in w.base().items()}), "E325"),
    "no tensors at all": (lambda w: w.changed(base_model=w.exchange.put(junk(w.folder))), "E325"),
    "a normalisation that singles out": (
        lambda w: w.with_model(edited(w.base(), "preprocessing.scale", lambda a: a * 0)),
        "E325",
    ),
    "a normalisation out of range": (
        lambda w: w.with_model(edited(w.base(), "preprocessing.center", lambda a: a + 1e4)),
        "E325",
    ),
    "no model": (lambda w: w.changed(base_model=None), "E503"),
    # The order of exchanges.
    "an answered exchange from another model": (
        lambda w: w.changed(w.first, attempt=2, base_model=w.plan.base_model),
        "E324",
    ),
    "an answered exchange with another noise": (
        lambda w: w.changed(w.first, noise_multiplier=2 * (w.plan.noise_multiplier or 1.0)),
        "E324",
    ),
    "an answered exchange anew with another noise": (
        lambda w: w.changed(w.first, attempt=2, noise_multiplier=2 * (w.plan.noise_multiplier or 1.0)),
        "E324",
    ),
    "the statistics again with another noise": (
        lambda w: w.changed(w.statistics, attempt=9, noise_multiplier=1e3),
        "E324",
    ),
    "a round that is not planned": (lambda w: w.changed(round=4), "E504"),
    "another kind for this round": (lambda w: w.changed(kind="histogram"), "E504"),
    "evaluation before the end of training": (evaluation, "E504"),
    "evaluation of an older model": (lambda w: evaluation(w, round=0), "E504"),
    # Who takes part.
    "a roster without the hospital": (lambda w: w.changed(roster=roster(w, "birch")), "E306"),
    "a roster of one": (lambda w: w.changed(roster=roster(w, "ash")), "E306"),
    "a roster of one, twice": (lambda w: w.changed(roster=roster(w, "ash", "ash")), "E306"),
    "another size than declared": (
        lambda w: w.changed(roster=[e | {"declared_size": 9000} for e in roster(w, "ash", "birch")]),
        "E306",
    ),
    "another hospital's data sheet": (lambda w: w.changed(roster=sheet_of_birch(w)), "E511"),
    # The mechanism.
    "less noise": (lambda w: w.changed(noise_multiplier=0.01), "E410"),
    "no noise": (lambda w: w.changed(noise_multiplier=None), "E410"),
    "more rounds": (lambda w: w.changed(rounds=300), "E301"),
    "a longer deadline": (lambda w: w.changed(deadline_seconds=86400), "E301"),
    "a larger sample rate": (another_protocol(training=TRAINING | {"sample_rate": 1.0}), "E301"),
    "a larger clip": (another_protocol(privacy=STUDY.body()["privacy"] | {"max_grad_norm": 1e6}), "E301"),
    "no privacy": (another_protocol(privacy={"mode": "none"}), "E301"),
    "a raw column": (another_protocol(features=[*STUDY.body()["features"], IDENTIFIER]), "E301"),
    "another study": (lambda w: w.changed(study="other"), "E301"),
    # What is no plan.
    "a kind that does not exist": (lambda w: w.changed(kind="export_rows"), "E802"),
    "a field that does not exist": (lambda w: w.changed(columns=["patient"]), "E802"),
    "code to run": (lambda w: w.changed(code_versions=["9.9.9"]), "E305"),
    "an evaluation to be trained": (evaluation, "E802"),
    "another document": (lambda w: w.signed(parse_signed(w.second).document, type="DataSheet"), "E802"),
    "unsigned": (lambda w: w.second.replace(parse_signed(w.second).signature, "A" * 86), "E803"),
    "signed by another key": (lambda w: w.signed(parse_signed(w.second).document, STRANGER), "E814"),
    "signed as a hospital": (lambda w: w.signed(parse_signed(w.second).document, signer="birch"), "E803"),
    "a huge document": (lambda w: w.changed(code_versions=["1" * 64] * 5000), "E802"),
    "no JSON": (lambda w: "no plan at all", "E802"),
}


def junk(folder: Path) -> Path:
    (folder / "junk").write_bytes(b"no safetensors")
    return folder / "junk"


def charged(home: SiteHome) -> tuple[int, str]:
    ledger = Ledger(home.ledger("ash"), "ash", "ash", SigningKey.load("ash", home.signing_key))
    return ledger.length, ledger.head


def left(home: SiteHome) -> list[str]:
    return [record["type"] for record in egress_records(home)]


def refusal(world: World, text: str, step: Callable[..., str] = train) -> Refusal:
    """What ash answers: its refusal, opened with its key."""
    with pytest.raises(SiteRefused) as caught:
        step(world.site, text, world.exchange)
    key = SigningKey.load("ash", world.site.signing_key)
    return open_signed(caught.value.document, Refusal, "ash", key.public)


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_rogue_request_gets_its_refusal_and_nothing_else(world: World, attack: str) -> None:
    plan, number = ATTACKS[attack]
    step = evaluate if attack.startswith("evaluation") else train
    before, ledger, text = left(world.site), charged(world.site), plan(world)
    outbox = sorted(p.name for p in world.site.outbox("").glob("[0-9a-f]*"))
    answer = refusal(world, text, step)
    assert answer.number == number
    assert left(world.site) == [*before, "Refusal"]
    assert charged(world.site) == ledger
    assert sorted(p.name for p in world.site.outbox("").glob("[0-9a-f]*")) == outbox


def test_the_same_coordinator_is_obeyed_when_it_keeps_to_the_study(world: World) -> None:
    """Or the refusals above would show nothing."""
    answer = parse_signed(train(world.site, world.second, world.exchange))
    assert answer.type == "UpdateEnvelope" and answer.document["round"] == 2


def test_an_exchange_that_was_answered_gets_the_same_bytes_or_nothing(world: World) -> None:
    def tensors(plan: str) -> str | None:
        return parse_signed(train(world.site, plan, world.exchange)).document["tensors"]

    first, second = tensors(world.first), tensors(world.second)
    spent = charged(world.site)
    assert first != second
    # A plan that is new in nothing that the bytes depend on, as after the coordinator's restoration.
    assert tensors(world.changed(created="2030-01-01T00:00:00Z")) == second
    assert tensors(world.changed(world.first, attempt=2)) == first  # an older exchange
    moved = world.base()
    moved[network(moved)] = moved[network(moved)] + np.float32(0.01)
    assert refusal(world, world.with_model(moved, attempt=2)).number == "E324"
    assert charged(world.site) == spent


def test_the_first_round_starts_from_the_protocols_own_model(tmp_path: Path) -> None:
    simulation = tiny_simulation(tmp_path / "world", STUDY)
    exchange = DirectoryExchange(simulation.coordinator.exchange)
    statistics = opened_plan(simulation, "run-0")
    answers: dict[str, str | None] = {
        site: train(home, statistics, exchange) for site, home in simulation.sites.items()
    }
    close_round(simulation.coordinator, STUDY.study, "run-0", answers)
    first = opened_plan(simulation, "run-1")
    world = World(simulation, tmp_path, statistics, first, first)
    steered = edited(world.base(), network(world.base()), lambda a: a + 0.001)
    assert refusal(world, world.with_model(steered)).number == "E325"
    start = initial_state(STUDY)
    assert np.array_equal(world.base()[network(start)], start[network(start)])
    assert parse_signed(train(world.site, first, exchange)).type == "UpdateEnvelope"


def test_a_changed_protocol_at_the_coordinator_changes_nothing_at_the_hospital(world: World) -> None:
    """A hospital reads the protocol that its own people approved, never one that is sent."""
    consent = load_consent(world.site, STUDY.study)
    assert consent is not None and consent.last.protocol_hash == STUDY.hash
    copy = world.simulation.coordinator.study(STUDY.study)
    for path in copy.glob("protocol*"):
        path.unlink()
    assert parse_signed(train(world.site, world.second, world.exchange)).type == "UpdateEnvelope"
