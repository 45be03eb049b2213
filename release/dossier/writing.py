"""How documents of the dossier are written: JSON with sorted keys, and Markdown that quotes people.

A person's text stands in Markdown as a quotation (`> ...`), so that it can neither begin a section nor pass
for a statement of this software.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from release.dossier.pointers import OPEN_MARK, open_value

AUTHOR = "the study's authors, in the study's YAML"


def json_bytes(value: Any) -> bytes:
    """Return indented JSON with sorted keys: the same value gives the same bytes."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def stated(text: str | None, field: str, missing: str, who: str = AUTHOR) -> str | dict[str, str]:
    """Return what a person wrote, or the open value that says which field is missing.

    Args:
        field: of the YAML, `dossier.users`.
        missing: what it would say, as a sentence.
        who: who must write it.
    """
    return text if text and text.strip() else open_value(missing, f"{who}: `{field}`")


def listed(items: Sequence[str], field: str, missing: str) -> list[str] | dict[str, str]:
    """Return what a person listed, or the open value."""
    kept = [item for item in items if item.strip()]
    return kept or open_value(missing, f"{AUTHOR}: `{field}`")


def section(heading: str, body: str) -> str:
    """Return a section that this software wrote."""
    return f"## {heading}\n\n{body.strip()}\n"


def human_section(heading: str, value: Any) -> str:
    """Return a section that a person wrote (text or list), quoted; or that it is open."""
    if isinstance(value, dict):
        return section(heading, f"{OPEN_MARK} {value['open']}")
    parts = [value] if isinstance(value, str) else [f"- {item}" for item in value]
    return section(heading, "\n".join(quoted(part) for part in parts))


def quoted(text: str) -> str:
    """Return a person's text as a Markdown quotation."""
    return "\n".join(f"> {line}".rstrip() for line in text.strip().splitlines())


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; a bar or a line break in a cell cannot break it."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(c) for c in line) + " |" for line in lines)


def document(title: str, sections: Iterable[str]) -> bytes:
    """Return a Markdown file; `title` is no person's text, since it would be a heading."""
    return (f"# {title}\n\n" + "\n".join(sections)).encode()


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
