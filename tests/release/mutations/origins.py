"""With the key: data sheets, event log and ledgers that are not those of this release."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from contracts.datasheet import DataSheet
from contracts.signing import SigningKey, open_signed, to_text
from tests.dossiers import site_key, tiny_ledger
from tests.full_release import full_study
from tests.release.mutations.world import World, mutation


def sheet(world: World, key: SigningKey | None = None, site: str = "ash", **changes: Any) -> None:
    """Another data sheet of `ash`, signed by it or by `key`; the lineage still names the old one."""
    text = (world.folder / "data_sheets/ash.json").read_bytes()
    before = open_signed(text, DataSheet, "ash", site_key("ash").public)
    signed = (key or site_key(site)).sign(before.model_copy(update=changes))
    world.it.rewrite({"data_sheets/ash.json": to_text(signed).encode()})


@mutation("lineage", "E701", "data_sheet, cohort")
def a_data_sheet_of_another_cohort(world: World) -> None:
    sheet(world, cohort="1" * 64)


@mutation("lineage", "E701", "policy")
def a_data_sheet_under_another_policy(world: World) -> None:
    sheet(world, policy="1" * 64)


@mutation("lineage", "E803", "enrolled key")
def a_data_sheet_signed_by_somebody_else(world: World) -> None:
    sheet(world, SigningKey.generate("ash"))


@mutation("lineage", "E803", "signed by 'birch'")
def the_data_sheet_of_another_hospital(world: World) -> None:
    other = (world.folder / "data_sheets/birch.json").read_bytes()
    world.it.rewrite({"data_sheets/ash.json": other})


@mutation("lineage", "E703", "birch")
def a_data_sheet_left_out(world: World) -> None:
    (world.folder / "data_sheets/birch.json").unlink()
    world.it.rewrite({})


@mutation("lineage", "E703", "no data sheet of birch")
def a_hospital_left_out_of_the_lineage(world: World) -> None:
    (world.folder / "data_sheets/birch.json").unlink()
    lineage = world.it.read().lineage
    world.it.rewrite({}, lineage=lineage.model_copy(update={"data": lineage.data[:1]}))


def events(world: World, change: Callable[[list[bytes]], list[bytes]]) -> None:
    lines = (world.folder / "events.jsonl").read_bytes().splitlines(keepends=True)
    world.it.rewrite({"events.jsonl": b"".join(change(lines))})


@mutation("events", "E712", "does not follow")
def an_event_left_out(world: World) -> None:
    events(world, lambda lines: [*lines[:1], *lines[2:]])


@mutation("events", "E712", "the log ends in")
def the_last_event_left_out(world: World) -> None:
    events(world, lambda lines: lines[:-1])


@mutation("events", "E712", "does not follow")
def two_events_exchanged(world: World) -> None:
    events(world, lambda lines: [lines[1], lines[0], *lines[2:]])


@mutation("events", "E712", "cut off")
def the_last_event_cut_off(world: World) -> None:
    events(world, lambda lines: [*lines[:-1], lines[-1][:-1]])


@mutation("events", "E712", "names no head")
def an_event_log_without_a_head(world: World) -> None:
    world.it.rewrite(events=None)


@mutation("ledgers", "E402", "")
def two_ledgers_swapped_and_signed(world: World) -> None:
    one, two = ((world.folder / f"ledgers/{site}.jsonl").read_bytes() for site in ("ash", "birch"))
    world.it.rewrite({"ledgers/ash.jsonl": two, "ledgers/birch.jsonl": one})


@mutation("ledgers", "E407", "")
def a_ledger_cut_short(world: World) -> None:
    lines = (world.folder / "ledgers/ash.jsonl").read_bytes().splitlines(keepends=True)
    world.it.rewrite({"ledgers/ash.jsonl": b"".join(lines[:-2])})


@mutation("ledgers", "E402", "")
def fewer_steps_in_a_ledger(world: World) -> None:
    data = (world.folder / "ledgers/ash.jsonl").read_bytes()
    assert b'"steps":3' in data
    world.it.rewrite({"ledgers/ash.jsonl": data.replace(b'"steps":3', b'"steps":2')})


@mutation("ledgers", "E407", "")
def a_ledger_of_another_time(world: World) -> None:
    world.it.rewrite({"ledgers/ash.jsonl": tiny_ledger("ash", full_study())[1] + b""})


@mutation("ledgers", "E402", "expected")
def a_ledger_left_out(world: World) -> None:
    (world.folder / "ledgers/ash.jsonl").unlink()
    world.it.rewrite({})
