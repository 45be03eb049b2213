"""A restore charges at least what a damaged ledger still shows, whatever the officer types."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts.errors import ConsiliumError
from contracts.signing import SigningKey
from privacy.accountant import Spend, epsilon
from privacy.chain import parse_line
from privacy.ledger import Ledger
from privacy.restoration import ChargesMissing

TRAIN, HAND, NOTHING = Spend(0.1, 1.5, 10), Spend(0.2, 2.0, 7), Spend(1.0, 10000.0, 1)
WHO = {"officer": "Dr. A. Smith", "reason": "a disk failed"}
ROUNDS = 5


@pytest.fixture
def key() -> SigningKey:
    return SigningKey.generate("alpha")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger" / "population.jsonl"


def filled(path: Path, key: SigningKey, lineage: str = "population") -> Ledger:
    """Twelve entries: the first, a write-off by hand, five reservations with their commits."""
    ledger = Ledger(path, "alpha", lineage, key)
    ledger.write_off(HAND, study="other", **WHO)
    for number in range(ROUNDS):
        plan = {"study": "demo", "plan": f"{number:064x}", "purpose": "training"}
        ledger.reserve(**plan, spend=TRAIN, epsilon_cap=50.0, delta=1e-4)
        ledger.commit(f"{number:064x}")
    return ledger


def edit(path: Path, line: int, old: bytes, new: bytes) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new)
    path.write_bytes(b"".join(lines))


def restored(path: Path, key: SigningKey, head: str, *charges: Spend, **options: Any) -> Ledger:
    return Ledger.restored(path, "alpha", "population", key, lost_head=head, charges=charges, **WHO | options)


def refusal(path: Path, key: SigningKey, head: str, *charges: Spend, **options: Any) -> ConsiliumError:
    """The refusal of a restore, which leaves every file as it was."""
    before = {p: p.read_bytes() for p in path.parent.iterdir()}
    with pytest.raises(ConsiliumError) as error:
        restored(path, key, head, *charges, **options)
    assert error.value.number == "E417"
    assert {p: p.read_bytes() for p in path.parent.iterdir()} == before
    return error.value


def advised(error: ConsiliumError, unreadable: list[Spend]) -> dict[str, Any]:
    """The charges of the command that a refusal names, with what was in unreadable lines filled in."""
    assert isinstance(error, ChargesMissing)
    charges: list[Spend] = []
    for option in error.options:
        if option == "RATE,SIGMA,STEPS":
            charges += unreadable or [NOTHING]
        elif "," in option:
            rate, noise, steps = option.split(",")
            charges.append(Spend(float(rate), float(noise), int(steps)))
    options = error.options
    study = options[options.index("--study") + 1] if "--study" in options else None
    return {"charges": charges, "spend_found": "--spend-found" in options, "study": study}


def restored_as_advised(
    path: Path, key: SigningKey, head: str, error: ConsiliumError, unreadable: list[Spend] | None = None
) -> Ledger:
    how = advised(error, unreadable or [])
    charges = how.pop("charges")
    return restored(path, key, head, *charges, **how)


def steps_of(spends: Iterable[Spend]) -> Counter[tuple[float, float]]:
    count: Counter[tuple[float, float]] = Counter()
    for spend in spends:
        count[spend.sample_rate, spend.noise_multiplier] += spend.steps
    return count


def steps(ledger: Ledger, study: str | None = None) -> Counter[tuple[float, float]]:
    return steps_of(ledger.spends(study))


def test_an_edited_line_does_not_wipe_out_what_stands_behind_it(path: Path, key: SigningKey) -> None:
    seen = filled(path, key).head
    edit(path, 3, b'"steps":10', b'"steps":11')
    error = refusal(path, key, seen, NOTHING)
    for words in ("0.1,1.5,51", "4 x 0.1,1.5,10 (demo)", "line 3", f"{0:064x}"):
        assert words in error.detail
    refusal(path, key, seen, nothing_lost=True)
    refusal(path, key, seen, spend_found=True)  # what the edited line was, the officer has to say
    refusal(path, key, seen, Spend(0.1, 1.5, 50))
    refusal(path, key, seen, Spend(0.1, 1.6, 51))  # more noise is less
    ledger = restored_as_advised(path, key, seen, error)
    ledger.check_head(seen)
    assert steps(ledger) == {(0.1, 1.5): 51, (0.2, 2.0): 7}
    # Each by itself and to its study: whoever knows the plans looks for their triples.
    assert ledger.spends("demo") == [*[TRAIN] * 4, Spend(0.1, 1.5, 11)]


@pytest.mark.parametrize("charge", [Spend(0.1, 1.5, 51), Spend(1.0, 1.5, 60), Spend(0.1, 1.0, 51)])
def test_an_officer_may_charge_it_by_hand_or_more(path: Path, key: SigningKey, charge: Spend) -> None:
    seen = filled(path, key).head
    edit(path, 3, b'"steps":10', b'"steps":11')
    assert restored(path, key, seen, charge).spends() == [HAND, charge]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    line=st.integers(0, 2 * ROUNDS + 1),
    place=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
    head=st.sampled_from(["kept", "lost"]),
)
def test_after_any_flipped_bit_what_the_refusal_advises_is_never_less_than_what_was_spent(
    tmp_path_factory: pytest.TempPathFactory, line: int, place: float, bit: int, head: str
) -> None:
    path, key = tmp_path_factory.mktemp("flip") / "population.jsonl", SigningKey.generate("alpha")
    ledger = filled(path, key)
    seen, spent = ledger.head, ledger.spends()
    lines = path.read_bytes().splitlines(keepends=True)
    changed = bytearray(lines[line])
    changed[int(place * len(changed))] ^= 1 << bit
    hit = lines[line : line + 1 + (not changed.endswith(b"\n"))]  # without a newline two lines are one
    truth = [spend for n, each in enumerate(hit, 1) if (spend := parse_line(each, n).spend) is not None]
    path.write_bytes(b"".join([*lines[:line], bytes(changed), *lines[line + 1 :]]))
    if head == "lost":
        path.with_suffix(".head").unlink()
    loss = Ledger.loss(path, "alpha", "population", key)
    assert loss.damaged and len(loss.hints) + loss.unknown <= 2
    if loss.found or loss.hints:
        error = refusal(path, key, seen, NOTHING)
        again = restored_as_advised(path, key, seen, error, truth)
    else:
        again = restored(path, key, seen, *(truth or [NOTHING]))
    again.check_head(seen)
    proven = steps_of(spent)
    if loss.hints:  # it may show less than it was: the officer is told to look it up
        proven -= steps_of(truth)
    assert proven <= steps_of(again.spends())


def test_after_a_change_of_key_nothing_is_lost_either(path: Path, key: SigningKey) -> None:
    ledger, new = filled(path, key), SigningKey.generate("alpha")
    ledger.rotate(new, **WHO)
    ledger.write_off(HAND, study="other", **WHO)
    seen = ledger.head
    edit(path, 4, b'"kind":"commit"', b'"kind":"comnit"')
    error = refusal(path, new, seen, NOTHING)
    again = restored_as_advised(path, new, seen, error)
    # The beginning is carried, the rest found: all of both keys.
    assert steps(again) == {(0.1, 1.5): 50, (0.2, 2.0): 14, (1.0, 10000.0): 1}
    assert steps(again, "other") == {(0.2, 2.0): 14} and steps(again, "demo") == {(0.1, 1.5): 50}
    Ledger(path, "alpha", "population", new).check_head(seen)


def test_a_line_that_is_there_twice_is_charged_once(path: Path, key: SigningKey) -> None:
    seen = filled(path, key).head
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:4], lines[2], *lines[4:], *lines[4:]]))
    again = restored(path, key, seen, spend_found=True)
    assert steps(again) == {(0.1, 1.5): 50, (0.2, 2.0): 7}


def test_another_lineages_ledger_in_its_place_is_not_charged_here(path: Path, key: SigningKey) -> None:
    seen = filled(path, key).head
    filled(path.with_name("children.jsonl"), key, "children")
    path.write_bytes(path.with_name("children.jsonl").read_bytes())
    error = refusal(path, key, seen, spend_found=True)
    assert error.options == ("--spend", "RATE,SIGMA,STEPS")  # type: ignore[attr-defined]
    assert restored(path, key, seen, HAND).spends() == [HAND]


def test_without_its_head_file_a_damaged_ledger_still_proves_its_lines(path: Path, key: SigningKey) -> None:
    seen = filled(path, key).head
    edit(path, 12, b'"entry"', b'"entri"')
    path.with_suffix(".head").unlink()
    refusal(path, key, seen, nothing_lost=True)  # one line cannot be read
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    refusal(path, key, seen, HAND)


def test_a_triple_that_nobody_could_compose_asks_the_officer_instead(path: Path, key: SigningKey) -> None:
    seen = filled(path, key).head
    edit(path, 3, b'"noise_multiplier":1.5', b'"noise_multiplier":0.001')
    error = refusal(path, key, seen, NOTHING)
    again = restored_as_advised(path, key, seen, error, [TRAIN])
    assert steps(again) == {(0.1, 1.5): 50, (0.2, 2.0): 7}


def test_restoring_what_is_found_again_says_that_there_is_nothing(path: Path, key: SigningKey) -> None:
    ledger = filled(path, key)
    seen, head = ledger.head, "e" * 64
    refusal(path, key, seen, spend_found=True)
    refusal(path, key, head, spend_found=True)  # a head that nobody knows, and no damage: nothing is found
    assert restored(path, key, head, HAND, spend_found=True).spends()[-1] == HAND


# --- crashes ---

EFFECTS = ("write", "pwrite", "fsync", "fdatasync", "replace", "ftruncate")


def _die_before(monkeypatch: pytest.MonkeyPatch, effect: int) -> None:
    """End whatever runs, as a signal's handler would, before its n-th effect on the disk."""
    count = 0
    for name in EFFECTS:
        real = getattr(os, name)

        def call(*arguments: Any, real: Any = real, **keywords: Any) -> Any:
            nonlocal count
            count += 1
            if count >= effect:  # nor does a clean-up get through
                raise KeyboardInterrupt
            return real(*arguments, **keywords)

        monkeypatch.setattr(os, name, call)


def test_a_restore_that_dies_at_any_moment_is_done_or_is_still_to_do(
    tmp_path: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = False
    for effect in range(1, 40):
        path = tmp_path / str(effect) / "population.jsonl"
        seen = filled(path, key).head
        edit(path, 4, b'"kind":"commit"', b'"kind":"comnit"')
        with monkeypatch.context() as patched:
            _die_before(patched, effect)
            try:
                restored(path, key, seen, NOTHING, spend_found=True)
                finished = True
            except KeyboardInterrupt:
                pass
        try:
            ledger = Ledger(path, "alpha", "population", key)
        except ConsiliumError as error:
            assert error.number == "E402" and not finished
            ledger = restored(path, key, seen, NOTHING, spend_found=True)
        ledger.check_head(seen)
        assert steps(ledger) == {(0.1, 1.5): 50, (0.2, 2.0): 7, (1.0, 10000.0): 1}, effect
        if finished:
            break
    assert finished and effect > 5


def test_all_that_is_found_can_be_charged_after_a_crash_too(
    tmp_path: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the head file was written already, one charge more is asked for: never one less."""
    finished = False
    for effect in range(1, 40):
        path = tmp_path / str(effect) / "population.jsonl"
        seen = filled(path, key).head
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join([*lines[:3], *lines[2:]]))
        with monkeypatch.context() as patched:
            _die_before(patched, effect)
            try:
                restored(path, key, seen, spend_found=True)
                finished = True
                break
            except KeyboardInterrupt:
                pass
        try:
            ledger = Ledger(path, "alpha", "population", key)
        except ConsiliumError:
            try:
                ledger = restored(path, key, seen, spend_found=True)
            except ChargesMissing as error:
                ledger = restored_as_advised(path, key, seen, error)
        ledger.check_head(seen)
        assert steps(ledger) - steps_of([NOTHING]) == {(0.1, 1.5): 50, (0.2, 2.0): 7}, effect
    assert finished and effect > 5


def test_several_charges_are_written_all_or_none_at_any_moment(
    tmp_path: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = set()
    for effect in range(1, 20):
        path = tmp_path / str(effect) / "population.jsonl"
        ledger = Ledger(path, "alpha", "population", key)
        with monkeypatch.context() as patched:
            _die_before(patched, effect)
            try:
                ledger.write_off(TRAIN, HAND, **WHO)
                break
            except KeyboardInterrupt:
                pass
        outcomes.add(tuple(Ledger(path, "alpha", "population", key).spends()))
        assert ledger.spends() == Ledger(path, "alpha", "population", key).spends()
    assert outcomes == {(), (TRAIN, HAND)} and ledger.spends() == [TRAIN, HAND]


class Stopped(BaseException):
    pass


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_exception_around_the_head_file_leaves_a_ledger_that_opens(
    path: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A handler of SIGTERM or a timeout raises wherever the program happens to be."""
    ledger = filled(path, key)
    write = ledger._chain._head.write
    before = ledger.length
    plan = {"study": "demo", "plan": "9" * 64, "purpose": "training"}

    def stopped(length: int, head: str) -> None:
        if moment == "after":
            write(length, head)
        raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(ledger._chain._head, "write", stopped)
        for attempt in (
            lambda: ledger.reserve(**plan, spend=TRAIN, epsilon_cap=50.0, delta=1e-4),
            lambda: ledger.write_off(HAND, **WHO),
        ):
            with pytest.raises(Stopped):
                attempt()
    counted = 2 if moment == "after" else 0
    assert ledger.length == before + counted, "what the head file names counts, at once"
    for each in (ledger, Ledger(path, "alpha", "population", key)):
        assert each.reserved("9" * 64) == (moment == "after")
        assert len(each.spends()) == ROUNDS + 1 + counted
    ledger.reserve(**plan, spend=TRAIN, epsilon_cap=50.0, delta=1e-4)
    assert len(ledger.spends()) == ROUNDS + 2 + (counted == 2)


# --- a charge of which no epsilon can be stated ---


def test_a_charge_that_would_end_all_accounting_is_refused_with_one_that_does_not(
    path: Path, key: SigningKey
) -> None:
    ledger = Ledger(path, "alpha", "population", key)
    with pytest.raises(ConsiliumError) as error:
        ledger.write_off(HAND, Spend(0.1, 0.06, 3), Spend(0.1, 0.04, 1), **WHO)
    assert error.value.number == "E417" and ledger.length == 1
    with pytest.raises(ConsiliumError) as error:
        ledger.write_off(Spend(0.1, 0.04, 1), **WHO)
    assert "--spend 1.0,0.04,1" in error.value.detail
    ledger.write_off(Spend(1.0, 0.04, 1), **WHO)
    assert 0 < epsilon(ledger.spends(), 1e-5) < epsilon(ledger.spends(), 1e-6) < float("inf")


def test_what_cannot_be_charged_at_all_ends_the_lineage_and_says_so(path: Path, key: SigningKey) -> None:
    ledger = filled(path, key)
    before = path.read_bytes()
    with pytest.raises(ConsiliumError) as error:
        ledger.write_off(Spend(0.1, 0.04, 1), **WHO)
    assert error.value.number == "E417" and "train no more" in error.value.detail
    seen = "e" * 64
    assert "no epsilon" in refusal(path, key, seen, Spend(0.1, 0.04, 1)).detail
    assert path.read_bytes() == before
