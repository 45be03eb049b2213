"""The head moves by compare-and-set: of two tasks that read it, one wins and the other is told."""

from __future__ import annotations

import threading

import pytest

from contracts.errors import ConsiliumError
from tasks.head import advance, load_head, register_study
from tasks.home import CoordinatorHome
from tests.factories import tiny_study


def test_of_two_writers_one_is_refused_and_nothing_of_it_is_written(tmp_path):
    home = CoordinatorHome(tmp_path)
    old = register_study(home, tiny_study())
    advance(home, old, reason="first")
    with pytest.raises(ConsiliumError, match="E507"):
        advance(home, old, reason="second")
    assert load_head(home, "tiny").reason == "first"


def test_concurrent_writers_lose_no_step(tmp_path):
    home = CoordinatorHome(tmp_path)
    register_study(home, tiny_study())
    refused = []

    def work() -> None:
        done = 0
        while done < 20:
            try:
                head = load_head(home, "tiny")
                advance(home, head, refusals=head.refusals + 1)
                done += 1
            except ConsiliumError:
                refused.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    head = load_head(home, "tiny")
    assert (head.refusals, head.version) == (80, 80)


def test_another_protocol_under_a_registered_name_is_refused(tmp_path):
    home = CoordinatorHome(tmp_path)
    first = register_study(home, tiny_study())
    assert register_study(home, tiny_study()) == first
    with pytest.raises(ConsiliumError, match="E101"):
        register_study(home, tiny_study(rounds=3))


def test_an_unknown_study_is_named_with_those_that_exist(tmp_path):
    home = CoordinatorHome(tmp_path)
    register_study(home, tiny_study())
    with pytest.raises(ConsiliumError, match=r"E102.*'other'.*\['tiny'\]"):
        load_head(home, "other")
