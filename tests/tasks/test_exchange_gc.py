"""Garbage collection of the exchange: what is named stays for ever, what is not goes when it is old."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from consilium.__main__ import app
from consilium.simulation import run_rounds
from durable.files import write_atomic
from tasks import exchange_gc
from tasks.exchange import DirectoryExchange
from tasks.exchange_gc import collect, collect_daily
from tasks.home import CoordinatorHome
from tasks.replay import replay
from tasks.settings import Exchange, Settings, save_settings
from tests.factories import TinyFederation, tiny_simulation, tiny_study, write_tensors
from tests.masked import (
    asked,
    closed,
    five_hospitals,
    masked_study,
    opened,
    run_exchange,
    trained,
    unmasked,
)


def aged(path: Path, days: float) -> Path:
    then = time.time() - days * 86_400
    os.utime(path, (then, then))
    return path


@pytest.fixture
def home(tmp_path: Path) -> CoordinatorHome:
    home: CoordinatorHome = TinyFederation(tmp_path, tiny_study()).home
    return home


def put(home: CoordinatorHome, value: float, days: float) -> str:
    path = write_tensors(home.root / "file", {"w": np.full(4, value, np.float32)})
    digest = DirectoryExchange(home.exchange).put(path)
    aged(DirectoryExchange(home.exchange).path_of(digest), days)
    return digest


def test_what_no_document_names_goes_once_it_is_old(home: CoordinatorHome) -> None:
    store = DirectoryExchange(home.exchange)
    named, old, new = put(home, 1.0, 400), put(home, 2.0, 100), put(home, 3.0, 80)
    write_atomic(home.study("tiny") / "records" / "round-1.json", f'{{"model":"{named}"}}'.encode())
    assert [content.path.name for content in collect(home, 90.0, dry_run=True)] == [old]
    assert store.path_of(old).is_file()
    assert [content.path.name for content in collect(home, 90.0)] == [old]
    assert not store.path_of(old).exists()
    assert store.path_of(named).is_file() and store.path_of(new).is_file()
    assert collect(home, 90.0) == []


@pytest.mark.parametrize("folder", ["releases/tiny/1.0.0", "registry", "studies/tiny/answers/p"])
def test_a_release_a_registry_and_an_answer_name_too(home: CoordinatorHome, folder: str) -> None:
    digest = put(home, 1.0, 400)
    write_atomic(home.root / folder / "manifest.json", f'["{digest}"]'.encode())
    assert collect(home, 0.0) == []


def test_an_update_that_the_open_plan_waits_for_stays_and_one_that_came_too_late_does_not(
    home: CoordinatorHome,
) -> None:
    waiting, late = put(home, 1.0, 400), put(home, 2.0, 400)
    head = home.study("tiny") / "head.json"
    head.write_text(head.read_text().replace('"plan":null', f'"plan":"{"a" * 64}"'))
    assert "a" * 64 in head.read_text()
    write_atomic(home.study("tiny") / "received" / ("a" * 64) / "ash", waiting.encode())
    write_atomic(home.study("tiny") / "received" / ("b" * 64) / "ash", late.encode())
    assert [content.path.name for content in collect(home, 90.0)] == [late]


def test_begun_uploads_of_a_closed_plan_and_files_of_a_killed_writer_go_after_a_day(
    home: CoordinatorHome,
) -> None:
    partial = DirectoryExchange(home.exchange).partial
    old, new = partial / "p" / "ash" / ("a" * 64), partial / "p" / "birch" / ("b" * 64)
    killed = home.exchange / ".incoming.x"
    for path, days in ((old, 2), (new, 0.5), (killed, 2)):
        write_atomic(path, b"x")
        aged(path, days)
    assert {content.path for content in collect(home, 90.0)} == {old, killed}
    assert new.is_file() and not old.parent.exists()


def test_nothing_that_a_study_trained_is_collected_and_replay_finds_it_all(tmp_path: Path) -> None:
    """Every update of every closed round is named by an answer, whatever its age."""
    simulation = tiny_simulation(tmp_path, tiny_study())
    home = simulation.coordinator
    run_rounds(simulation, lambda text: None)
    before = {path for path in home.exchange.rglob("*") if path.is_file()}
    assert len(before) > 4
    stray = put(home, 2.0, 1)
    assert [content.path.name for content in collect(home, 0.0)] == [stray]
    assert before == {path for path in home.exchange.rglob("*") if path.is_file()}
    rounds = list(replay(home, "tiny"))
    assert rounds and all(line.recorded == line.recomputed for line in rounds)


def test_what_an_open_request_to_unmask_and_replay_need_stays_whatever_its_age(tmp_path: Path) -> None:
    """Masked vectors, shares and models of a closed round and of one between its hops."""
    simulation = five_hospitals(tmp_path, masked_study())
    home = simulation.coordinator
    run_exchange(simulation, "run-0")
    request = asked(simulation, trained(simulation, opened(simulation, "run-1")), "run-1")
    kept = [aged(path, 400) for path in home.exchange.rglob("*") if path.is_file()]
    stray = put(home, 2.0, 400)
    assert [content.path.name for content in collect_daily(home)] == [stray]
    assert len(kept) > 10 and all(path.is_file() for path in kept)
    assert closed(simulation, unmasked(simulation, request), "run-1").next == "finished"
    assert all(line.matches for line in replay(home, "tiny"))


def test_the_schedule_leaves_what_is_new_whatever_the_settings_say(home: CoordinatorHome) -> None:
    save_settings(home, Settings(exchange=Exchange(keep_days=0.0)))
    just_stored, old = put(home, 1.0, 0.5), put(home, 2.0, 1.5)
    assert {content.path.name for content in collect(home, 0.0, dry_run=True)} == {just_stored, old}
    assert [content.path.name for content in collect_daily(home)] == [old]
    save_settings(home, Settings(exchange=Exchange(keep_days=30.0)))
    older = put(home, 3.0, 31)
    assert put(home, 4.0, 29) and [content.path.name for content in collect_daily(home)] == [older]


def test_what_was_stored_again_after_it_was_found_stays(
    home: CoordinatorHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = put(home, 2.0, 100)
    found = exchange_gc.contents

    def contents(home: CoordinatorHome) -> list[exchange_gc.Content]:
        seen = found(home)
        put(home, 2.0, 0)
        return seen

    monkeypatch.setattr(exchange_gc, "contents", contents)
    collect_daily(home)
    assert DirectoryExchange(home.exchange).path_of(digest).is_file()


@pytest.mark.parametrize("damaged", ["head", "folder"])
def test_nothing_goes_while_a_document_cannot_be_read(
    home: CoordinatorHome, monkeypatch: pytest.MonkeyPatch, damaged: str
) -> None:
    digest = put(home, 2.0, 100)
    if damaged == "head":
        (home.study("tiny") / "head.json").write_text("{")
    else:
        closed_folder = home.study("tiny") / "records"
        closed_folder.mkdir(exist_ok=True)
        scandir = os.scandir

        def scan(path: object) -> object:
            if path == str(closed_folder):
                raise PermissionError(13, "Permission denied", path)
            return scandir(path)  # type: ignore[call-overload]

        monkeypatch.setattr(os, "scandir", scan)  # a test that runs as root has no folder closed to it
    with pytest.raises((ValueError, OSError)):
        collect_daily(home)
    assert DirectoryExchange(home.exchange).path_of(digest).is_file()


def test_the_command_says_what_it_did(home: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSILIUM_HOME", str(home.root.parent))
    put(home, 2.0, 100)
    for arguments, wanted in (
        (["show"], "free"),
        (["gc", "--dry-run"], "1 files would be removed"),
        (["gc", "--json"], '"dry_run": false'),
        (["gc"], "0 files removed"),
    ):
        done = CliRunner().invoke(app, ["exchange", *arguments])
        assert done.exit_code == 0 and wanted in done.output, done.output
