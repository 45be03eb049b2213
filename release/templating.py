"""Rendering a page from a template: everything is escaped, and a name that is missing is an error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from release.markup import Html

TEMPLATES = Path(__file__).parent / "templates"


def rendered(name: str, styles: Sequence[Path], folder: Path = TEMPLATES, **values: Any) -> str:
    """Return a self-contained page.

    Args:
        name: of the template in `folder`.
        styles: style sheets, which become one `style` of the template.
        values: what the template reads.
    """
    import jinja2  # only where a page is made

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Html("".join(path.read_text(encoding="utf-8") for path in styles))
    return environment.get_template(name).render(style=style, **values) + "\n"
