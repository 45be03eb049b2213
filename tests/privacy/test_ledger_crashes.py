"""Whatever happens to a ledger's files, what it says is spent is never below what was released."""

from __future__ import annotations

import json
import multiprocessing
import resource
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from contracts.errors import ConsiliumError
from contracts.signing import SigningKey
from privacy.accountant import Spend
from privacy.ledger import Ledger
from privacy.restoration import ChargesMissing

SPENDS = [Spend(0.1, 1.5, 10), Spend(0.1, 2.0, 10), Spend(1.0, 9.0, 1)]
WHO = {"officer": "Dr. A. Smith", "reason": "a test"}
FORK = multiprocessing.get_context("fork")


def opened(path: Path, key: SigningKey) -> Ledger:
    return Ledger(path, "alpha", "population", key)


def reserve(ledger: Ledger, number: int, spend: Spend = SPENDS[0]) -> None:
    plan = {"study": "demo", "plan": f"{number:064x}", "purpose": "training"}
    ledger.reserve(**plan, spend=spend, epsilon_cap=1e9, delta=1e-4)


class Hospital(RuleBasedStateMachine):
    """A hospital that spends, is killed, loses files, restores them, and a coordinator that remembers.

    `released`: what every answered call was for; nothing is released that the ledger did not answer for.
    `seen`: the last head that the coordinator was shown.
    """

    @initialize()
    def enrol(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ledger-"))
        self.path = self.folder / "ledger" / "population.jsonl"
        self.key = SigningKey.generate("alpha")
        self.ledger = opened(self.path, self.key)
        self.released: Counter[Spend] = Counter()
        self.plans = 0
        self.seen = self.ledger.head
        self.backup()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    def usable(self) -> bool:
        """Open anew as the next task would, with the coordinator's last head; False: nothing is trained."""
        try:
            ledger = opened(self.path, self.key)
            ledger.check_head(self.seen)
        except ConsiliumError as error:
            assert error.number in ("E402", "E407")
            return False
        self.ledger = ledger
        return True

    @rule(spend=st.sampled_from(SPENDS), again=st.booleans())
    def train(self, spend: Spend, again: bool) -> None:
        if not self.usable():
            return
        self.plans += 1
        reserve(self.ledger, self.plans, spend)
        self.released[spend] += 1
        self.ledger.commit(f"{self.plans:064x}")
        if again:
            reserve(opened(self.path, self.key), self.plans, spend)
        self.seen = self.ledger.head

    @rule(spend=st.sampled_from(SPENDS))
    def write_off(self, spend: Spend) -> None:
        if self.usable():
            self.ledger.write_off(spend, **WHO)
            self.released[spend] += 1
            self.seen = self.ledger.head

    @rule()
    def rotate(self) -> None:
        if self.usable():
            new = SigningKey.generate("alpha")
            self.ledger.rotate(new, **WHO)
            self.key = new
            self.seen = self.ledger.head

    @rule(spend=st.sampled_from(SPENDS), share=st.floats(0, 1))
    def killed_while_appending(self, spend: Spend, share: float) -> None:
        """The line is cut anywhere, or whole but never answered for."""
        if not self.usable():
            return
        before, head = self.path.read_bytes(), self.path.with_suffix(".head").read_bytes()
        reserve(self.ledger, 1000 + self.plans, spend)
        line = self.path.read_bytes()[len(before) :]
        self.path.write_bytes(before + line[: round(share * len(line))])
        self.path.with_suffix(".head").write_bytes(head)
        self.plans += 1

    @rule()
    def backup(self) -> None:
        shutil.rmtree(self.folder / "backup", ignore_errors=True)
        shutil.copytree(self.path.parent, self.folder / "backup")

    @rule(which=st.sampled_from(["both", "ledger", "head"]))
    def put_back(self, which: str) -> None:
        for suffix, part in ((".jsonl", "ledger"), (".head", "head")):
            name = self.path.with_suffix(suffix).name
            if which in ("both", part) and (self.folder / "backup" / name).exists():
                shutil.copy(self.folder / "backup" / name, self.path.parent / name)

    @rule(which=st.sampled_from([".jsonl", ".head"]))
    def delete(self, which: str) -> None:
        self.path.with_suffix(which).unlink(missing_ok=True)

    @rule(line=st.integers(0, 20), what=st.sampled_from(["remove", "repeat", "cheapen"]))
    def tamper(self, line: int, what: str) -> None:
        if not self.path.exists():
            return
        lines = self.path.read_bytes().splitlines(keepends=True)
        if line < len(lines):
            cheap = lines[line].replace(b'"steps":10', b'"steps":1')
            lines[line : line + 1] = {"remove": [], "repeat": [lines[line]] * 2, "cheapen": [cheap]}[what]
            self.path.write_bytes(b"".join(lines))

    @precondition(lambda self: not self.usable())
    @rule()
    def restore(self) -> None:
        """The officer does not know what was lost and charges everything that was ever released.

        That may be less than what signed lines behind the damage spent: reserved, but never answered for.
        """
        decision = {"lost_head": self.seen, "charges": [*self.released.elements(), SPENDS[0]], **WHO}
        arguments = (self.path, "alpha", "population", self.key)
        try:
            self.ledger = Ledger.restored(*arguments, **decision)
        except ChargesMissing:
            self.ledger = Ledger.restored(*arguments, **decision, spend_found=True)

    @invariant()
    def spent_is_never_below_what_was_released(self) -> None:
        if hasattr(self, "folder") and self.usable():
            assert self.released - Counter(self.ledger.spends()) == Counter()


Hospital.TestCase.settings = settings(max_examples=20, stateful_step_count=12, deadline=None)
TestHospital = Hospital.TestCase


def test_the_last_line_torn_at_any_byte_leaves_a_ledger_that_opens(tmp_path: Path) -> None:
    path, key = tmp_path / "population.jsonl", SigningKey.generate("alpha")
    reserve(opened(path, key), 1)
    before, head = path.read_bytes(), path.with_suffix(".head").read_bytes()
    reserve(opened(path, key), 2)
    line = path.read_bytes()[len(before) :]
    for cut in [*range(0, len(line), 7), len(line) - 1, len(line)]:
        path.write_bytes(before + line[:cut])
        path.with_suffix(".head").write_bytes(head)
        assert len(opened(path, key).spends()) == (2 if cut == len(line) else 1)
        path.write_bytes(before)
        path.with_suffix(".head").write_bytes(head)


def test_a_line_that_was_answered_for_may_not_be_torn(tmp_path: Path) -> None:
    path, key = tmp_path / "population.jsonl", SigningKey.generate("alpha")
    reserve(opened(path, key), 1)
    whole = path.read_bytes()
    start = whole[:-1].rfind(b"\n") + 1
    for cut in [*range(start, len(whole), 41), len(whole) - 1]:
        path.write_bytes(whole[:cut])
        with pytest.raises(ConsiliumError) as error:
            opened(path, key)
        assert error.value.number == "E402"


def _restore_on_a_small_disk(path: Path, key: SigningKey, room: int, result: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room, resource.RLIM_INFINITY))
    try:
        charges = [SPENDS[0], SPENDS[1]]
        Ledger.restored(path, "alpha", "population", key, lost_head="e" * 64, charges=charges, **WHO)
        outcome = "restored"
    except ConsiliumError as error:
        outcome = error.number
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    result.write_text(outcome)


@pytest.mark.parametrize("room", [1, 900, 1900])
def test_a_disk_that_fills_in_the_middle_of_a_decision_leaves_nothing_of_it(
    tmp_path: Path, room: int
) -> None:
    path, key = tmp_path / "population.jsonl", SigningKey.generate("alpha")
    reserve(opened(path, key), 1)
    before = path.read_bytes()
    process = FORK.Process(target=_restore_on_a_small_disk, args=(path, key, room, tmp_path / "result"))
    process.start()
    process.join(60)
    assert (tmp_path / "result").read_text() == "E402" and path.read_bytes() == before
    assert opened(path, key).spends() == [SPENDS[0]]


def _write_off_many(path: Path, key: SigningKey, spend: Spend, times: int) -> None:
    ledger = opened(path, key)
    for _ in range(times):
        ledger.write_off(spend, **WHO)


def _at_once(*targets: tuple[Callable[..., None], tuple[object, ...]]) -> list[int | None]:
    processes = [FORK.Process(target=target, args=arguments) for target, arguments in targets]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def test_two_officers_at_once_both_count(tmp_path: Path) -> None:
    path, key = tmp_path / "population.jsonl", SigningKey.generate("alpha")
    targets = [(_write_off_many, (path, key, spend, 15)) for spend in SPENDS[:2]]
    assert _at_once(*targets) == [0, 0]
    assert Counter(opened(path, key).spends()) == {SPENDS[0]: 15, SPENDS[1]: 15}


def _rotate(path: Path, key: SigningKey, new: SigningKey, result: Path) -> None:
    try:
        opened(path, key).rotate(new, **WHO)
        result.write_text(json.dumps(new.public))
    except ConsiliumError as error:
        assert error.number == "E402"


def test_two_rotations_at_once_leave_one_key_in_force(tmp_path: Path) -> None:
    path, key = tmp_path / "population.jsonl", SigningKey.generate("alpha")
    reserve(opened(path, key), 1)
    keys = [SigningKey.generate("alpha") for _ in range(2)]
    results = [tmp_path / "0", tmp_path / "1"]
    targets = [(_rotate, (path, key, new, result)) for new, result in zip(keys, results, strict=True)]
    assert _at_once(*targets) == [0, 0]
    (winner,) = [new for new, result in zip(keys, results, strict=True) if result.exists()]
    assert opened(path, winner).spends() == [SPENDS[0]]
