"""The plots of the validation report, as SVG text whose bytes follow from the numbers alone."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec

INK, GREY, BLUE, TEAL, GRID = "#1b2733", "#6b7a88", "#1f5f8b", "#0f766e", "#e3e8ec"
_SITE_COLOURS = ("#1f5f8b", "#c2622d", "#0f766e", "#8a4f9e", "#b0892c", "#5b6b2f", "#a33b52", "#44546a")
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


@dataclass(frozen=True)
class Row:
    """One line of a forest plot; `metric` is {value, lower, upper}, or None with the `reason`."""

    name: str
    metric: Mapping[str, float] | None
    reason: str = ""
    weight: float = 0.5  # area of the square, 0..1
    pooled: bool = False


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


@_drawn
def forest_plot(rows: Sequence[Row], label: str, reference: float | None = 0.5) -> Any:
    """Draw estimates with 95 % intervals, one a row; a pooled one is a diamond.

    Args:
        rows: top to bottom.
        label: of the axis.
        reference: value of no use, drawn as a dashed line.
    """
    height = 1.0 + 0.4 * len(rows)
    figure = _figure(7.8, height)
    axes = figure.add_axes((0.23, 0.6 / height, 0.44, 1 - 0.7 / height))
    low = min([r.metric.get("lower", r.metric["value"]) for r in rows if r.metric], default=0.5)
    high = max([r.metric.get("upper", r.metric["value"]) for r in rows if r.metric], default=1.0)
    if reference is not None:
        low, high = min(low, reference), max(high, reference)
        axes.axvline(reference, color=GREY, lw=1, ls=(0, (4, 3)), zorder=1)
    margin = 0.04 * (high - low or 1)
    axes.set_xlim(low - margin, high + margin)
    for y, row in enumerate(reversed(rows)):
        _forest_row(axes, y, row)
    axes.set_yticks(range(len(rows)), [row.name for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel(label)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return figure


def _forest_row(axes: Any, y: int, row: Row) -> None:
    right = axes.get_yaxis_transform()
    if row.metric is None:
        axes.text(1.04, y, row.reason, transform=right, va="center", color=GREY)
        return
    value, lower, upper = row.metric["value"], row.metric.get("lower"), row.metric.get("upper")
    interval = f"  ({lower:.3f} to {upper:.3f})" if lower is not None and upper is not None else ""
    weight = "bold" if row.pooled else "normal"
    axes.text(1.04, y, f"{value:.3f}{interval}", transform=right, va="center", fontweight=weight)
    if row.pooled and interval:
        axes.fill([lower, value, upper, value], [y, y + 0.24, y, y - 0.24], color=TEAL, zorder=3, lw=0)
        axes.axvline(value, color=TEAL, lw=1, ls=(0, (1, 2)), zorder=1)
        return
    if interval:
        axes.plot([lower, upper], [y, y], color=BLUE, lw=1.6, solid_capstyle="butt", zorder=2)
    axes.scatter([value], [y], s=24 + 70 * row.weight, marker="s", color=BLUE, zorder=3, linewidths=0)


@_drawn
def calibration_plot(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> Any:
    """Draw observed against predicted risk in the merged bins of each hospital.

    Args:
        curves: hospital -> bins {mean_predicted, observed, n}.
    """
    figure = _figure(5.6, 5.2)
    axes = figure.add_axes((0.12, 0.11, 0.85, 0.86))
    axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls=(0, (4, 3)), zorder=1, label="perfect")
    top = 0.1
    for i, (name, bins) in enumerate(curves.items()):
        x, y = [b["mean_predicted"] for b in bins], [b["observed"] for b in bins]
        top = max([top, *x, *y])
        colour = _SITE_COLOURS[i % len(_SITE_COLOURS)]
        axes.plot(x, y, color=colour, lw=1.5, marker="o", ms=5, label=name, zorder=2)
    limit = min(1.0, top * 1.12)
    axes.set_xlim(0, limit)
    axes.set_ylim(0, limit)
    axes.set_aspect("equal")
    axes.grid(color=GRID, lw=0.8, zorder=0)
    axes.set_xlabel("predicted risk (mean of bin)")
    axes.set_ylabel("observed share of events")
    axes.legend(frameon=False, loc="upper left")
    return figure


def _figure(width: float, height: float) -> Any:
    """A figure in inches, outside pyplot and its global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), facecolor="none")
