"""What a standard asks for, and where in this release it is answered: the entries of every index.

An item is answered at one or more places; it is met only when each of them is. A person may answer it in
words (`dossier.statements`, shown in dossier/statements.json), or say there that it does not apply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from release.dossier.pointers import NOWHERE, PlaceError, is_open, reason_of, resolve
from release.dossier.statements import FILE as STATEMENTS
from release.dossier.statements import said_not_applicable
from release.facts import ReleaseFacts

Status = Literal["met", "not_applicable", "open"]
Place = tuple[str, str]  # file, pointer

ANSWERED = "Answered at the place named."


@dataclass(frozen=True)
class Item:
    """One item of a standard.

    Attributes:
        id: under which a statement in the YAML answers it.
        clause: in the standard's own numbering.
        title: what it asks for, in our words.
        places: where facts or named fields answer it; all of them must.
        who: who must write what is missing.
        source: where a file or value that is not in the release would come from.
        statement: `instead`: a statement, where there is one, answers alone; `needed`: the places do not
            suffice without one; `none`: no statement is asked for.
        unless: why the item does not apply to this release; None when it does.
    """

    id: str
    clause: str
    title: str
    places: tuple[Place, ...] = ()
    who: str = "the study's authors"
    source: str = "the study's YAML, the hospitals' evaluation or the release run"
    statement: Literal["instead", "needed", "none"] = "instead"
    unless: Callable[[ReleaseFacts], str | None] | None = None


def place_of_statement(identifier: str) -> Place:
    """Return where the statement of that identifier stands."""
    return STATEMENTS, "/statements/" + identifier.replace("~", "~0").replace("/", "~1")


def entry(item: Item, facts: ReleaseFacts, files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return {id, clause, title, status, file, pointer, also, reason} for one item.

    The place is where the answer stands or, open, where it would stand; `also` names the other places that
    the answer needs (`further_places`). No value is ever empty.
    """
    text = facts.protocol.dossier.statements.get(item.id, "").strip() if item.statement != "none" else ""
    head = {"id": item.id, "clause": item.clause, "title": item.title}
    excuse = said_not_applicable(text)
    if excuse is None and not text and item.unless:
        excuse = item.unless(facts)
    if excuse is not None:
        return head | _at((NOWHERE, NOWHERE), "not_applicable", excuse)
    places = _places(item, bool(text))
    for place in places:
        try:
            value = resolve(files, *place)
        except PlaceError as error:
            return head | _at(place, "open", _unwritten(item, place, error))
        if is_open(value):
            return head | _at(place, "open", reason_of(value))
    return head | _at(places[0], "met", ANSWERED, places[1:])


def entries(items: Iterable[Item], facts: ReleaseFacts, files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Return the entries of several items, in their order."""
    return [entry(item, facts, files) for item in items]


def counted(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Count rows by status."""
    found = {"met": 0, "not_applicable": 0, "open": 0}
    for row in rows:
        found[row["status"]] += 1
    return found


def _places(item: Item, stated: bool) -> tuple[Place, ...]:
    written = place_of_statement(item.id)
    if item.statement == "needed":
        return (*item.places, written)
    if item.statement == "instead" and (stated or not item.places):
        return (written,)
    return item.places


def possible_places(item: Item) -> set[tuple[Place, ...]]:
    """Return where an item can be answered: at its own places, in a statement, or needs both."""
    return {_places(item, stated) for stated in (True, False)}


def further_places(also: str) -> tuple[Place, ...]:
    """Read the cell `also`: places as `file pointer`, parted by semicolons, or `-`."""
    if also == NOWHERE:
        return ()
    parts = (place.strip().rpartition(" ") for place in also.split(";"))
    return tuple((file, pointer) for file, _, pointer in parts)


def _at(place: Place, status: Status, reason: str, also: tuple[Place, ...] = ()) -> dict[str, str]:
    named = "; ".join(f"{file} {pointer}" for file, pointer in also) or NOWHERE
    return {"status": status, "file": place[0], "pointer": place[1], "also": named, "reason": reason}


def _unwritten(item: Item, place: Place, error: PlaceError) -> str:
    if place == place_of_statement(item.id):
        return (
            f"{item.title}. To be written by {item.who}, in the study's YAML: `dossier.statements.{item.id}`."
        )
    return f"{item.title}: {error}. It is to come from {item.source}."
