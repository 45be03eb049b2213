"""The style of plots drawn with matplotlib, as SVG text whose bytes follow from the numbers alone.

The validation page draws its own (`release.forest`, `release.panels`), which follow the reader's theme.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any, ParamSpec

INK, GREY, BLUE, TEAL, GRID = "#1b2733", "#6b7a88", "#1f5f8b", "#0f766e", "#e3e8ec"
STYLE = {
    "svg.fonttype": "none",  # text stays text: small, searchable
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Segoe UI", "Helvetica Neue", "Arial"],
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}

_Arguments = ParamSpec("_Arguments")


def _drawn(draw: Callable[_Arguments, Any]) -> Callable[_Arguments, str]:
    """Draw under the report's style and return SVG with reproducible ids and no date."""

    @functools.wraps(draw)
    def rendered(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> str:
        import matplotlib

        target = io.BytesIO()
        style: Any = STYLE | {"svg.hashsalt": draw.__name__}
        with matplotlib.rc_context(style):
            figure = draw(*args, **kwargs)
            figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
        text = target.getvalue().decode()
        return text[text.index("<svg") :]

    return rendered


def _figure(width: float, height: float) -> Any:
    """A figure in inches, outside pyplot and its global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), facecolor="none")
