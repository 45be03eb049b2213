"""What a privacy officer decides is an entry like any other: a new key, a charge, a restored ledger."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from contracts.errors import ConsiliumError
from contracts.ledger import LedgerEntry
from contracts.signing import SigningKey
from privacy.accountant import Spend, epsilon
from privacy.chain import History, Record, acceptance_bytes, parse_line, read_history, replay
from privacy.ledger import Ledger

SPEND, CHARGE = Spend(0.1, 1.5, 10), Spend(0.2, 2.0, 7)
WHO = {"officer": "Dr. A. Smith", "reason": "a laptop was stolen"}


@pytest.fixture
def key() -> SigningKey:
    return SigningKey.generate("alpha")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger" / "population.jsonl"


def opened(path: Path, key: SigningKey) -> Ledger:
    return Ledger(path, "alpha", "population", key)


def reserve(ledger: Ledger, number: int, study: str = "demo", spend: Spend = SPEND) -> LedgerEntry:
    plan = {"study": study, "plan": f"{number:064x}", "purpose": "training"}
    return ledger.reserve(**plan, spend=spend, epsilon_cap=50.0, delta=1e-4)


def refused(number: str, attempt: Callable[[], object]) -> str:
    with pytest.raises(ConsiliumError) as error:
        attempt()
    assert error.value.number == number, error.value
    return error.value.detail


def kinds(ledger: Ledger) -> list[str]:
    return [signed.document["kind"] for signed, _ in ledger.entries()]


# --- rotate ---


def test_after_a_rotation_only_the_new_key_signs_and_nothing_spent_is_forgotten(
    path: Path, key: SigningKey
) -> None:
    new, newer = SigningKey.generate("alpha"), SigningKey.generate("alpha")
    ledger = opened(path, key)
    reserve(ledger, 1)
    ledger.rotate(new, **WHO)
    reserve(ledger, 2)
    reserve(opened(path, new), 3)
    opened(path, new).rotate(newer, **WHO)
    assert opened(path, newer).spends() == [SPEND] * 3
    for old in (key, new):
        assert "rotate" in refused("E402", lambda old=old: opened(path, old))
    refused("E402", ledger.spends)  # open in another process while the key changed
    signers = [signed.key for signed, _ in opened(path, newer).entries()]
    assert signers == [key.public] * 3 + [new.public] * 3


def test_whoever_trusts_one_key_that_signed_may_verify_and_nobody_else(path: Path, key: SigningKey) -> None:
    new = SigningKey.generate("alpha")
    ledger = opened(path, key)
    ledger.rotate(new, **WHO)
    data = path.read_bytes()
    for trusted in (key, new):
        records, _ = replay(data, trusted.public)
        assert records[-1].digest == ledger.head
    refused("E402", lambda: replay(data, SigningKey.generate("alpha").public))


def test_a_key_that_is_merely_named_vouches_for_nothing(path: Path, key: SigningKey) -> None:
    """Somebody without the site's key writes a ledger of their own and hands it over to that key."""
    thief = SigningKey.generate("alpha")
    forged = opened(path, thief)
    forged.rotate(SigningKey.generate("alpha"), **WHO)
    lines = path.read_bytes().splitlines(keepends=True)
    record = parse_line(lines[1], 2)
    for acceptance in (record.entry.acceptance, thief.sign_bytes(b"x"), None):
        fields = record.entry.model_dump() | {"new_key": key.public, "acceptance": acceptance}
        signed = thief.sign(LedgerEntry.model_validate(fields))
        line = Record(signed, record.entry, record.opening, signed.digest).line()
        assert "rotation" in refused("E402", lambda line=line: replay(lines[0] + line, key.public))
        path.write_bytes(lines[0] + line)
        refused("E402", lambda: opened(path, key))


def test_a_retired_key_never_comes_back_and_a_key_is_the_sites_own(path: Path, key: SigningKey) -> None:
    new = SigningKey.generate("alpha")
    ledger = opened(path, key)
    refused("E417", lambda: ledger.rotate(key, **WHO))
    refused("E417", lambda: ledger.rotate(SigningKey.generate("beta"), **WHO))
    ledger.rotate(new, **WHO)
    refused("E417", lambda: ledger.rotate(key, **WHO))
    # Nor by hand: an entry that goes back to it does not verify.
    history, _ = read_history(path.read_bytes(), key.public)
    place = {"sequence": 2, "previous": history.head(), "site": "alpha", "lineage": "population"}
    entry = LedgerEntry(**place, kind="rotate", new_key=key.public, commitment="0" * 64)
    entry = entry.model_copy(update={"acceptance": key.sign_bytes(acceptance_bytes(entry))})
    signed = new.sign(entry)
    refused("E402", lambda: history.add(Record(signed, entry, None, signed.digest)))


def test_a_rotation_torn_at_any_byte_opens_with_one_of_the_two_keys(path: Path, key: SigningKey) -> None:
    new = SigningKey.generate("alpha")
    ledger = opened(path, key)
    reserve(ledger, 1)
    before, head = path.read_bytes(), path.with_suffix(".head").read_bytes()
    ledger.rotate(new, **WHO)
    line = path.read_bytes()[len(before) :]
    for cut in [*range(0, len(line), 19), len(line) - 1, len(line)]:
        path.write_bytes(before + line[:cut])
        path.with_suffix(".head").write_bytes(head)
        in_force, other = (new, key) if cut == len(line) else (key, new)
        refused("E402", lambda other=other: opened(path, other))
        assert opened(path, in_force).spends() == [SPEND]


# --- write-off ---


def test_a_write_off_counts_for_ever_and_for_its_study_alone(path: Path, key: SigningKey) -> None:
    ledger = opened(path, key)
    reserve(ledger, 1)
    ledger.write_off(CHARGE, **WHO)
    ledger.write_off(CHARGE, study="demo", **WHO)
    again = opened(path, key)
    assert again.spends() == [SPEND, CHARGE, CHARGE] and again.spends("demo") == [SPEND, CHARGE]
    assert again.spends("other") == []
    cap = epsilon([SPEND, CHARGE, CHARGE], 1e-4)  # it counts in what is refused
    plan = {"study": "demo", "plan": "9" * 64, "purpose": "training", "delta": 1e-4}
    refused("E401", lambda: again.reserve(**plan, spend=SPEND, epsilon_cap=cap))
    _, opening = again.entries()[2]
    assert opening.officer == WHO["officer"] and opening.reason == WHO["reason"]
    shown = b"".join(record.line(with_opening=False) for record in replay(path.read_bytes(), key.public)[0])
    assert b"Smith" not in shown and b"laptop" not in shown


def test_no_cap_refuses_what_happened_already(path: Path, key: SigningKey) -> None:
    ledger = opened(path, key)
    ledger.write_off(Spend(1.0, 0.5, 1000), **WHO)
    assert epsilon(ledger.spends(), 1e-4) > 100


@pytest.mark.parametrize(
    "wrong",
    [{"officer": ""}, {"officer": "x" * 101}, {"reason": ""}, {"reason": "x" * 501}, {"study": "N O"}],
)
def test_a_decision_names_who_and_why(path: Path, key: SigningKey, wrong: dict[str, str]) -> None:
    ledger = opened(path, key)
    before = path.read_bytes()
    refused("E417", lambda: ledger.write_off(CHARGE, **(WHO | wrong)))
    assert path.read_bytes() == before


# --- restore ---


def restored(path: Path, key: SigningKey, lost_head: str, charges: list[Spend] | None = None) -> Ledger:
    return Ledger.restored(
        path,
        "alpha",
        "population",
        key,
        lost_head=lost_head,
        charges=[CHARGE] if charges is None else charges,
        **WHO,
    )


def lose(path: Path, how: str, backup: Path) -> None:
    """Damage a ledger whose copy of two entries ago is `backup`."""
    head, lines = path.with_suffix(".head"), path.read_bytes().splitlines(keepends=True)
    if how == "everything":
        shutil.rmtree(path.parent)
    elif how == "the ledger but not its head":
        path.unlink()
    elif how == "the head":
        head.unlink()
    elif how == "the head, torn":
        head.write_bytes(b"{" + bytes(300))
    elif how == "an old copy of both":
        shutil.rmtree(path.parent)
        shutil.copytree(backup, path.parent)
    elif how == "an old copy of the ledger":
        shutil.copy(backup / path.name, path)
    elif how == "a byte in the middle":
        lines[-2] = lines[-2].replace(b'"steps":10', b'"steps":11')
        path.write_bytes(b"".join(lines))
    elif how == "an opening":
        lines[-1] = parse_line(lines[-1], 1).line(with_opening=False)
        path.write_bytes(b"".join(lines))
    elif how == "the beginning":
        path.write_bytes(b"".join(lines[1:]))


@pytest.mark.parametrize(
    "how",
    [
        "everything",
        "the ledger but not its head",
        "the head",
        "the head, torn",
        "an old copy of both",
        "an old copy of the ledger",
        "a byte in the middle",
        "an opening",
        "the beginning",
    ],
)
def test_after_a_loss_a_restore_answers_for_the_head_that_was_seen(
    path: Path, key: SigningKey, tmp_path: Path, how: str
) -> None:
    ledger = opened(path, key)
    reserve(ledger, 1)
    shutil.copytree(path.parent, tmp_path / "backup")
    reserve(ledger, 2)
    reserve(ledger, 3)
    seen = ledger.head
    lose(path, how, tmp_path / "backup")
    damaged = path.read_bytes() if path.exists() else b""

    lost = {"a byte in the middle": [SPEND, Spend(0.1, 1.5, 11)], "the beginning": [SPEND] * 3}
    charges = lost.get(how, [SPEND, SPEND])
    again = restored(path, key, seen, charges)
    again.check_head(seen)
    again = opened(path, key)
    again.check_head(seen)
    refused("E407", lambda: again.check_head("f" * 64))  # a head that nobody named
    assert kinds(again)[-3:] == ["write-off", "write-off", "restore"]
    kept = [s for s in kinds(again) if s == "reserve"]
    assert again.spends() == [*[SPEND] * len(kept), *charges]
    reserve(again, 9)
    if damaged and not path.read_bytes().startswith(damaged):  # what was cut off is still there to look at
        assert path.with_suffix(".damaged-1").read_bytes() == damaged


def test_a_restore_fails_closed(path: Path, key: SigningKey, tmp_path: Path) -> None:
    ledger = opened(path, key)
    seen = ledger.head
    refused("E417", lambda: restored(path, key, "e" * 64, []))  # neither charges nor a statement
    arguments = (path, "alpha", "population", key)
    both = {"charges": [CHARGE], "nothing_lost": True, "lost_head": "e" * 64}
    refused("E417", lambda: Ledger.restored(*arguments, **both, **WHO))
    refused("E417", lambda: restored(path, key, seen))  # nothing is wrong
    assert opened(path, key).length == 1
    reserve(ledger, 1)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0])  # the head file proves that an entry is lost
    none = {"charges": [], "nothing_lost": True, "lost_head": ledger.head}
    refused("E417", lambda: Ledger.restored(*arguments, **none, **WHO))
    refused("E402", lambda: opened(path, key))  # and still does
    assert path.read_bytes() == lines[0]


def test_nothing_lost_is_a_statement_with_a_name(path: Path, key: SigningKey, tmp_path: Path) -> None:
    ledger = opened(path, key)
    shutil.copytree(path.parent, tmp_path / "backup")
    reserve(ledger, 1)
    seen = ledger.head
    lose(path, "an old copy of both", tmp_path / "backup")
    again = Ledger.restored(
        path, "alpha", "population", key, lost_head=seen, charges=[], nothing_lost=True, **WHO
    )
    again.check_head(seen)
    assert kinds(again) == ["genesis", "restore"] and again.entries()[1][1].officer == WHO["officer"]


def test_a_restore_torn_at_any_byte_loses_no_charge_and_repeating_it_charges_once(
    path: Path, key: SigningKey
) -> None:
    charges = [CHARGE, CHARGE, SPEND]
    reserve(opened(path, key), 1)
    before, head = path.read_bytes(), path.with_suffix(".head").read_bytes()
    lost = "e" * 64
    restored(path, key, lost, charges)
    lines = path.read_bytes()[len(before) :]
    ends = [i for i, byte in enumerate(lines) if byte == 0x0A]
    for cut in sorted({*range(0, len(lines), 67), *ends, *(e + 1 for e in ends)}):
        path.write_bytes(before + lines[:cut])
        path.with_suffix(".head").write_bytes(head)
        ledger = opened(path, key)
        if cut < len(lines):
            refused("E407", lambda ledger=ledger: ledger.check_head(lost))
            ledger = restored(path, key, lost, charges)
        ledger.check_head(lost)
        assert sorted(ledger.spends()) == sorted([SPEND, *charges])
        assert kinds(ledger).count("restore") == 1


def test_a_second_loss_under_the_same_head_is_charged_anew(path: Path, key: SigningKey) -> None:
    reserve(opened(path, key), 1)
    lost = "e" * 64
    restored(path, key, lost)
    copy = path.read_bytes()
    reserve(opened(path, key), 2)
    path.write_bytes(copy)  # the head file knows of one entry more
    assert restored(path, key, lost).spends() == [SPEND, CHARGE, CHARGE]


@pytest.mark.parametrize("how", ["an old copy of both", "an old copy of the ledger"])
def test_what_was_spent_before_a_change_of_key_is_carried_into_a_new_ledger(
    path: Path, key: SigningKey, tmp_path: Path, how: str
) -> None:
    ledger, new = opened(path, key), SigningKey.generate("alpha")
    reserve(ledger, 1)
    shutil.copytree(path.parent, tmp_path / "backup")
    ledger.rotate(new, **WHO)
    reserve(ledger, 2)
    seen = ledger.head
    lose(path, how, tmp_path / "backup")
    restored(path, new, seen)
    again = opened(path, new)
    again.check_head(seen)
    assert kinds(again) == ["genesis", "write-off", "write-off", "restore"]
    assert again.spends() == [SPEND, CHARGE]
    assert path.with_suffix(".damaged-1").exists()


def test_a_restore_during_a_change_of_key_sets_no_good_ledger_aside(path: Path, key: SigningKey) -> None:
    opened(path, key).rotate(SigningKey.generate("alpha"), **WHO)
    before = path.read_bytes()
    assert "rotate" in refused("E402", lambda: restored(path, key, "e" * 64))
    assert path.read_bytes() == before and not path.with_suffix(".damaged-1").exists()


# --- the public core ---


def test_a_field_that_does_not_belong_to_its_kind_does_not_verify(key: SigningKey) -> None:
    place = {"sequence": 0, "previous": "0" * 64, "site": "alpha", "lineage": "population"}
    triple = {"mechanism": "subsampled-gaussian", "sample_rate": 0.1, "noise_multiplier": 1.5, "steps": 1}
    history = History()
    signed = key.sign(LedgerEntry(**place, kind="genesis", commitment="0" * 64))
    history.add(parse_line(json.dumps({"entry": signed.model_dump()}).encode(), 1))
    place |= {"sequence": 1, "previous": history.head()}
    for wrong in (
        {"kind": "commit", **triple},
        {"kind": "restore", "lost_head": "e" * 64, **triple},
        {"kind": "restore"},
        {"kind": "reserve", **triple, "lost_head": "e" * 64},
        {"kind": "reserve", **triple, "new_key": key.public},
        {"kind": "write-off"},
        {"kind": "write-off", **triple, "quantile_share": 0.1},
        {"kind": "commit", "quantile_share": 0.1},
        {"kind": "rotate"},
        {"kind": "genesis"},
    ):
        signed = key.sign(LedgerEntry(**place, commitment="0" * 64, **wrong))
        line = json.dumps({"entry": signed.model_dump()}).encode()
        refused("E402", lambda line=line: history.add(parse_line(line, 2)))
