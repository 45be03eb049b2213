"""Curves of one hospital a panel, drawn as inline SVG whose colours follow the page's theme."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from release.forest import ticks
from release.markup import Html, element, joined
from release.numbers import MINUS

Point = tuple[float, float]


@dataclass(frozen=True)
class Frame:
    """The axes of a panel: value ranges, labels and size in SVG units."""

    x: tuple[float, float]
    y: tuple[float, float]
    x_label: str
    y_label: str
    width: float = 180
    height: float = 176
    most: int = 4  # ticks
    left: float = 30

    top, right, bottom = 18.0, 8.0, 32.0  # margins

    def at(self, point: Point) -> Point:
        """Return where a point lies, the ends of the axes at most."""
        return self.across(point[0]), self.up(point[1])

    def across(self, value: float) -> float:
        """Return the x of a value."""
        share = (value - self.x[0]) / (self.x[1] - self.x[0])
        return self.left + min(max(share, 0.0), 1.0) * (self.width - self.left - self.right)

    def up(self, value: float) -> float:
        """Return the y of a value."""
        share = (value - self.y[0]) / (self.y[1] - self.y[0])
        return self.height - self.bottom - min(max(share, 0.0), 1.0) * (self.height - self.top - self.bottom)

    def drawn(self) -> Html:
        """Return grid, ticks and labels."""
        right, low = self.width - self.right, self.height - self.bottom
        parts = []
        for value in ticks(*self.x, self.most):
            x = self.across(value)
            parts.append(element("line", x1=x, x2=x, y1=self.top, y2=low, class_="grid"))
            parts.append(element("text", _tick(value), x=x, y=low + 12, class_="tick"))
        for value in ticks(*self.y, self.most):
            y = self.up(value)
            parts.append(element("line", x1=self.left, x2=right, y1=y, y2=y, class_="grid"))
            parts.append(element("text", _tick(value), x=self.left - 4, y=y + 3.5, class_="tick end"))
        middle = (self.left + right) / 2
        parts.append(element("text", self.x_label, x=middle, y=self.height - 5, class_="label"))
        parts.append(element("text", self.y_label, x=2, y=10, class_="label start"))
        return joined(parts)

    def line(self, points: Sequence[Point], kind: str) -> Html:
        """Return a line through the points."""
        inside = (self.at(point) for point in points)
        return element("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in inside), class_=kind)

    def picture(self, name: str, title: str, description: str, *parts: Html) -> Html:
        """Return the panel with title and description for those who do not see it; `name` makes ids."""
        ids = f"{name}-t {name}-d"
        return element(
            "svg", element("title", title, id=f"{name}-t"), element("desc", description, id=f"{name}-d"),
            self.drawn(), *parts,
            viewBox=f"0 0 {self.width:g} {self.height:g}", role="img", aria_labelledby=ids, class_="panel",
        )  # fmt: skip


def _tick(value: float) -> str:
    return f"{value:g}".replace("-", MINUS)


def roc_panels(
    curves: Mapping[str, Sequence[Point]], operating: Mapping[str, Point]
) -> tuple[Html, dict[str, Html]]:
    """Return the shared background (every hospital's curve, in grey) and one panel per hospital.

    Args:
        curves: hospital -> (false-positive rate, sensitivity) of its merged bins.
        operating: hospital -> the same at the locked threshold, where it is shown.
    """
    frame = Frame((0, 1), (0, 1), f"1 {MINUS} specificity", "sensitivity", most=2)
    whole = {name: _ended(points) for name, points in curves.items()}
    chance = frame.line([(0, 0), (1, 1)], "reference")
    shared = element("g", chance, *(frame.line(points, "other") for points in whole.values()), id="roc-all")
    panels = {}
    for name, points in whole.items():
        marks = [frame.line(points, "own")]
        described = f"{len(points) - 2} points, from merged bins of risk."
        if name in operating:
            x, y = frame.at(operating[name])
            marks.append(element("circle", cx=x, cy=y, r=4.5, class_="threshold"))
            described += f" At the locked threshold: sensitivity {operating[name][1]:.3f}, 1 - specificity "
            described += f"{operating[name][0]:.3f}."
        title = f"ROC curve of {name}"
        panels[name] = frame.picture(f"roc-{name}", title, described, element("use", href="#roc-all"), *marks)
    return shared, panels


def _ended(points: Sequence[Point]) -> list[Point]:
    inner = sorted((float(x), float(y)) for x, y in points)
    return [(0.0, 0.0), *(p for p in inner if p not in ((0.0, 0.0), (1.0, 1.0))), (1.0, 1.0)]


def calibration_panels(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> tuple[Html, dict[str, Html]]:
    """Return the shared background and one panel per hospital: observed against predicted risk.

    A bin's bar is the 95 % interval of its observed share (Wilson, JASA 22, 1927).

    Args:
        curves: hospital -> merged bins {mean_predicted, observed, n}, in order of rising risk.
    """
    highest = max(max(b["mean_predicted"], b["observed"]) for bins in curves.values() for b in bins)
    top = min(1.0, math.ceil(10 * highest * 1.08) / 10)
    frame = Frame((0, top), (0, top), "predicted risk", "observed share", most=3)
    lines = {n: [(b["mean_predicted"], b["observed"]) for b in bins] for n, bins in curves.items()}
    perfect = frame.line([(0, 0), (top, top)], "reference")
    shared = element("g", perfect, *(frame.line(p, "other") for p in lines.values()), id="calibration-all")
    panels = {}
    for name, bins in curves.items():
        marks = [frame.line(lines[name], "own")]
        for b in bins:
            x, y = frame.at((b["mean_predicted"], b["observed"]))
            low, high = wilson_interval(b["observed"], b["n"])
            marks.append(element("line", x1=x, x2=x, y1=frame.up(low), y2=frame.up(high), class_="whisker"))
            marks.append(element("circle", cx=x, cy=y, r=3, class_="dot"))
        described = "; ".join(f"predicted {p:.2f}, observed {o:.2f}" for p, o in lines[name])
        background = element("use", href="#calibration-all")
        panels[name] = frame.picture(
            f"calibration-{name}", f"Calibration of {name}", f"{described}.", background, *marks
        )
    return shared, panels


def wilson_interval(share: float, n: float) -> tuple[float, float]:
    """Return the 95 % interval of a share among `n` (Wilson 1927); all of [0, 1] for no patient."""
    if n <= 0:
        return 0.0, 1.0
    z2 = 1.959963984540054**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class DecisionAxes:
    """Thresholds and net benefit that the panels of several hospitals share, so that they compare."""

    thresholds: tuple[float, float]
    benefit: tuple[float, float]

    @staticmethod
    def over(
        curves: Iterable[Sequence[Mapping[str, float]]], thresholds: tuple[float, float]
    ) -> DecisionAxes:
        """Fit the curves; treat-all, which falls without end, is cut at a third of the best below zero."""
        points = [point for curve in curves for point in curve]
        best = max(0.01, *(max(p["model"], p["treat_all"]) for p in points))
        lowest = min(min(p["model"], max(p["treat_all"], -0.33 * best)) for p in points)
        return DecisionAxes(thresholds, (min(0.0, lowest) - 0.06 * best, 1.1 * best))


def decision_panel(
    name: str,
    points: Sequence[Mapping[str, float]],
    threshold: float,
    axes: DecisionAxes,
    *,
    large: bool = False,
) -> Html:
    """Return a decision curve: net benefit of the model, of treating all and of treating none.

    Args:
        name: of the hospital, or pooled.
        points: {threshold, model, treat_all}, by rising threshold.
        threshold: the locked one, marked where it lies in the range.
        axes: shared by all panels.
        large: for a figure of its own.
    """
    (first, last), (low, high) = axes.thresholds, axes.benefit
    labelled = Frame(axes.thresholds, axes.benefit, "decision threshold", "net benefit", most=3)
    frame = replace(labelled, width=440, height=250, most=5, left=44) if large else labelled
    treated = [(p["threshold"], p["treat_all"]) for p in points]
    own = [(p["threshold"], p["model"]) for p in points]
    marks = [
        frame.line([(first, 0), (last, 0)], "none"),
        frame.line(_above(treated, low), "all"),
        frame.line(own, "own"),
    ]
    if first <= threshold <= last:
        at = frame.across(threshold)
        marks.append(element("line", x1=at, x2=at, y1=frame.up(high), y2=frame.up(low), class_="guide"))
    marks += [element("circle", cx=x, cy=y, r=2.4, class_="dot") for x, y in map(frame.at, own)]
    described = "; ".join(
        f"at {p['threshold']:g} model {p['model']:.3f}, treat all {p['treat_all']:.3f}" for p in points
    )
    return frame.picture(f"decision-{name}", f"Decision curve, {name}", f"{described}; treat none 0.", *marks)


def _above(points: Sequence[Point], floor: float) -> list[Point]:
    """Cut a falling line where it leaves the panel, instead of bending it along the edge."""
    kept: list[Point] = []
    for point in points:
        if point[1] >= floor:
            kept.append(point)
            continue
        if kept and kept[-1][1] > floor:
            (x0, y0), (x1, y1) = kept[-1], point
            kept.append((x0 + (x1 - x0) * (y0 - floor) / (y0 - y1), floor))
        break
    return kept


def hundred_patients(right_alerts: int, false_alerts: int, missed: int) -> Html:
    """Return 100 patients as marks: what an alert at the locked threshold means, as counts people can see."""
    kinds = ["hit"] * right_alerts + ["alarm"] * false_alerts + ["missed"] * missed
    kinds += ["quiet"] * (100 - len(kinds))
    marks = [_patient(kind, 10 + 16.0 * (i % 20), 10 + 17.0 * (i // 20)) for i, kind in enumerate(kinds)]
    described = (
        f"Of 100 patients {right_alerts} raise an alert and have the outcome, {false_alerts} raise an alert "
        f"without it, {missed} have the outcome and raise none."
    )
    return element(
        "svg", element("title", "One hundred patients", id="hundred-t"),
        element("desc", described, id="hundred-d"), *marks,
        viewBox="0 0 324 88", role="img", aria_labelledby="hundred-t hundred-d", class_="hundred",
    )  # fmt: skip


def _patient(kind: str, x: float, y: float) -> Html:
    if kind == "missed":
        cross = f"M{x - 4:g} {y - 4:g}l8 8m0 -8l-8 8"
        return element("path", d=cross, class_=kind)
    return element("circle", cx=x, cy=y, r={"hit": 5.5, "alarm": 4.7, "quiet": 2.2}[kind], class_=kind)
