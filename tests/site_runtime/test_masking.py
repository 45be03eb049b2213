"""A hospital under masks trusts no roster, masks once and unmasks once, however often it is asked."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from consilium.simulation import Simulation
from contracts.masking import MaskKey, UnmaskRequest
from contracts.plan import RosterEntry
from contracts.refusal import Refusal
from contracts.signing import SigningKey, open_signed, parse_signed, to_text
from privacy.ledger import Ledger
from privacy.mask_keys import new_mask_key
from site_runtime.config import Policy
from site_runtime.masking import open_masks
from site_runtime.outbox import TENSORS
from site_runtime.steps import SiteRefused, intake, train, unmask
from site_runtime.training import make_update
from tasks.federation import coordinator_key
from tasks.head import load_head
from tasks.rounds import OpenedRound
from tasks.store import load_record
from tests.factories import tiny_study
from tests.kills import moments
from tests.masked import (
    SITES,
    Answers,
    asked,
    closed,
    exchange,
    five_hospitals,
    masked_study,
    opened,
    plan_of,
    request_of,
    resigned,
    run_exchange,
    trained,
    unmasked,
)

pytest_plugins = ("tests.masked_world",)
pytestmark = pytest.mark.filterwarnings("ignore")


def copied(simulation: Simulation, target: Path, *without: str) -> Simulation:
    shutil.copytree(simulation.root, target, symlinks=True, ignore=shutil.ignore_patterns(*without))
    return Simulation(target, simulation.protocol)


def refused(step: Callable[..., str], simulation: Simulation, text: str, site: str = "ash") -> Refusal:
    """The refusal of a site, opened with its key."""
    home = simulation.sites[site]
    with pytest.raises(SiteRefused) as caught:
        step(home, text, exchange(simulation))
    public = SigningKey.load(site, home.signing_key).public
    return open_signed(caught.value.document, Refusal, site, public)


def roster_with(plan: str, who: str, **changes: Any) -> list[RosterEntry]:
    """The plan's roster with one entry changed."""
    document, _ = plan_of(plan)
    return [e.model_copy(update=changes) if e.site == who else e for e in document.roster]


def untouched(simulation: Simulation, site: str = "ash") -> bool:
    """Whether nothing was spent and nothing is in the outbox."""
    home = simulation.sites[site]
    return not home.ledger(site).exists() and not list(home.root.glob("outbox/[0-9a-f]*"))


def test_a_key_of_the_coordinators_own_in_a_peers_place_is_refused(fresh: Any) -> None:
    simulation, plan = fresh
    _, public = new_mask_key()
    study, version = simulation.protocol.study, simulation.protocol.hash
    forger = SigningKey("birch", coordinator_key(simulation.coordinator)._private)
    forged = MaskKey.sign(forger, study, version, 1, public)
    changed = resigned(simulation, plan, roster=roster_with(plan, "birch", mask=forged))
    assert refused(train, simulation, changed).number == "E803"
    assert untouched(simulation)


def test_a_signature_for_another_exchange_study_or_hospital_is_no_signature(fresh: Any) -> None:
    simulation, plan = fresh
    mask = next(e.mask for e in plan_of(plan)[0].roster if e.site == "birch")
    moved = mask.model_copy(update={"exchange": 0})
    earlier = roster_with(plan, "birch", mask=moved)
    assert refused(train, simulation, resigned(simulation, plan, roster=earlier)).number == "E803"
    swapped = roster_with(plan, "cedar", mask=mask)
    assert refused(train, simulation, resigned(simulation, plan, roster=swapped)).number == "E803"
    later = mask.model_copy(update={"exchange": 2})
    ahead = roster_with(plan, "birch", mask=later)
    assert refused(train, simulation, resigned(simulation, plan, roster=ahead)).number == "E512"
    assert untouched(simulation)


@pytest.mark.parametrize("size", [1, 2])
def test_a_roster_of_one_or_two_is_refused(fresh: Any, size: int) -> None:
    simulation, plan = fresh
    roster = plan_of(plan)[0].roster[:size]
    assert refused(train, simulation, resigned(simulation, plan, roster=roster)).number == "E512"
    assert untouched(simulation)


def test_repeated_missing_and_unpinned_hospitals_are_refused(fresh: Any) -> None:
    simulation, plan = fresh
    roster = plan_of(plan)[0].roster
    doubled = resigned(simulation, plan, roster=[*roster, roster[1]])
    assert refused(train, simulation, doubled).number == "E512"
    without = resigned(simulation, plan, roster=roster_with(plan, "birch", mask=None))
    assert refused(train, simulation, without).number == "E512"
    birch = SigningKey.load("birch", simulation.sites["birch"].signing_key)
    own = next(e.mask for e in roster if e.site == "ash")
    same = MaskKey.sign(birch, simulation.protocol.study, simulation.protocol.hash, 1, own.key)
    repeated = resigned(simulation, plan, roster=roster_with(plan, "birch", mask=same))
    assert refused(train, simulation, repeated).number == "E512"
    stranger = roster_with(plan, "elm", site="foxglove")
    assert refused(train, simulation, resigned(simulation, plan, roster=stranger)).number == "E807"
    assert untouched(simulation)


def test_asked_again_it_sends_the_same_bytes_and_another_roster_gets_none(sent: Any) -> None:
    simulation, plan, _ = sent
    home = simulation.sites["ash"]
    before = (home.outbox(plan_of(plan)[1]) / TENSORS).read_bytes()
    first = train(home, plan, exchange(simulation))
    assert train(home, plan, exchange(simulation)) == first
    assert (home.outbox(plan_of(plan)[1]) / TENSORS).read_bytes() == before
    smaller = resigned(simulation, plan, roster=plan_of(plan)[0].roster[:4])
    assert refused(train, simulation, smaller).number == "E514"
    again = resigned(simulation, plan, attempt=2)
    assert refused(train, simulation, again).number == "E514"


def test_a_vector_whose_outbox_is_gone_is_not_made_again(sent: Any) -> None:
    simulation, plan, _ = sent
    shutil.rmtree(simulation.sites["ash"].root / "outbox")
    assert refused(train, simulation, plan).number == "E514"


def test_a_plan_for_an_earlier_exchange_is_refused_and_old_keys_are_erased(tmp_path: Path) -> None:
    simulation = five_hospitals(tmp_path, masked_study(rounds=3))
    first = opened(simulation, "run-0")
    run_exchange(simulation, "run-0")
    home = simulation.sites["ash"]
    state = open_masks(home, "ash", simulation.protocol)
    assert sorted(p.name for p in state.folder.glob("key-*")) == ["key-1", "key-2"]
    run_exchange(simulation, "run-1")
    assert sorted(p.name for p in state.folder.glob("key-*")) == ["key-2", "key-3"]
    assert {p.stat().st_mode & 0o777 for p in state.folder.glob("key-*")} == {0o600}
    shutil.rmtree(home.root / "outbox")
    note = home.state("tiny") / "answers"
    shutil.rmtree(note)
    state.note(1).unlink()  # even then: a later exchange has begun
    assert refused(train, simulation, first).number == "E514"


def test_a_used_key_is_refused_and_the_refusal_brings_the_next_one(sent: Any) -> None:
    simulation, plan, _ = sent
    later = resigned(simulation, plan, round=2)
    found = refused(train, simulation, later)
    assert found.number == "E513" and found.next_mask is not None and found.next_mask.exchange == 2
    public = SigningKey.load("ash", simulation.sites["ash"].signing_key).public
    found.next_mask.check("tiny", simulation.protocol.hash, "ash", 2, public)


def test_an_intake_tells_the_key_of_the_next_exchange_that_is_not_answered(sent: Any) -> None:
    simulation, plan, _ = sent
    home = simulation.sites["ash"]
    told = parse_signed(train(home, plan, exchange(simulation))).document["next_mask"]
    assert parse_signed(intake(home, "tiny")).document["mask"] == told


def lists(request: str, **changes: Any) -> dict[str, Any]:
    """Changes to a request with the shares that fit its alive."""
    document = request_of(request)
    alive = changes.get("alive", document.alive)
    shares = document.shares[document.alive[0]]
    return changes | {"shares": {site: document.shares.get(site, shares) for site in alive}}


def test_asked_the_same_again_it_answers_the_same_and_another_request_never(sent: Any) -> None:
    simulation, _, request = sent
    home = simulation.sites["ash"]
    first = unmask(home, request, exchange(simulation))
    assert unmask(home, request, exchange(simulation)) == first
    other = resigned(simulation, request, **lists(request, alive=[*SITES[:3], SITES[4]], dead=[SITES[3]]))
    assert refused(unmask, simulation, other).number == "E515"
    assert unmask(home, request, exchange(simulation)) == first


@pytest.mark.parametrize(
    ("alive", "dead"),
    [
        (("ash", "birch", "cedar", "dogwood"), ("dogwood", "elm")),  # alive and dead
        (("ash", "birch", "cedar", "dogwood"), ()),  # one in neither list
        (("ash", "birch"), ("cedar", "dogwood", "elm")),  # too few
        (("birch", "cedar", "dogwood"), ("ash", "elm")),  # this one not among them
        (("ash", "birch", "cedar", "dogwood", "foxglove"), ("elm",)),  # a stranger
    ],
)
def test_lists_that_could_open_more_than_the_sum_are_refused_and_bind_nothing(
    sent: Any, alive: tuple[str, ...], dead: tuple[str, ...]
) -> None:
    simulation, _, request = sent
    changed = resigned(simulation, request, **lists(request, alive=list(alive), dead=list(dead)))
    assert refused(unmask, simulation, changed).number == "E517"
    assert parse_signed(unmask(simulation.sites["ash"], request, exchange(simulation))).type == "UnmaskShares"


def test_a_request_for_another_plan_or_by_somebody_else_is_refused(sent: Any) -> None:
    simulation, _, request = sent
    assert refused(unmask, simulation, resigned(simulation, request, plan="0" * 64)).number == "E517"
    assert refused(unmask, simulation, resigned(simulation, request, exchange=0)).number == "E517"
    document = UnmaskRequest.model_validate(parse_signed(request).document)
    stranger = SigningKey.generate("coordinator")
    assert refused(unmask, simulation, to_text(stranger.sign(document))).number == "E814"


def test_shares_that_were_made_for_somebody_else_are_refused(sent: Any) -> None:
    simulation, _, request = sent
    shares = request_of(request).shares
    swapped = resigned(simulation, request, shares=shares | {"ash": shares["birch"]})
    assert refused(unmask, simulation, swapped).number == "E433"


@pytest.mark.slow
def test_killed_between_any_two_writes_it_masks_one_vector_and_pays_once(fresh: Any, tmp_path: Path) -> None:
    assert make_update is not None  # imported before anything is killed
    simulation, plan = fresh

    def begin(target: Path) -> None:
        copy = copied(simulation, target, *SITES[1:])
        train(copy.sites["ash"], plan, exchange(copy))

    def check(target: Path) -> None:
        copy = Simulation(target, simulation.protocol)
        home, folder = copy.sites["ash"], copy.sites["ash"].outbox(plan_of(plan)[1])
        left = (folder / TENSORS).read_bytes() if folder.exists() else None
        first = train(home, plan, exchange(copy))
        assert left is None or (folder / TENSORS).read_bytes() == left
        assert train(home, plan, exchange(copy)) == first
        ledger = Ledger(home.ledger("ash"), "ash", "ash", SigningKey.load("ash", home.signing_key))
        assert len(ledger.spends()) == 1
        assert refused(train, copy, resigned(copy, plan, attempt=2)).number == "E514"

    assert moments(begin, check, tmp_path / "killed") >= 8


def test_killed_between_any_two_writes_it_answers_one_request(sent: Any, tmp_path: Path) -> None:
    simulation, _, request = sent
    other = lists(request, alive=[*SITES[:3], SITES[4]], dead=[SITES[3]])

    def begin(target: Path) -> None:
        copy = copied(simulation, target, "data", *SITES[1:])
        unmask(copy.sites["ash"], request, exchange(copy))

    def check(target: Path) -> None:
        copy = Simulation(target, simulation.protocol)
        first = unmask(copy.sites["ash"], request, exchange(copy))
        assert unmask(copy.sites["ash"], request, exchange(copy)) == first
        assert refused(unmask, copy, resigned(copy, request, **other)).number == "E515"

    assert moments(begin, check, tmp_path / "killed") >= 4


@pytest.mark.slow
def test_the_coordinator_killed_between_any_two_writes_makes_one_request_and_one_model(
    fresh: Any, tmp_path: Path
) -> None:
    simulation, plan = fresh
    answers = trained(simulation, plan)
    shares: dict[str, Answers] = {}  # what the hospitals answer to a request: they do not die here

    def answered(copy: Simulation, request: OpenedRound) -> Answers:
        assert request.plan is not None
        if request.plan not in shares:
            hospitals = copied(simulation, tmp_path / f"hospitals-{len(shares)}", "exchange")
            shutil.copytree(copy.coordinator.exchange, hospitals.coordinator.exchange)
            shares[request.plan] = unmasked(hospitals, request)
        return shares[request.plan]

    calm = copied(simulation, tmp_path / "calm", "sites")
    model = closed(calm, answered(calm, asked(calm, answers))).record["model"]

    def begin(target: Path) -> None:
        copy = copied(simulation, target, "sites")
        closed(copy, answered(copy, asked(copy, answers)))

    def check(target: Path) -> None:
        copy = Simulation(target, simulation.protocol)
        fewer = answers | {"elm": None}  # what comes after the crash is not what came before
        again = asked(copy, fewer)
        requests = [p.read_text() for p in copy.coordinator.study("tiny").glob("requests/*.json")]
        assert len(requests) == 1 and again.plan in (None, requests[0])  # None: the record is there already
        closed(copy, {} if again.plan is None else answered(copy, again))
        record = load_record(copy.coordinator, "tiny", "1")
        assert record["status"] == "closed" and load_head(copy.coordinator, "tiny").round == 2
        if len(record["admitted"]) == len(SITES):
            assert record["model"] == model

    assert moments(begin, check, tmp_path / "killed") >= 10


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Simulation, str]:
    """Without privacy, as the first request reaches the hospitals; tests work on copies."""
    simulation = five_hospitals(tmp_path_factory.mktemp("exact"), masked_study(rounds=3))
    request = asked(simulation, trained(simulation, opened(simulation, "run-0")), "run-0")
    assert request.plan is not None
    return simulation, request.plan


def lost_after(simulation: Simulation, request: str, answering: tuple[str, ...]) -> str:
    """The plan of the next round, which starts from the same model: so few have answered the request."""
    answers: dict[str, str | None] = {
        site: unmask(simulation.sites[site], request, exchange(simulation)) for site in answering
    }
    assert closed(simulation, answers, "run-0").record["status"] == "lost"
    plan = opened(simulation, "run-1")
    assert plan_of(plan)[0].base_model == load_record(simulation.coordinator, "tiny", "1")["base_model"]
    return plan


def test_from_one_model_no_second_exact_sum_is_opened_over_others(exact: Any, tmp_path: Path) -> None:
    """A coordinator that has opened a sum and calls its round lost: the next one without elm tells elm's."""
    simulation = copied(exact[0], tmp_path / "copy")
    for site in SITES[3:]:  # the rogue has their answers as well
        unmask(simulation.sites[site], exact[1], exchange(simulation))
    plan = lost_after(simulation, exact[1], SITES[:3])
    request = asked(simulation, trained(simulation, plan, ("elm",)), "run-1")
    assert request.plan is not None
    assert [refused(unmask, simulation, request.plan, site).number for site in SITES[:4]] == ["E522"] * 4


def test_a_roster_without_one_of_an_exact_sum_is_refused_before_anything_is_read(
    exact: Any, tmp_path: Path
) -> None:
    simulation = copied(exact[0], tmp_path / "copy")
    plan = lost_after(simulation, exact[1], SITES[:3])
    smaller = resigned(simulation, plan, roster=plan_of(plan)[0].roster[:4])
    assert refused(train, simulation, smaller).number == "E522"
    assert parse_signed(train(simulation.sites["ash"], plan, exchange(simulation))).type == "UpdateEnvelope"
    answer = train(simulation.sites["dogwood"], smaller, exchange(simulation))
    assert parse_signed(answer).type == "UpdateEnvelope"  # it has opened nothing yet


def test_after_an_honest_loss_the_next_round_goes_on(exact: Any, tmp_path: Path) -> None:
    """Over the same hospitals the sum is the same once more; whoever is missing is waited for."""
    simulation = copied(exact[0], tmp_path / "copy")
    plan = lost_after(simulation, exact[1], SITES[:3])
    answers = trained(simulation, plan)
    first = asked(simulation, answers, "run-1")
    record = closed(simulation, unmasked(simulation, first), "run-1").record
    assert record["status"] == "closed" and record["admitted"] == sorted(SITES)
    # The model has moved: from the new one any hospitals may be summed.
    assert run_exchange(simulation, "run-2", first=("elm",)).record["status"] == "closed"


def test_a_round_that_nobody_was_asked_to_unmask_binds_no_other_sum(tmp_path: Path) -> None:
    simulation = five_hospitals(tmp_path, masked_study(rounds=3))
    assert run_exchange(simulation, "run-0", first=SITES[:2]).record["status"] == "lost"
    plan = opened(simulation, "run-1")
    smaller = resigned(simulation, plan, roster=plan_of(plan)[0].roster[1:])
    assert (
        parse_signed(train(simulation.sites["elm"], smaller, exchange(simulation))).type == "UpdateEnvelope"
    )


def test_with_privacy_every_sum_is_noised_and_stands_alone(sent: Any) -> None:
    simulation, plan, request = sent
    home = simulation.sites["ash"]
    unmask(home, request, exchange(simulation))
    state = open_masks(home, "ash", simulation.protocol)
    assert state.opened_from(plan_of(resigned(simulation, plan, round=2))[0]) == {}


def test_exact_updates_leave_under_masks_alone_where_the_policy_says_summed() -> None:
    summed, yes, no = (Policy.model_validate({"exact_updates": v}) for v in ("summed", True, False))
    masked, clear = masked_study(), tiny_study()
    assert [p.lets_exact_leave(masked) for p in (summed, yes, no)] == [True, True, False]
    assert [p.lets_exact_leave(clear) for p in (summed, yes, no)] == [False, True, False]


def test_what_an_exchange_holds_is_masked_shares_and_commitments(sent: Any) -> None:
    simulation, plan, _ = sent
    folder = simulation.sites["ash"].outbox(plan_of(plan)[1])
    assert sorted(p.name for p in folder.iterdir()) == ["document.json", TENSORS]
    found = load_file(folder / TENSORS)
    assert {name: (str(a.dtype), a.shape) for name, a in found.items()} == {
        "masked": ("uint64", (4,)),
        "shares": ("uint8", (5, 5 * 32 + 28)),
        "commitments": ("uint8", (5, 32)),
    }
