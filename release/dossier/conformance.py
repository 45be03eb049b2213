"""`conformance.json`: every clause, where the release answers it, and what is still open.

A row is {standard, clause, id, requirement, status, file, pointer, also, reason}; no cell is empty. Builder
and offline verifier find places with the same function, so that `met` means the same to both.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from release.dossier import annex_iv, hti1, tripod_ai
from release.dossier.index import counted, entries, further_places, possible_places
from release.dossier.pointers import NOWHERE, PlaceError, is_open, resolve
from release.dossier.standards import SOURCES, STANDARDS
from release.dossier.writing import json_bytes
from release.facts import ReleaseFacts

FILE = "conformance.json"
CATALOGUE = 1  # of the rows that this version asks for; raised when one is added or taken away

# Standards that have an index of their own: its file, and the key of its list.
_INDEXES = {
    "HTI-1": (hti1.FILE, "attributes"),
    "TRIPOD+AI": (tripod_ai.FILE, "items"),
    "EU AI Act Annex IV": (annex_iv.FILE, "points"),
}
_INDEX_SOURCES = {"HTI-1": hti1.SOURCE, "TRIPOD+AI": tripod_ai.SOURCE, "EU AI Act Annex IV": annex_iv.SOURCE}
_CELLS = ("standard", "clause", "id", "requirement", "status", "file", "pointer", "also", "reason")
_STATUSES = {
    "met": "The place named answers the requirement. Whether well enough is for its reader to say.",
    "not_applicable": "It does not apply to this release, for the reason given.",
    "open": "Nobody has written or shown it; the reason says what is missing and who must write it.",
}


def conformance(facts: ReleaseFacts, files: Mapping[str, bytes]) -> bytes:
    """Return the matrix over every standard.

    Args:
        files: every other file of the release that exists, the indexes among them.
    """
    rows = [_row(name, e) for name, (file, key) in _INDEXES.items() for e in json.loads(files[file])[key]]
    for standard, items in STANDARDS.items():
        rows += [_row(standard, found) for found in entries(items, facts, files)]
    return json_bytes(
        {
            "what_this_is": (
                "Where each requirement is answered. It is no declaration of conformity: nobody has assessed "
                "it."
            ),
            "catalogue": CATALOGUE,
            "statuses": _STATUSES,
            "sources": SOURCES | _INDEX_SOURCES,
            "rows": rows,
            "summary": counted(rows),
        }
    )


def check_conformance(document: Any, read: Callable[[str], bytes]) -> list[str]:
    """Return what is wrong with a conformance matrix; an empty list when nothing is.

    Every status is found anew: each place of a `met` row must resolve to a value that is not open, and `open`
    must not resolve to one that is answered. Every row of the catalogue must be there, and every entry of the
    indexes in the release with its status. Of a release with an earlier catalogue, whose rows this version
    does not know, only the rows that are there are checked.

    Args:
        document: the parsed content of conformance.json.
        read: content of a file of the release by its path; raises OSError or KeyError where there is none.
    """
    rows = document.get("rows") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return ["conformance.json has no list of rows"]
    problems = [problem for row in rows if (problem := _empty_cell(row))]
    if problems:
        return problems
    needed = {file for row in rows for file, _ in _places(row)} | {file for file, _ in _INDEXES.values()}
    files = _contents(needed, read)
    problems = [problem for row in rows if (problem := _wrong_status(row, files))]
    problems += _elsewhere(document.get("catalogue"), rows)
    return problems + _missing_rows(document.get("catalogue"), rows) + _against_indexes(rows, files)


def asked_identifiers() -> frozenset[str]:
    """Return every identifier under which a statement in the YAML answers something."""
    items = (*tripod_ai.ITEMS, *annex_iv.ITEMS, *(i for found in STANDARDS.values() for i in found))
    return frozenset(i.id for i in items if i.statement != "none") | {a.id for a in hti1.ATTRIBUTES}


def _row(standard: str, found: Mapping[str, Any]) -> dict[str, str]:
    cells = {cell: found[cell] for cell in ("clause", "id", "status", "file", "pointer", "also", "reason")}
    return {"standard": standard, "requirement": found["title"], **cells}


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['standard']} {row['clause']} ({row['id']})"


def _empty_cell(row: Mapping[str, Any]) -> str | None:
    for cell in _CELLS:
        value = row.get(cell)
        if not isinstance(value, str) or not value.strip():
            return f"{row.get('standard')} {row.get('clause')}: the cell {cell} is empty"
    if row["status"] not in _STATUSES:
        return f"{_name(row)}: status {row['status']!r}, expected one of {', '.join(_STATUSES)}"
    return None


def _places(row: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return ((row["file"], row["pointer"]), *further_places(row["also"]))


def _wrong_status(row: Mapping[str, str], files: Mapping[str, bytes]) -> str | None:
    if row["status"] == "not_applicable":
        return None if row["file"] == NOWHERE else f"{_name(row)}: not applicable, and yet at {row['file']}"
    met = row["status"] == "met"
    for file, pointer in _places(row):
        try:
            answered = not is_open(resolve(files, file, pointer))
        except PlaceError as error:
            if met:
                return f"{_name(row)}: met, but {error}"
            continue
        if answered != met:
            said = "met, but open" if met else "open, but answered"
            return f"{_name(row)}: {said} at {file} {pointer}"
    return None


def _missing_rows(catalogue: Any, rows: list[dict[str, str]]) -> list[str]:
    found = [(row["standard"], row["id"]) for row in rows]
    problems = [f"{standard} {name} has several rows" for standard, name in sorted(_repeated(found))]
    if not isinstance(catalogue, int) or isinstance(catalogue, bool) or not 1 <= catalogue <= CATALOGUE:
        return [*problems, f"catalogue {catalogue!r}, expected 1 to {CATALOGUE}"]
    if catalogue == CATALOGUE:
        missing = sorted(_catalogue() - set(found))
        problems += [f"{standard} {name} has no row" for standard, name in missing]
    return problems


def _elsewhere(catalogue: Any, rows: list[dict[str, str]]) -> list[str]:
    """A row that is met must be met where the catalogue looks for its answer, not at any other value."""
    if catalogue != CATALOGUE:
        return []
    items = {"TRIPOD+AI": tripod_ai.ITEMS, "EU AI Act Annex IV": annex_iv.ITEMS, **STANDARDS}
    possible = {(name, i.id): possible_places(i) for name, found in items.items() for i in found}
    return [
        f"{_name(row)}: met at {row['file']} {row['pointer']}, where nothing answers it"
        for row in rows
        if row["status"] == "met"
        and _places(row) not in possible.get((row["standard"], row["id"]), {_places(row)})
    ]


def _repeated(rows: list[tuple[str, str]]) -> set[tuple[str, str]]:
    return {row for row, number in Counter(rows).items() if number > 1}


def _catalogue() -> set[tuple[str, str]]:
    """Every row of the current catalogue: standard and identifier."""
    known = {("HTI-1", a.id) for a in hti1.ATTRIBUTES}
    known |= {("TRIPOD+AI", i.id) for i in tripod_ai.ITEMS}
    known |= {("EU AI Act Annex IV", i.id) for i in annex_iv.ITEMS}
    known |= {(standard, i.id) for standard, items in STANDARDS.items() for i in items}
    return known


def _against_indexes(rows: list[dict[str, str]], files: Mapping[str, bytes]) -> list[str]:
    by_name = {(row["standard"], row["id"]): row for row in rows}
    problems = []
    for standard, (file, key) in _INDEXES.items():
        try:
            listed = resolve(files, file, f"/{key}")
        except PlaceError as error:
            problems.append(str(error))
            continue
        for found in listed if isinstance(listed, list) else []:
            if by_name.get((standard, found.get("id"))) != _row_or_none(standard, found):
                problems.append(f"{file}: {found.get('id')} differs from its row in conformance.json")
    return problems


def _row_or_none(standard: str, found: Any) -> dict[str, str] | None:
    try:
        return _row(standard, found)
    except (KeyError, TypeError):
        return None


def _contents(paths: set[str], read: Callable[[str], bytes]) -> dict[str, bytes]:
    found = {}
    for path in sorted(paths - {NOWHERE}):
        try:
            found[path] = read(path)
        except (OSError, KeyError):
            continue
    return found
