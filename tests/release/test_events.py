"""The event log can be checked by whoever holds its head: nothing in it can be changed, moved or left out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import ConsiliumError
from release.events import GENESIS, Event, chain_head, check_events, frozen_cohorts

TIME = "2026-01-01T00:00:00Z"


def log(*events: tuple[str, dict]) -> bytes:
    """A log of these events, chained."""
    data = b""
    for n, (name, details) in enumerate(events, start=1):
        fields = {"n": n, "time": TIME, "event": name, "key": f"k{n}", "details": details}
        data += Event.model_validate({**fields, "previous": chain_head(data)}).line + b"\n"
    return data


LOG = log(
    ("registered", {"protocol_hash": "a" * 64}),
    ("intake", {"cohorts": {"ash": "1" * 64, "birch": "2" * 64}, "out": []}),
    ("round_opened", {"round": 0}),
    ("round_closed", {"round": 0, "updates": {"ash": "3" * 64}}),
)


def refused(data: bytes, head: str | None) -> bool:
    try:
        check_events(data, head)
    except ConsiliumError as error:
        return error.number == "E712"
    return False


def test_a_whole_log_is_accepted_and_an_empty_one_has_a_head() -> None:
    assert [e.event for e in check_events(LOG, chain_head(LOG))][::3] == ["registered", "round_closed"]
    assert check_events(b"", GENESIS) == [] and chain_head(b"") == GENESIS


@given(st.integers(0, len(LOG) - 1), st.integers(1, 255))
def test_no_byte_can_be_changed(position: int, change: int) -> None:
    changed = bytearray(LOG)
    changed[position] ^= change
    assert refused(bytes(changed), chain_head(LOG))


@pytest.mark.parametrize("number", range(4))
def test_no_line_can_be_left_out_repeated_or_moved(number: int) -> None:
    lines, head = LOG.splitlines(keepends=True), chain_head(LOG)
    assert refused(b"".join(lines[:number] + lines[number + 1 :]), head)
    assert refused(b"".join([*lines, lines[number]]), head)
    moved = [*lines[:number], *lines[number + 1 :], lines[number]] if number < 3 else lines[::-1]
    assert refused(b"".join(moved), head)


def test_a_log_that_was_written_anew_has_another_head() -> None:
    anew = log(("registered", {"protocol_hash": "b" * 64}))
    assert not refused(anew, None) and refused(anew, chain_head(LOG))


def test_a_cohort_is_frozen_by_its_last_intake_before_the_first_exchange() -> None:
    def intake(out: list[str], **cohorts: str) -> tuple[str, dict]:
        return "intake", {"cohorts": cohorts, "out": out}

    opened = ("round_opened", {"round": 0})
    data = log(intake([], ash="1", birch="2"), intake(["birch"], cedar="3"), intake([], cedar="4"), opened)
    assert frozen_cohorts(check_events(data, None)) == {"ash": "1", "cedar": "4"}
    later = log(intake([], ash="1"), opened, intake([], ash="5", birch="6"))
    assert frozen_cohorts(check_events(later, None)) == {"ash": "1"}
    assert frozen_cohorts(check_events(log(intake([], ash="1")), None)) == {}  # nothing has begun


def test_a_hospital_that_joins_later_is_frozen_by_its_own_first_exchange():
    def intake(**cohorts):
        return ("intake", {"cohorts": cohorts, "out": []})

    def opened(number, *sites):
        return ("round_opened", {"round": number, "sites": list(sites)})

    data = log(
        intake(ash="1", birch="2"),
        opened(0, "ash"),
        intake(ash="3", birch="4", cedar="5"),
        opened(1, "ash", "birch", "cedar"),
        intake(ash="6", birch="7", cedar="8", elm="9"),
    )
    assert frozen_cohorts(check_events(data, None)) == {"ash": "1", "birch": "4", "cedar": "5"}
