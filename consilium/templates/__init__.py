"""Configurations of nginx and systemd; `@name` is filled in by `consilium.templates.fill`."""

from __future__ import annotations

from importlib.resources import files
from string import Template


class _Template(Template):
    delimiter = "@"  # nginx has variables of its own behind the dollar sign


def fill(name: str, **values: object) -> str:
    """Return the template `name` with its values."""
    return _Template(files(__name__).joinpath(name).read_text(encoding="utf-8")).substitute(values)
