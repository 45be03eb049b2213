"""With the key: a conformance matrix with a gap, or one that calls met what is not there."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from tests.release.mutations.world import World, document, mutation


def rows(world: World, change: Callable[[list[Any]], None]) -> None:
    document(world, "conformance.json", lambda content: change(content["rows"]))


def first(found: list[Any], status: str) -> Any:
    return next(row for row in found if row["status"] == status)


def an_empty_cell(world: World) -> None:
    rows(world, lambda found: found[0].update(reason=""))


def a_clause_left_out(world: World) -> None:
    rows(world, lambda found: found.pop())


def a_met_clause_that_points_nowhere(world: World) -> None:
    rows(world, lambda found: first(found, "met").update(file="nowhere.json", pointer="/0"))


def an_open_clause_called_met(world: World) -> None:
    rows(world, lambda found: first(found, "open").update(status="met"))


def an_open_clause_met_by_any_other_value(world: World) -> None:
    changes = {"status": "met", "file": "manifest.json", "pointer": "/title", "also": "-"}

    def change(found: list[Any]) -> None:
        # Of a standard without an index of its own: nothing else in the release contradicts it.
        indexed = ("HTI-1", "TRIPOD+AI", "EU AI Act Annex IV")
        next(r for r in found if r["status"] == "open" and r["standard"] not in indexed).update(changes)

    rows(world, change)


# A version without the dossier writes no matrix, and there is nothing to change.
WRITTEN = importlib.util.find_spec("release.dossier") is not None
if WRITTEN:
    for change in (
        an_empty_cell,
        a_clause_left_out,
        a_met_clause_that_points_nowhere,
        an_open_clause_called_met,
        an_open_clause_met_by_any_other_value,
    ):
        mutation("conformance", "E711")(change)
