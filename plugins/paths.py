"""Where a request goes, decided on the path as it was sent: one spelling, and no way round it."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import MutableMapping
from typing import Any, Literal
from urllib.parse import unquote

from plugins.refused import Refused

Family = Literal["edge", "execution", "exchange", "people"]

_DECODINGS = 6  # deeper than any proxy decodes
_FOR_PEOPLE = ("ui", "static", "res")  # pages of the edge provider, behind Airflow's own sign-in
# What stock workers send needs no percent-encoding: names of DAGs, runs and tasks are of these characters.
_NORMAL = re.compile(r"(/[A-Za-z0-9_~:+@-][A-Za-z0-9._~:+@-]*)+")


def family(scope: MutableMapping[str, Any]) -> Family:
    """Say which rules a request is under.

    Whatever could reach an application of machines in any reading (decoded once more, another case, dot
    segments, double slashes) must be spelled in its one normal form.

    Raises:
        Refused: 403, another spelling.
    """
    raw = scope.get("raw_path") or scope["path"].encode()
    text = raw.decode("latin-1")
    found = _family(_folded(text))
    normal = _NORMAL.fullmatch(text) and text == scope["path"] == _folded(text, False)
    if found != "people" and not (normal and _family(text) == found):
        raise Refused(403, "path_form", repr(text[:200]))
    return found


def _family(path: str) -> Family:
    _, _, rest = path.partition("/")
    head, _, rest = rest.partition("/")
    if head == "edge_worker":
        return "people" if rest.partition("/")[0] in _FOR_PEOPLE else "edge"
    if head == "execution":
        return "execution"
    return "exchange" if head == "consilium" else "people"


def _folded(path: str, case: bool = True) -> str:
    """The path in the widest reading: every decoding, every way to write a slash, no dot segments."""
    for _ in range(_DECODINGS):
        decoded = unquote(path)
        if decoded == path:
            break
        path = decoded
    path = unicodedata.normalize("NFKC", path).replace("\\", "/")
    path = "".join(character for character in path if character.isprintable())
    path = "/".join(part.partition(";")[0].strip() for part in path.split("/"))
    path = "/" + posixpath.normpath(path).lstrip("/")
    return path.casefold() if case else path


def folded(scope: MutableMapping[str, Any]) -> str:
    """The path in its widest reading, to look for what nobody may do under any spelling."""
    return _folded((scope.get("raw_path") or scope["path"].encode()).decode("latin-1"))
