"""Finding a place in a file of the release, and telling a place that is answered from one that is open.

A place is a file and a pointer: in JSON a pointer of RFC 6901 (`/risks/0`), in Markdown and HTML a section
(`#intended-users`), and `#` for a whole file of any kind. The builder of a dossier and the offline
verifier use the same two functions, so that neither can call met what the other would not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

WHOLE = "#"
NOWHERE = "-"  # file and pointer of a row that has no place: not applicable, or nobody could have written it

OPEN_MARK = "**OPEN.**"  # how an open section of a Markdown file begins

_HEADING = re.compile(r"^(#{1,6}) +(.+?) *$", re.MULTILINE)


class PlaceError(LookupError):
    """The file or the place in it is not there."""


def open_value(missing: str, who: str) -> dict[str, str]:
    """Return what stands in JSON where a person has not written anything.

    Args:
        missing: what is missing.
        who: who must write it, and where.
    """
    return {"open": f"{missing} To be written by {who}."}


def is_open(value: Any) -> bool:
    """Say whether a value answers nothing: absent, empty, false, or marked open."""
    if isinstance(value, Mapping):
        return not value or "open" in value
    if isinstance(value, str):
        return not value.strip() or value.lstrip().startswith(OPEN_MARK)
    if isinstance(value, bytes):
        return not value
    return value is None or value is False or value == []


def reason_of(value: Any) -> str:
    """Say what is missing, from an open value itself where it says so."""
    if isinstance(value, Mapping) and isinstance(value.get("open"), str) and value["open"].strip():
        return str(value["open"])
    if isinstance(value, str) and value.lstrip().startswith(OPEN_MARK):
        return value.lstrip().removeprefix(OPEN_MARK).strip()
    return "Nothing is stated there."


def resolve(files: Mapping[str, bytes], file: str, pointer: str) -> Any:
    """Return the value at a place: of JSON, the text of a section, or the whole file.

    Args:
        files: content by path in the release.
        file: path in the release.
        pointer: `#`, `/a/0/b` (RFC 6901) or `#section`.

    Raises:
        PlaceError: the file is not there, cannot be read, or has no such place.
    """
    if file not in files:
        raise PlaceError(f"{file} is not in the release")
    data = files[file]
    if pointer == WHOLE and not file.endswith(".json"):
        return data
    if file.endswith(".json"):
        try:
            document = json.loads(data)
        except ValueError as error:
            raise PlaceError(f"{file} is not JSON") from error
        return document if pointer == WHOLE else _in_json(document, file, pointer)
    if not pointer.startswith("#"):
        raise PlaceError(f"{file} has no place {pointer!r}: expected # and the name of a section")
    text = data.decode("utf-8", errors="replace")
    return (_in_html if file.endswith(".html") else _in_markdown)(text, file, pointer)


def section_name(heading: str) -> str:
    """Return the name by which a heading is pointed at: `Intended users` -> `intended-users`."""
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")


def _in_json(document: Any, file: str, pointer: str) -> Any:
    if not pointer.startswith("/"):
        raise PlaceError(f"{pointer!r} is no JSON pointer (RFC 6901)")
    value = document
    for token in pointer[1:].split("/"):
        key = token.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and re.fullmatch(r"0|[1-9][0-9]*", key) and int(key) < len(value):
            value = value[int(key)]
        else:
            raise PlaceError(f"{file} has no {pointer}")
    return value


def _in_markdown(text: str, file: str, pointer: str) -> str:
    headings = list(_HEADING.finditer(text))
    for place, heading in enumerate(headings):
        if section_name(heading[2]) != pointer[1:]:
            continue
        deeper = len(heading[1])
        after = (h.start() for h in headings[place + 1 :] if len(h[1]) <= deeper)
        return text[heading.end() : next(after, len(text))].strip()
    raise PlaceError(f"{file} has no section {pointer}")


def _in_html(text: str, file: str, pointer: str) -> str:
    found = re.search(rf"""\bid=["']?{re.escape(pointer[1:])}["'\s>]""", text)
    if found is None:
        raise PlaceError(f"{file} has no element with id {pointer[1:]!r}")
    return text[found.start() :]
