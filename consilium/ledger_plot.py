"""The plot of `consilium ledger show`: epsilon over time against the cap, a panel per lineage."""

from __future__ import annotations

import io
from datetime import datetime
from typing import Any

from release.figures import BLUE, GREY, GRID, STYLE, TEAL

_WARN = "#c2622d"
_MARKS = {"rotate": ("new key", GREY), "restore": ("restored", _WARN)}


def epsilon_plot(lineages: list[dict[str, Any]], form: str) -> bytes:
    """Draw what `ledger_view.facts_of` found.

    Args:
        form: `svg`, whose bytes follow from the facts alone, or `png`.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = STYLE | {"svg.hashsalt": "epsilon"}
    target = io.BytesIO()
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(7.8, 3.4 * len(lineages)), facecolor="white", layout="constrained")
        for row, facts in enumerate(lineages, 1):
            _panel(figure.add_subplot(len(lineages), 1, row), facts)
        metadata: Any = {"Date": None, "Creator": None} if form == "svg" else None
        figure.savefig(target, format=form, dpi=150, metadata=metadata)
    return target.getvalue()


def _panel(axes: Any, facts: dict[str, Any]) -> None:
    shown = [e for e in facts["entries"] if e["epsilon_so_far"] is not None]
    at = _axis(axes, [e["time"] for e in shown] + [d["time"] for d in facts["decisions"]])
    x = [at(e) for e in shown]
    y = [e["epsilon_so_far"] for e in shown]
    cap = facts["epsilon_cap"]
    axes.grid(axis="y", color=GRID, lw=0.8, zorder=0)
    if shown:
        axes.step([x[0], *x], [0.0, *y], where="post", color=BLUE, lw=1.8, zorder=3)
        axes.fill_between([x[0], *x], [0.0, *y], step="post", color=BLUE, alpha=0.08, lw=0, zorder=2)
    charged = [i for i, e in enumerate(shown) if e["kind"] == "write-off"]
    if charged:
        axes.scatter(
            [x[i] for i in charged], [y[i] for i in charged], s=28, color=_WARN, zorder=4, label="write-off"
        )
    if cap is not None:
        axes.axhline(cap, color=TEAL, lw=1.2, ls=(0, (4, 3)), zorder=1)
        axes.text(0.01, cap, f"cap {cap:g}", transform=axes.get_yaxis_transform(), va="bottom", color=TEAL)
    for kind, (name, colour) in _MARKS.items():
        for i, decision in enumerate(d for d in facts["decisions"] if d["kind"] == kind):
            label = name if i == 0 else None
            axes.axvline(at(decision), color=colour, lw=1.2, ls=(0, (1, 2)), zorder=1, label=label)
    axes.set_ylim(0, 1.15 * max([*y, cap or 0.0, 1e-3]))
    axes.set_ylabel(f"epsilon at delta {facts['delta']:g}")
    axes.set_title(f"{facts['site']}: lineage {facts['lineage']}", loc="left", fontsize=11)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0.2)


def _axis(axes: Any, times: list[str | None]) -> Any:
    """Label the horizontal axis; return the position of an entry: its time, or its number within a minute."""
    known = sorted(_time(t) for t in times if t)
    if len(known) < 2 or (known[-1] - known[0]).total_seconds() < 60:
        from matplotlib.ticker import MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("entry of the ledger")
        return lambda entry: entry["sequence"]
    import matplotlib.dates

    dates: Any = matplotlib.dates  # untyped in part
    locator = dates.AutoDateLocator(maxticks=9)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
    axes.set_xlabel("time (UTC)")
    return lambda entry: dates.date2num(_time(entry["time"]))


def _time(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ")
