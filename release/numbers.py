"""How numbers stand on the validation page: each one says where it is in `validation.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from release.markup import Html, element

MINUS = "\N{MINUS SIGN}"
ABSENT = "\N{EN DASH}"
Ends = tuple[str, str]  # keys of an interval's two ends
INTERVAL: Ends = ("lower", "upper")
NEW_SITE: Ends = ("new_site_lower", "new_site_upper")


def _fixed(digits: int, factor: float = 1.0) -> Callable[[float], str]:
    zero = f"{0:.{digits}f}"

    def form(value: float) -> str:
        text = f"{abs(value) * factor:.{digits}f}"
        return (MINUS if value < 0 and text != zero else "") + text

    return form


def _signed(value: float) -> str:
    text = f"{abs(value):.3f}"
    return text if text == "0.000" else ("+" if value > 0 else MINUS) + text


FORMS: Mapping[str, Callable[[float], str]] = {
    "number": _fixed(3),
    "short": _fixed(2),
    "percent": lambda value: _fixed(1, 100)(value) + " %",
    "share": lambda value: _fixed(0, 100)(value) + " %",
    "hundred": _fixed(1, 100),  # a share, as patients of 100
    "signed": _signed,  # a difference
    "size": lambda value: f"{abs(value):.3f}",  # of a difference whose sign the words give
    "count": lambda value: f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}"),
}


class Numbers:
    """Numbers of one `validation.json`, read by the path of their keys."""

    def __init__(self, document: Mapping[str, Any]):
        self._document = document

    def at(self, *path: str | int) -> Any:
        """Return what stands at a path, or None."""
        found: Any = self._document
        for key in path:
            try:
                found = found[key]
            except (KeyError, IndexError, TypeError):
                return None
        return found

    def show(self, *path: str | int, form: str = "number") -> Html:
        """Return a number as `<data>` with its JSON pointer (RFC 6901), or a dash where there is none."""
        found = self.at(*path)
        if isinstance(found, Mapping):
            path, found = (*path, "value"), found.get("value")
        if not isinstance(found, (int, float)) or isinstance(found, bool):
            return Html(ABSENT)
        pointer = "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in path)
        return element("data", FORMS[form](found), value=repr(found), data_from=pointer, data_form=form)

    def interval(self, *path: str | int, form: str = "number", ends: Ends = INTERVAL) -> Html:
        """Return `0.780 to 0.841`, or nothing where the metric has no interval."""
        if any(self.at(*path, end) is None for end in ends):
            return Html("")
        return Html(" to ".join(self.show(*path, end, form=form) for end in ends))
