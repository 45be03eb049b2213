"""The ledger: one plan is paid once, nothing is ever forgotten, and any doubt means no training."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import time
from datetime import datetime, tzinfo
from pathlib import Path

import pytest

from contracts.errors import ConsiliumError
from contracts.ledger import LedgerOpening
from contracts.signing import SigningKey
from privacy.accountant import Spend, epsilon
from privacy.chain import replay
from privacy.ledger import Ledger

SPEND = Spend(sample_rate=0.1, noise_multiplier=1.5, steps=10)
DELTA = 1e-4


@pytest.fixture
def key() -> SigningKey:
    return SigningKey.generate("alpha")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger" / "population.jsonl"


def opened(path: Path, key: SigningKey) -> Ledger:
    return Ledger(path, "alpha", "population", key)


def plan(number: int) -> str:
    return f"{number:064x}"


def reserve(ledger: Ledger, number: int, study: str = "demo", cap: float = 50.0, **changes):
    return ledger.reserve(
        **{
            "study": study,
            "plan": plan(number),
            "purpose": "training",
            "spend": SPEND,
            "epsilon_cap": cap,
            "delta": DELTA,
        }
        | changes
    )


def number_of(error: pytest.ExceptionInfo[ConsiliumError]) -> str:
    return error.value.number


def test_a_plan_is_paid_once_however_often_it_is_asked_for(path: Path, key: SigningKey) -> None:
    ledger = opened(path, key)
    first = reserve(ledger, 1)
    ledger.commit(plan(1))
    ledger.commit(plan(1))
    assert reserve(opened(path, key), 1) == first
    assert ledger.spends() == [SPEND]
    assert [s.document["kind"] for s, _ in ledger.entries()] == ["genesis", "reserve", "commit"]


def test_a_reservation_counts_for_ever_without_a_commit(path: Path, key: SigningKey) -> None:
    reserve(opened(path, key), 1)
    assert opened(path, key).spends() == [SPEND]


def test_a_plan_cannot_be_answered_again_with_less_noise(path: Path, key: SigningKey) -> None:
    ledger = opened(path, key)
    reserve(ledger, 1)
    for other in (Spend(0.1, 0.5, 10), Spend(0.1, 1.5, 11), Spend(0.2, 1.5, 10)):
        with pytest.raises(ConsiliumError) as error:
            reserve(ledger, 1, spend=other)
        assert number_of(error) == "E411"
    with pytest.raises(ConsiliumError) as error:
        reserve(ledger, 1, study="other")
    assert number_of(error) == "E411"


def test_the_cap_holds_over_all_studies_and_what_is_still_planned(path: Path, key: SigningKey) -> None:
    three = epsilon([SPEND] * 3, DELTA)
    ledger = opened(path, key)
    reserve(ledger, 1, cap=three, projected=[SPEND] * 2)
    reserve(ledger, 2, study="another", cap=three, projected=[SPEND])
    reserve(ledger, 3, cap=three)  # exactly at the cap, to the last bit
    for kwargs in ({"cap": three}, {"cap": 1.1 * three, "projected": [SPEND] * 9}, {"cap": float("nan")}):
        with pytest.raises(ConsiliumError) as error:
            reserve(ledger, 4, study="third", **kwargs)
        assert number_of(error) == "E401"
    assert len(ledger.spends()) == 3 and ledger.spends("demo") == [SPEND] * 2
    assert reserve(ledger, 3, cap=0.1).sequence == 3  # paid already: the cap is not asked again


def test_a_refused_reservation_leaves_the_file_as_it_was(path: Path, key: SigningKey) -> None:
    ledger = opened(path, key)
    before = path.read_bytes()
    with pytest.raises(ConsiliumError):
        reserve(ledger, 1, cap=0.01)
    assert path.read_bytes() == before


def test_replaying_the_triples_alone_gives_the_same_epsilon(path: Path, key: SigningKey) -> None:
    ledger = opened(path, key)
    for i in range(4):
        reserve(ledger, i, spend=Spend(0.1, 1.5 + i, 10))
    shown = b"".join(
        json.dumps({"entry": json.loads(line)["entry"]}).encode() + b"\n"
        for line in path.read_bytes().splitlines()
    )
    assert b"demo" not in shown and plan(1).encode() not in shown
    records, tail = replay(shown, key.public)
    triples = [r.entry for r in records if r.entry.kind == "reserve"]
    assert tail == 0 and records[-1].digest == ledger.head
    assert epsilon(ledger.spends(), DELTA) == epsilon(
        [Spend(e.sample_rate, e.noise_multiplier, e.steps) for e in triples], DELTA
    )


def damaged(path: Path, what: str) -> None:
    """Do one thing to the ledger's files that must not go unnoticed."""
    head = path.with_suffix(".head")
    lines = path.read_bytes().splitlines(keepends=True)
    if what == "ledger deleted":
        path.unlink()
    elif what == "ledger emptied":
        path.write_bytes(b"")
    elif what == "last entry removed":
        path.write_bytes(b"".join(lines[:-1]))
    elif what == "last newline removed":
        path.write_bytes(path.read_bytes()[:-1])
    elif what == "first entry removed":
        path.write_bytes(b"".join(lines[1:]))
    elif what == "entry removed from the middle":
        path.write_bytes(lines[0] + lines[2] + lines[3])
    elif what == "entries swapped":
        path.write_bytes(lines[0] + lines[2] + lines[1] + lines[3])
    elif what == "noise enlarged":
        path.write_bytes(path.read_bytes().replace(b'"noise_multiplier":1.5', b'"noise_multiplier":9.5'))
    elif what == "opening exchanged":
        path.write_bytes(path.read_bytes().replace(plan(1).encode(), plan(9).encode()))
    elif what == "opening removed":
        line = json.loads(lines[1])
        line["opening"] = None
        path.write_bytes(lines[0] + json.dumps(line).encode() + b"\n" + lines[2] + lines[3])
    elif what == "head deleted":
        head.unlink()
    elif what == "head emptied":
        head.write_bytes(b"")
    elif what == "no text":
        path.write_bytes(bytes(range(256)) + b"\n")
    elif what == "unreadable":
        path.unlink()
        path.mkdir()
    elif what == "line duplicated":
        path.write_bytes(b"".join(lines) + lines[-1])
    elif what == "link in its place":
        path.rename(path.with_suffix(".real"))
        path.symlink_to(path.with_suffix(".real"))
    elif what == "pipe in its place":
        path.unlink()
        os.mkfifo(path)
    elif what == "head torn":
        head.write_bytes(head.read_bytes()[:40])
    elif what == "head ahead":
        head.write_text(json.dumps({"length": 5, "head": "f" * 64}))
    elif what == "head of another entry":
        head.write_text(json.dumps({"length": 4, "head": "f" * 64}))
    elif what == "head negative":
        head.write_text(json.dumps({"length": -1, "head": "f" * 64}))
    elif what == "head is a folder":
        head.unlink()
        head.mkdir()
    elif what == "head is a link":
        head.rename(head.with_suffix(".real"))
        head.symlink_to(head.with_suffix(".real"))


@pytest.mark.parametrize(
    "what",
    [
        "ledger deleted",
        "ledger emptied",
        "last entry removed",
        "last newline removed",
        "first entry removed",
        "entry removed from the middle",
        "entries swapped",
        "noise enlarged",
        "opening exchanged",
        "opening removed",
        "head deleted",
        "head emptied",
        "no text",
        "unreadable",
        "line duplicated",
        "link in its place",
        "pipe in its place",
        "head torn",
        "head ahead",
        "head of another entry",
        "head negative",
        "head is a folder",
        "head is a link",
    ],
)
def test_a_damaged_ledger_is_never_an_empty_budget(path: Path, key: SigningKey, what: str) -> None:
    ledger = opened(path, key)
    for i in range(3):
        reserve(ledger, i)
    damaged(path, what)
    for attempt in (
        lambda: opened(path, key),
        ledger.spends,
        ledger.verify,
        lambda: reserve(ledger, 7),
        lambda: reserve(ledger, 1),
    ):
        with pytest.raises(ConsiliumError) as error:
            attempt()
        assert number_of(error) == "E402"


def test_every_changed_byte_is_noticed(path: Path, key: SigningKey) -> None:
    ledger = opened(path, key)
    reserve(ledger, 1)
    good = path.read_bytes()
    for position in range(0, len(good), 23):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        with pytest.raises(ConsiliumError) as error:
            opened(path, key)
        assert number_of(error) == "E402"
    path.write_bytes(good)
    ledger.verify()


def test_another_hospitals_key_does_not_open_a_ledger(path: Path, key: SigningKey) -> None:
    reserve(opened(path, key), 1)
    with pytest.raises(ConsiliumError) as error:
        opened(path, SigningKey.generate("alpha"))
    assert number_of(error) == "E402"


@pytest.mark.parametrize("other", ["site", "lineage"])
def test_a_genuine_ledger_of_another_site_or_lineage_does_not_stand_in(
    path: Path, key: SigningKey, tmp_path: Path, other: str
) -> None:
    reserve(opened(path, key), 1)
    stranger = tmp_path / "other" / path.name
    if other == "site":
        Ledger(stranger, "beta", "population", SigningKey.generate("beta"))
    else:
        Ledger(stranger, "alpha", "elsewhere", key)
    for suffix in (".jsonl", ".head"):
        shutil.copy(stranger.with_suffix(suffix), path.with_suffix(suffix))
    with pytest.raises(ConsiliumError) as error:
        opened(path, key)
    assert number_of(error) == "E402" and f"line 1: {other} does not verify" in str(error.value)


def test_an_older_copy_put_back_under_an_open_ledger_is_noticed_at_once(
    path: Path, key: SigningKey, tmp_path: Path
) -> None:
    ledger = opened(path, key)
    shutil.copytree(path.parent, tmp_path / "backup")
    reserve(ledger, 1)
    shutil.rmtree(path.parent)
    shutil.copytree(tmp_path / "backup", path.parent)
    for attempt in (ledger.spends, lambda: reserve(ledger, 2)):
        with pytest.raises(ConsiliumError) as error:
            attempt()
        assert number_of(error) == "E402"


def test_an_open_ledger_verifies_an_entry_once_and_reads_what_others_append(
    path: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    import privacy.chain

    verified = []
    whole = privacy.chain.verify_bytes
    monkeypatch.setattr("privacy.chain.verify_bytes", lambda *a: verified.append(1) or whole(*a))
    ledger, other = opened(path, key), opened(path, key)
    del verified[:]
    for i in range(10):
        reserve(ledger, i)
    assert ledger.spends() == [SPEND] * 10 and verified == []
    assert other.spends() == [SPEND] * 10 and len(verified) == 10


@pytest.mark.parametrize("share", [None, 0.05])
def test_the_share_of_the_quantile_is_part_of_what_was_reserved(
    path: Path, key: SigningKey, share: float | None
) -> None:
    ledger = opened(path, key)
    assert reserve(ledger, 1, quantile_share=share).quantile_share == share
    assert reserve(opened(path, key), 1, quantile_share=share).sequence == 1
    with pytest.raises(ConsiliumError) as error:
        reserve(ledger, 1, quantile_share=0.1)
    assert number_of(error) == "E411"
    assert ledger.spends() == [SPEND]  # it costs nothing more


def test_a_clock_that_goes_back_moves_no_entry_before_another(
    path: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(datetime):
        hours = iter([12, 3, 1, 20, 0])

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime(2026, 5, 1, next(cls.hours), tzinfo=tz)

    monkeypatch.setattr("privacy.ledger.datetime", Clock)
    ledger = opened(path, key)
    for i in range(4):
        reserve(ledger, i)
    times = [opening.time for _, opening in ledger.entries()]
    assert [time[11:13] for time in times] == ["12", "12", "12", "20", "20"]
    assert opened(path, key).length == 5


def test_an_older_copy_of_all_files_is_found_out_by_the_head_that_was_seen(
    path: Path, key: SigningKey, tmp_path: Path
) -> None:
    ledger = opened(path, key)
    reserve(ledger, 1)
    shutil.copytree(path.parent, tmp_path / "backup")
    reserve(ledger, 2)
    seen = ledger.head
    ledger.check_head(seen)
    reserve(ledger, 3)
    ledger.check_head(seen)  # an earlier head of a longer chain is no rollback
    shutil.rmtree(path.parent)
    shutil.copytree(tmp_path / "backup", path.parent)
    with pytest.raises(ConsiliumError) as error:
        opened(path, key).check_head(seen)
    assert number_of(error) == "E407"
    shutil.rmtree(path.parent)  # and so is one begun anew
    with pytest.raises(ConsiliumError) as error:
        opened(path, key).check_head(seen)
    assert number_of(error) == "E407"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_a_line_that_was_torn_before_it_was_acknowledged_is_cut_off(
    path: Path, key: SigningKey, share: float
) -> None:
    ledger = opened(path, key)
    reserve(ledger, 1)
    good, head = path.read_bytes(), ledger.head
    reserve(ledger, 2)
    line = path.read_bytes()[len(good) :]
    torn = line[: max(1, int(share * (len(line) - 1)))]
    path.write_bytes(good + torn)
    path.with_suffix(".head").write_text(json.dumps({"length": 2, "head": head}))
    again = opened(path, key)
    assert path.read_bytes() == good and again.spends() == [SPEND]
    reserve(again, 3)
    assert opened(path, key).length == 3


def test_an_entry_whose_writer_died_before_it_could_answer_counts(path: Path, key: SigningKey) -> None:
    ledger = opened(path, key)
    head = ledger.head
    reserve(ledger, 1)
    path.with_suffix(".head").write_text(json.dumps({"length": 1, "head": head}))
    assert opened(path, key).spends() == [SPEND]
    damaged(path, "last entry removed")  # from now on it may not disappear
    with pytest.raises(ConsiliumError):
        opened(path, key)


def _reserve_until_killed(path: Path, key: SigningKey, worker: int) -> None:
    ledger = opened(path, key)
    for i in range(10_000):
        reserve(ledger, 10_000 * worker + i, cap=1e9, spend=Spend(1.0, 100.0, 1))


def test_a_writer_killed_at_any_moment_leaves_a_ledger_that_opens(path: Path, key: SigningKey) -> None:
    opened(path, key)
    context = multiprocessing.get_context("fork")
    length = 1
    for worker in range(6):
        process = context.Process(target=_reserve_until_killed, args=(path, key, worker))
        process.start()
        deadline = time.monotonic() + 30
        while path.read_bytes().count(b"\n") < length + 2 + worker and time.monotonic() < deadline:
            pass
        process.kill()
        process.join()
        acknowledged = json.loads(path.with_suffix(".head").read_bytes())["length"]
        after = opened(path, key)
        assert after.length >= acknowledged > length
        length = after.length


def _reserve_many(path: Path, key: SigningKey, first: int, last: int) -> None:
    ledger = opened(path, key)
    for i in range(first, last):
        reserve(ledger, i, spend=Spend(1.0, 100.0, 1))


def test_two_processes_at_once_pay_for_every_plan_once(path: Path, key: SigningKey) -> None:
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_reserve_many, args=(path, key, first, first + 20)) for first in (0, 10)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    ledger = opened(path, key)
    ledger.verify()
    plans = [opening.plan for _, opening in ledger.entries() if opening and opening.plan]
    assert sorted(plans) == [plan(i) for i in range(30)]


def _reserve_on_a_small_disk(path: Path, key: SigningKey, room: int, result: Path) -> None:
    ledger = opened(path, key)
    size = path.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, resource.RLIM_INFINITY))
    try:
        reserve(ledger, 2)
        outcome = "reserved"
    except ConsiliumError as error:
        outcome = error.number
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    result.write_text(outcome)


@pytest.mark.parametrize("room", [0, 1, 300])
def test_a_full_disk_refuses_and_leaves_nothing_half_written(
    path: Path, key: SigningKey, tmp_path: Path, room: int
) -> None:
    reserve(opened(path, key), 1)
    before = path.read_bytes()
    process = multiprocessing.get_context("fork").Process(
        target=_reserve_on_a_small_disk, args=(path, key, room, tmp_path / "result")
    )
    process.start()
    process.join(60)
    assert (tmp_path / "result").read_text() == "E402"
    assert path.read_bytes() == before
    reserve(opened(path, key), 2)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_refuses(path: Path, key: SigningKey) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o500)
    with pytest.raises(ConsiliumError) as error:
        opened(path, key)
    assert number_of(error) == "E402"


def test_a_lock_that_is_never_released_refuses(
    path: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, other = opened(path, key), opened(path, key)
    monkeypatch.setattr("privacy.chainfile._LOCK_SECONDS", 0.05)
    with ledger._chain.locked(), pytest.raises(ConsiliumError) as error:
        reserve(other, 1)
    assert number_of(error) == "E402" and ledger.spends() == []


def test_what_was_spent_on_is_hidden_by_a_salted_commitment(path: Path, key: SigningKey) -> None:
    ledger = opened(path, key)
    reserve(ledger, 1)
    signed, opening = ledger.entries()[1]
    assert isinstance(opening, LedgerOpening) and opening.study == "demo" and opening.purpose == "training"
    assert "demo" not in json.dumps(signed.document)
    assert opening.salt != ledger.entries()[0][1].salt
