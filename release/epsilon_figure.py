"""The plot of epsilon over a study's exchanges, in the style of the validation report's figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from release.figures import BLUE, GREY, GRID, INK, TEAL, _drawn, _figure

_COLOURS = (BLUE, TEAL, "#8a4f9e", "#b0892c")


@dataclass(frozen=True)
class Curve:
    """Epsilon after some exchanges, at one delta, with the limits that hold at this delta by their names."""

    exchanges: tuple[int, ...]
    epsilons: tuple[float, ...]
    delta: float
    limits: Mapping[str, float]

    @staticmethod
    def of(points: Iterable[Mapping[str, Any]], delta: float, limits: Mapping[str, float]) -> Curve:
        """Make a curve of {exchange, epsilon}."""
        pairs = [(int(p["exchange"]), float(p["epsilon"])) for p in points]
        return Curve(tuple(x for x, _ in pairs), tuple(y for _, y in pairs), delta, dict(limits))


@_drawn
def epsilon_plot(curves: Sequence[Curve]) -> Any:
    """Draw epsilon over the exchanges, one curve a delta; a dashed line of its colour is a limit at it."""
    figure = _figure(7.8, 4.2)
    axes = figure.add_axes((0.09, 0.14, 0.87, 0.82))
    last = max(curve.exchanges[-1] for curve in curves)
    for i, curve in enumerate(curves):
        colour = _COLOURS[i % len(_COLOURS)]
        few = len(curve.exchanges) <= 30
        axes.plot(
            curve.exchanges,
            curve.epsilons,
            color=colour,
            lw=1.8,
            marker="o" if few else None,
            ms=3.5,
            label=f"spent, at delta {curve.delta:g}",
            zorder=3,
        )
        for name, value in curve.limits.items():
            axes.axhline(value, color=colour, lw=1, ls=(0, (4, 3)), zorder=2)
            shown = name if len(name) <= 70 else f"{name[:67]}..."
            axes.annotate(
                f"{shown}: {value:g} at delta {curve.delta:g}",
                (0.01, value),
                xycoords=axes.get_yaxis_transform(),
                xytext=(0, 3),
                textcoords="offset points",
                va="bottom",
                color=INK,
                fontsize=9,
            )
    top = max(max([*curve.epsilons, *curve.limits.values()]) for curve in curves)
    axes.set_ylim(0, 1.1 * top)
    axes.set_xlim(left=min(1, last - 1))
    axes.grid(axis="y", color=GRID, lw=0.8, zorder=0)
    axes.tick_params(colors=GREY, labelcolor=INK)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("exchanges in which a hospital takes part")
    axes.set_ylabel("epsilon spent")
    axes.legend(frameon=False, loc="lower right")
    return figure
