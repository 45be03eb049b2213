"""The coordinator's event log: written once per event, whole after a crash, closed once it was changed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from contracts.errors import ConsiliumError
from release.events import chain_head, check_events
from tasks.events import events_path, events_until, read_events, record_event
from tasks.home import CoordinatorHome
from tests.factories import TinyFederation, open_next, tiny_study


@pytest.fixture
def home(tmp_path: Path) -> CoordinatorHome:
    return CoordinatorHome(tmp_path)


def test_a_repeated_step_writes_nothing_and_keeps_what_was_said_first(home: CoordinatorHome) -> None:
    first = record_event(home, "tiny", "candidate", "c1", version="1.0.0")
    record_event(home, "tiny", "candidate", "c2", version="1.0.1")
    before = events_path(home, "tiny").read_bytes()
    assert record_event(home, "tiny", "candidate", "c1", version="9.9.9") == first
    assert events_path(home, "tiny").read_bytes() == before
    assert [e.details["version"] for e in read_events(home, "tiny")] == ["1.0.0", "1.0.1"]


def test_tasks_at_the_same_time_make_one_chain(home: CoordinatorHome) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: record_event(home, "tiny", "judged", str(n % 10)), range(40)))
    data = events_path(home, "tiny").read_bytes()
    assert sorted(e.key for e in check_events(data, chain_head(data))) == [str(n) for n in range(10)]


def test_a_line_that_a_crash_cut_off_is_written_over(home: CoordinatorHome) -> None:
    record_event(home, "tiny", "registered", "a")
    with events_path(home, "tiny").open("ab") as file:
        file.write(b'{"details":{},"event":"jud')
    assert len(read_events(home, "tiny")) == 1
    record_event(home, "tiny", "judged", "b")
    assert [e.event for e in read_events(home, "tiny")] == ["registered", "judged"]


def test_nothing_is_added_to_a_log_that_was_changed(home: CoordinatorHome) -> None:
    record_event(home, "tiny", "registered", "a")
    path = events_path(home, "tiny")
    path.write_bytes(path.read_bytes().replace(b"registered", b"judged"))
    record_event(home, "tiny", "judged", "a")  # a changed last line alone cannot be told without its head
    path.write_bytes(path.read_bytes().replace(b'"n":1', b'"n":3'))
    before = path.read_bytes()
    with pytest.raises(ConsiliumError, match="E712"):
        record_event(home, "tiny", "judged", "c")
    assert path.read_bytes() == before


def test_the_log_up_to_an_event_stays_the_same_whatever_follows(home: CoordinatorHome) -> None:
    record_event(home, "tiny", "registered", "a")
    head = record_event(home, "tiny", "verified", "b")
    until = events_until(home, "tiny", "verified", "b")
    record_event(home, "tiny", "published", "c")
    assert events_until(home, "tiny", "verified", "b") == until and chain_head(until) == head
    with pytest.raises(ConsiliumError, match="E712"):
        events_until(home, "tiny", "verified", "other")


def test_registration_and_rounds_are_in_the_log(tmp_path: Path) -> None:
    federation = TinyFederation(tmp_path, tiny_study())
    _, digest = open_next(federation, "run")
    open_next(federation, "run")  # resumed: nothing new
    registered, opened = read_events(federation.home, "tiny")
    assert registered.event == "registered" and registered.key == federation.protocol.hash
    assert (opened.event, opened.key, opened.details["sites"]) == (
        "round_opened",
        digest,
        ["ash", "birch", "cedar"],
    )
