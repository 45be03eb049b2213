"""An excerpt replays the whole lineage and tells of one study alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts.errors import ConsiliumError
from contracts.signing import SigningKey
from privacy.accountant import Spend, epsilon
from privacy.chain import replay
from privacy.excerpt import read_excerpt
from privacy.ledger import Ledger

STATISTICS, TRAINING, CHARGE = Spend(1.0, 9.0, 1), Spend(0.1, 1.5, 10), Spend(0.2, 2.0, 7)
WHO = {"officer": "Dr. A. Smith", "reason": "tried by hand"}
SECRETS = ("hidden-study", "secret-purpose", "Smith", "by hand", f"{77:064x}")


@pytest.fixture
def key() -> SigningKey:
    return SigningKey.generate("alpha")


def filled(path: Path, key: SigningKey) -> tuple[Ledger, SigningKey]:
    """A ledger of two studies with one of each decision; and the key in force."""
    ledger = Ledger(path, "alpha", "population", key)
    for number, study, purpose, spend in (
        (1, "demo", "statistics", STATISTICS),
        (77, "hidden-study", "secret-purpose", TRAINING),
        (2, "demo", "training", TRAINING),
        (3, "demo", "training", TRAINING),
    ):
        plan = {"study": study, "plan": f"{number:064x}", "purpose": purpose}
        share = 0.05 if number == 3 else None
        ledger.reserve(**plan, spend=spend, epsilon_cap=50.0, delta=1e-4, quantile_share=share)
        if number != 3:
            ledger.commit(f"{number:064x}")
    ledger.write_off(CHARGE, study="demo", **WHO | {"officer": "O", "reason": "R"})
    ledger.write_off(CHARGE, study="hidden-study", **WHO)
    new = SigningKey.generate("alpha")
    ledger.rotate(new, **WHO)
    lost = {"lost_head": "e" * 64, "charges": [CHARGE]}
    return Ledger.restored(path, "alpha", "population", new, **lost, **WHO), new


def test_an_excerpt_has_the_head_and_the_epsilon_of_the_ledger_and_names_one_study(
    tmp_path: Path, key: SigningKey
) -> None:
    ledger, new = filled(tmp_path / "population.jsonl", key)
    data = ledger.excerpt("demo")
    for public in (key.public, new.public):
        records, unfinished = replay(data, public)
        assert records[-1].digest == ledger.head and unfinished == 0
        found = read_excerpt(data, public)
    assert (found.site, found.lineage, found.study) == ("alpha", "population", "demo")
    assert (found.head, found.length, len(found.heads)) == (ledger.head, ledger.length, ledger.length)
    assert list(found.spends) == ledger.spends() and list(found.study_spends) == ledger.spends("demo")
    assert epsilon(found.spends, 1e-4) == epsilon(ledger.spends(), 1e-4)
    assert found.by_purpose == {
        "statistics": (STATISTICS,),
        "training": (TRAINING, TRAINING),
        "write-off": (CHARGE,),
    }
    plans = {r.plan[-1]: (r.purpose, r.spend, r.quantile_share, r.committed) for r in found.reservations}
    assert plans == {
        "1": ("statistics", STATISTICS, None, True),
        "2": ("training", TRAINING, None, True),
        "3": ("training", TRAINING, 0.05, False),
    }
    assert (found.rotations, found.restores, found.write_offs) == (1, 1, 3)
    assert found.keys == (key.public, new.public) and found.lost_heads == ("e" * 64,)


def test_an_excerpt_reveals_nothing_of_another_study(tmp_path: Path, key: SigningKey) -> None:
    ledger, _ = filled(tmp_path / "population.jsonl", key)
    whole = (tmp_path / "population.jsonl").read_text()
    shown = ledger.excerpt("demo").decode()
    for secret in SECRETS:
        assert secret in whole and secret not in shown
    # What is shown of an entry that is not opened: its place, its kind and its triple, and nothing else.
    for line in shown.splitlines():
        value = json.loads(line)
        if "opening" not in value:
            assert set(value) == {"entry"}
            assert set(value["entry"]) == {"type", "signer", "key", "document", "signature"}
            assert set(value["entry"]["document"]) <= {
                *("sequence", "previous", "site", "lineage", "kind", "commitment", "mechanism"),
                *("sample_rate", "noise_multiplier", "steps", "new_key", "acceptance", "lost_head"),
            }
        else:
            assert value["opening"].get("study") in (None, "demo")


def test_two_reservations_of_one_plan_at_two_hospitals_have_nothing_in_common(tmp_path: Path) -> None:
    """The commitment is salted: knowing the plan, nobody finds the entry that reserved it."""
    commitments = []
    for site in ("alpha", "beta"):
        ledger = Ledger(tmp_path / f"{site}.jsonl", site, "everyone", SigningKey.generate(site))
        plan = {"study": "demo", "plan": "1" * 64, "purpose": "training"}
        entry = ledger.reserve(**plan, spend=TRAINING, epsilon_cap=9.0, delta=1e-4)
        commitments += [entry.commitment, ledger.commit("1" * 64).commitment]
    assert len(set(commitments)) == 4


def test_a_study_without_entries_gets_the_triples_alone(tmp_path: Path, key: SigningKey) -> None:
    ledger, _ = filled(tmp_path / "population.jsonl", key)
    found = read_excerpt(ledger.excerpt("unknown"), key.public)
    assert found.study is None and found.study_spends == () and len(found.spends) == 7


def test_an_excerpt_that_opens_two_studies_is_refused(tmp_path: Path, key: SigningKey) -> None:
    filled(tmp_path / "population.jsonl", key)
    with pytest.raises(ConsiliumError) as error:
        read_excerpt((tmp_path / "population.jsonl").read_bytes(), key.public)
    assert error.value.number == "E418"


def test_an_excerpt_is_bounded(tmp_path: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, _ = filled(tmp_path / "population.jsonl", key)
    data = ledger.excerpt("demo")
    # docs/ledger.md: a reservation takes about 550 bytes, an opened one 800.
    sizes = {True: 850, False: 600}
    lines = [line for line in data.splitlines() if b'"kind":"reserve"' in line]
    assert len(lines) == 4 and all(len(line) < sizes[b'"opening"' in line] for line in lines)
    monkeypatch.setattr("privacy.excerpt.MAX_EXCERPT_BYTES", len(data) - 1)
    for attempt in (lambda: ledger.excerpt("demo"), lambda: read_excerpt(data, key.public)):
        with pytest.raises(ConsiliumError) as error:
            attempt()
        assert error.value.number == "E418"


@pytest.fixture(scope="module")
def excerpt(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, str]:
    key = SigningKey.generate("alpha")
    ledger, _ = filled(tmp_path_factory.mktemp("excerpt") / "population.jsonl", key)
    return ledger.excerpt("demo"), key.public


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_line_is_left_out_moved_repeated_or_cut(excerpt: tuple[bytes, str], data: st.DataObject) -> None:
    good, public = excerpt
    lines = good.splitlines(keepends=True)
    what = data.draw(st.sampled_from(["remove", "swap", "repeat", "cut", "flip", "open"]))
    at = data.draw(st.integers(0, len(lines) - 2))
    if what == "remove":
        lines.pop(at)
    elif what == "swap":
        lines[at], lines[at + 1] = lines[at + 1], lines[at]
    elif what == "repeat":
        lines.insert(at, lines[at])
    elif what == "open":  # tell another story of an entry than the one that was committed to
        value = json.loads(lines[at])
        opening = {"purpose": "x", "time": "2026-01-01T00:00:00Z", "salt": "0" * 64, "study": "demo"}
        lines[at] = json.dumps({**value, "opening": opening}).encode() + b"\n"
    changed = b"".join(lines)
    if what == "cut":
        changed = good[: data.draw(st.integers(1, len(good) - 1))]
        if changed.endswith(b"\n"):  # a shorter excerpt is a genuine one of an earlier day: the head tells
            assert read_excerpt(changed, public).head != read_excerpt(good, public).head
            return
    elif what == "flip":
        position = data.draw(st.integers(0, len(good) - 1))
        changed = good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :]
    with pytest.raises(ConsiliumError) as error:
        read_excerpt(changed, public)
    assert error.value.number in ("E402", "E418")
