"""HTML and SVG text that is built in Python: every value is escaped on its way in."""

from __future__ import annotations

import html
from collections.abc import Iterable


class Html(str):
    """Text that is markup already: by `__html__` a template knows not to escape it again."""

    __slots__ = ()

    def __html__(self) -> str:
        return self


def element(tag: str, *children: str, **attributes: str | float | None) -> Html:
    """Return one element.

    Args:
        tag: name.
        children: text, which is escaped, or `Html`, which is not.
        attributes: `class_` and `data_from` are written `class` and `data-from`; None leaves one out, and a
            number is rounded to two decimals, so that the same facts give the same bytes everywhere.
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(_plain(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    inner = joined(children)
    return Html(f"<{tag}{written}>{inner}</{tag}>" if inner or tag not in _VOID else f"<{tag}{written}/>")


def joined(parts: Iterable[str]) -> Html:
    """Return the parts one after the other, each escaped unless it is `Html`."""
    return Html("".join(part if isinstance(part, Html) else html.escape(part) for part in parts))


_VOID = ("line", "rect", "circle", "polyline", "polygon", "path", "use")


def _plain(value: str | float) -> str:
    if isinstance(value, str):
        return value
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
