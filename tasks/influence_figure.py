"""A picture per hospital of what it did to the model, round by round; the others in grey behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from release.markup import Html, element
from release.panels import Frame

Told = Mapping[str, Mapping[str, float | None]]


def influence_panels(rounds: Sequence[tuple[int, Told]]) -> dict[str, Html]:
    """Return hospital -> panel of `moved` over the rounds, with marks where it was scaled or dropped."""
    sites = sorted({site for _, told in rounds for site in told})
    lines = {
        site: [
            (float(n), float(moved)) for n, t in rounds if (moved := t.get(site, {}).get("moved")) is not None
        ]
        for site in sites
    }
    if not any(lines.values()):
        return {}
    first, last = rounds[0][0], max(rounds[-1][0], rounds[0][0] + 1)
    top = max(y for points in lines.values() for _, y in points) * 1.1 or 1.0
    frame = Frame(
        (first, last), (0.0, top), "round", "share of the step", width=220, height=150, most=4, left=34
    )
    panels = {}
    for site in sites:
        others = [frame.line(points, "other") for name, points in lines.items() if name != site and points]
        marks, scaled, dropped = [frame.line(lines[site], "own")], [], []
        for number, told in rounds:
            found = told.get(site, {})
            x, y = frame.at((number, found.get("moved") or 0.0))
            if found.get("kept") == 0:
                dropped.append(str(number))
                marks.append(element("path", d=f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8", class_="dropped"))
            elif (found.get("scale") or 1.0) < 1:
                scaled.append(str(number))
                marks.append(element("circle", cx=x, cy=y, r=4, class_="scaled"))
            elif found:
                marks.append(element("circle", cx=x, cy=y, r=1.8, class_="dot"))
        said = [f"largest share {max((y for _, y in lines[site]), default=0):.2f}"]
        said += [f"scaled down in rounds {', '.join(scaled)}"] if scaled else []
        said += [f"dropped in rounds {', '.join(dropped)}"] if dropped else []
        panels[site] = frame.picture(
            f"influence-{site}", f"Influence of {site}", f"{'; '.join(said)}.", *others, *marks
        )
    return panels
