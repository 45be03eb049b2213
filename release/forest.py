"""Forest plots as tables: a row of HTML text beside a small drawing in percent, to fit any screen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from release.markup import Html, element, joined
from release.numbers import INTERVAL, MINUS, NEW_SITE, Ends, Numbers

_LEAST = 1e-3  # of a ratio on its logarithmic axis
_HEIGHT = 30.0  # of a row's drawing, in pixels
Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Row:
    """One line: the metric at `path` of validation.json, or the `reason` why there is none."""

    name: str
    path: Path
    reason: str = ""
    note: str | Html = ""  # such as the number of patients
    weight: float = 0.5  # area of the square, 0..1
    kind: str = "site"  # or pooled, or prediction (an interval without an estimate)

    @property
    def ends(self) -> Ends:
        """Keys of its interval."""
        return NEW_SITE if self.kind == "prediction" else INTERVAL


@dataclass(frozen=True)
class Forest:
    """Estimates with their intervals on one axis.

    Attributes:
        caption: what the rows are; read out first, and shown.
        label: of the axis.
        rows: top to bottom.
        reference: value of no use or no difference, a dashed line.
        form: of the numbers (`release.numbers.FORMS`).
        logarithmic: the axis of a ratio.
        head: of the first column.
    """

    caption: str
    label: str
    rows: Sequence[Row]
    reference: float | None = None
    form: str = "number"
    logarithmic: bool = False
    head: str = "Hospital"
    span: tuple[float, float] | None = None  # axis at least as wide as this


def forest(plot: Forest, numbers: Numbers) -> Html:
    """Return the table; a hospital is a square, a pooled estimate a diamond, a prediction a hollow bar."""
    scale = _Scale.over(plot, numbers)
    pooled = next((numbers.at(*r.path) for r in plot.rows if r.kind == "pooled"), None)
    guide = scale(pooled["value"]) if isinstance(pooled, Mapping) and "value" in pooled else None
    body = [_row(row, plot, numbers, scale, guide) for row in plot.rows]
    ticks = [_tick(value, scale(value)) for value in scale.ticks]
    line = element("line", x1="0", x2="100%", y1="0.5", y2="0.5", class_="axis")
    axis = element(
        "svg", line, *ticks, element("text", plot.label, x="50%", y="33", class_="label"),
        height=38, width="100%", aria_hidden="true",
    )  # fmt: skip
    head = element(
        "tr",
        element("th", plot.head, scope="col", role="columnheader"),
        element("th", plot.label, scope="col", role="columnheader", class_="drawn"),
        element("th", "Estimate (95 % interval)", scope="col", role="columnheader", class_="estimate"),
        role="row",
    )
    foot = element(
        "tr", element("td", role="cell"), element("td", axis, role="cell", class_="drawn"),
        element("td", role="cell"), role="row", class_="axisrow",
    )  # fmt: skip
    return element(
        "table",
        element("caption", plot.caption),
        element("thead", head, role="rowgroup"),
        element("tbody", *body, foot, role="rowgroup"),
        class_="forest",
        role="table",
    )


def _row(row: Row, plot: Forest, numbers: Numbers, scale: _Scale, guide: float | None) -> Html:
    name = element("th", row.name, scope="row", role="rowheader")
    if row.note:
        name = element("th", row.name, element("small", row.note), scope="row", role="rowheader")
    if numbers.at(*row.path) is None:
        shown, drawing = joined([row.reason]), Html("")
    else:
        shown, drawing = _estimate(row, plot, numbers), _mark(row, numbers, scale)
    lines = [
        _vertical(scale(plot.reference), "reference") if plot.reference is not None else Html(""),
        _vertical(guide, "guide") if guide is not None else Html(""),
    ]
    picture = element("svg", *lines, drawing, height=_HEIGHT, width="100%", aria_hidden="true")
    return element(
        "tr", name, element("td", picture, role="cell", class_="drawn"),
        element("td", shown, role="cell", class_="estimate"), role="row", class_=row.kind,
    )  # fmt: skip


def _estimate(row: Row, plot: Forest, numbers: Numbers) -> Html:
    interval = numbers.interval(*row.path, form=plot.form, ends=row.ends)
    if row.kind == "prediction":
        return interval
    value = element("b", numbers.show(*row.path, form=plot.form))
    return joined([value, Html(" ("), interval, Html(")")]) if interval else value


def _mark(row: Row, numbers: Numbers, scale: _Scale) -> Html:
    metric, middle = numbers.at(*row.path), _HEIGHT / 2
    low, high = (metric.get(end) for end in row.ends)
    ranged = low is not None and high is not None
    left, width = (scale(low), scale(high) - scale(low)) if ranged else (0.0, 0.0)
    if row.kind == "prediction":
        return element(
            "rect", x=f"{left:.2f}%", width=f"{width:.2f}%", y=middle - 4, height=8, rx=4, class_="new"
        )
    centre = f"{scale(metric['value']):.2f}%"
    if row.kind == "pooled" and ranged:
        peak = 100 * (scale(metric["value"]) - left) / width if width else 50.0
        diamond = element("polygon", points=f"0,10 {peak:.1f},0 100,10 {peak:.1f},20", class_="diamond")
        return element(
            "svg", diamond, x=f"{left:.2f}%", width=f"{max(width, 0.6):.2f}%", y=middle - 8, height=16,
            viewBox="0 0 100 20", preserveAspectRatio="none",
        )  # fmt: skip
    side = 6 + 7 * math.sqrt(row.weight)
    whisker = element(
        "line", x1=f"{left:.2f}%", x2=f"{left + width:.2f}%", y1=middle, y2=middle, class_="whisker"
    )
    square = element("rect", x=-side / 2, y=-side / 2, width=side, height=side, class_="square")
    square = element("svg", square, x=centre, y=middle, width=1, height=1, overflow="visible")
    return joined([whisker if ranged else Html(""), square])


def _tick(value: float, x: float) -> Html:
    mark = element("line", x1=f"{x:.2f}%", x2=f"{x:.2f}%", y1="0", y2="5", class_="axis")
    text = f"{value:g}".replace("-", MINUS)
    return joined([mark, element("text", text, x=f"{x:.2f}%", y="17", class_="tick")])


def _vertical(x: float, kind: str) -> Html:
    return element("line", x1=f"{x:.2f}%", x2=f"{x:.2f}%", y1="0", y2="100%", class_=kind)


@dataclass(frozen=True)
class _Scale:
    """Value to percent of the drawing's width."""

    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool

    @staticmethod
    def over(plot: Forest, numbers: Numbers) -> _Scale:
        values = [v for row in plot.rows for v in _values(row, numbers)]
        values += [] if plot.reference is None else [plot.reference]
        values += list(plot.span or ())
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        if plot.logarithmic:
            low, high = max(low, _LEAST), max(high, _LEAST)
            low, high = low / 1.08, high * 1.08
            return _Scale(math.log(low), math.log(high), ratio_ticks(low, high), True)
        margin = 0.05 * (high - low or 1)
        return _Scale(low - margin, high + margin, ticks(low, high), False)

    def __call__(self, value: float) -> float:
        at = math.log(max(value, _LEAST)) if self.logarithmic else value
        return 100 * (at - self.low) / (self.high - self.low)


def _values(row: Row, numbers: Numbers) -> Iterator[float]:
    keys = row.ends if row.kind == "prediction" else ("value", *row.ends)
    return (found for key in keys if (found := numbers.at(*row.path, key)) is not None)


def ticks(low: float, high: float, most: int = 5) -> tuple[float, ...]:
    """Return round numbers from `low` to `high`, at most `most` + 1 of them."""
    if not high > low:
        return (low,)
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(round(i * step, 10) + 0.0 for i in range(first, last + 1))


def ratio_ticks(low: float, high: float) -> tuple[float, ...]:
    """Return round ratios between `low` and `high`, few enough to be read."""
    for choice in (
        (0.8, 0.9, 1, 1.1, 1.25),
        (0.5, 0.65, 0.8, 1, 1.25, 1.5, 2),
        (0.1, 0.25, 0.5, 1, 2, 4, 10),
    ):
        if choice[0] <= low * 1.02 and high <= choice[-1] * 1.02:
            return tuple(float(t) for t in choice if low <= t <= high)
    return (0.01, 0.1, 1.0, 10.0, 100.0)
