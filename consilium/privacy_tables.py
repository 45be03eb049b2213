"""What `consilium privacy` prints for people."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from consilium.output import NARROW, neighbours, screen
from contracts.errors import SENTENCES

Columns = dict[str, Callable[[dict[str, Any]], str]]  # name of a column: what it shows of a site

_ROWS = 20  # of the table of epsilon over the exchanges
_BAR = 24  # characters of the study's epsilon, where the terminal is wide enough
_BESIDE = 42  # columns of the same table beside the bar


def print_plan(facts: dict[str, Any]) -> None:
    """Print what `plan_facts` found."""
    patient = facts["mode"] == "patient"
    screen.print(
        f"[bold]{facts['study']}[/]: epsilon {facts['epsilon_planned']:.4f} of {facts['epsilon']:g} at delta "
        f"{facts['delta']:g}, for {neighbours(facts['adjacency'], 'patient' if patient else 'hospital')}",
        highlight=False,
    )
    without = facts["epsilon_without_amplification"]
    if patient:
        screen.print(
            f"against someone who knows who was in every batch: epsilon {without:.2f} (no amplification)",
            highlight=False,
        )
    noises = [f"{kind} {sigma:g}" for kind, sigma in facts["noise_multiplier"].items() if sigma is not None]
    screen.print(f"noise multipliers: {', '.join(noises)}", highlight=False)
    if facts["sites"]:
        screen.print(_site_table(facts) if patient else _hospital_table(facts))
        screen.print(_LEGEND if patient else _HOSPITAL_LEGEND, highlight=False)
    else:
        screen.print("no federation here: name one with --federation to see what the study means at a site")
    if not patient:
        _print_federation(facts["federation"])
    for site in facts["sites"]:
        for warning in site["warnings"]:
            screen.print(f"[bold yellow]warning[/] {site['site']}: {warning}", highlight=False)
        if site["error"]:
            detail = f"{site['site']}: {site['error']['number']} {site['error']['detail']}"
            screen.print(f"[bold red]would refuse[/] {detail}", highlight=False)
    screen.print(_projection_table(facts))


_LEGEND = (
    "n: declared size; noise: standard deviation of a coordinate of the mean gradient; clip/noise: the "
    "longest gradient against it, below 1 a single step is mostly noise; epsilon and cap: at the cap's "
    "delta, for one patient added or removed whatever the study's own adjacency, on a lineage that spent "
    "nothing before"
)
_HOSPITAL_LEGEND = (
    "n: declared size; weight: share in the mean; clip/noise: the hospital's longest update against the "
    "noise on a coordinate of the mean, below 1 a round is mostly noise; exact: whether its policy lets "
    "exact updates go to the coordinator"
)


def _print_federation(federation: dict[str, Any]) -> None:
    """Print what the coordinator would say of a study with hospital-level privacy."""
    screen.print(
        f"federation: epsilon {federation['epsilon_at_cap_delta']:.3f} at delta {federation['cap_delta']:g} "
        f"of a budget of {federation['epsilon_cap']:g} (the coordinator's budget.json), if nothing was spent "
        "before",
        highlight=False,
    )
    if federation["error"]:
        number, detail = federation["error"]["number"], federation["error"]["detail"]
        screen.print(f"[bold red]would be refused[/] {number} {detail}", highlight=False)


def _site_table(facts: dict[str, Any]) -> Table:
    """One line a site; narrow terminals do without the batch, the noise and the delta."""
    columns: Columns = {
        "n": lambda site: str(site["declared_size"]),
        "batch": lambda site: f"{site['expected_batch']:.4g}",
        "noise": lambda site: f"{site['noise_of_mean_gradient']:.3g}",
        "clip/noise": lambda site: f"{site['clip_over_noise']:.3g}",
        "delta": lambda site: f"{site['cap_delta']:g}",
        "epsilon": lambda site: f"{site['epsilon_at_cap_delta']:.3f}",
        "cap": lambda site: f"{site['epsilon_cap']:g}",
        "fits": _fits,
    }
    if screen.width < NARROW:
        columns = {name: of for name, of in columns.items() if name not in ("batch", "noise", "delta")}
    return _table_of("at each site", facts["sites"], columns)


def _hospital_table(facts: dict[str, Any]) -> Table:
    columns: Columns = {
        "n": lambda site: str(site["declared_size"]),
        "weight": lambda site: f"{site['weight']:.3f}",
        "clip/noise": lambda site: f"{site['clip_over_noise']:.3g}",
        "exact": lambda site: "yes" if site["exact_updates"] else "no",
        "fits": _fits,
    }
    return _table_of("at each hospital", facts["sites"], columns)


def _fits(site: dict[str, Any]) -> str:
    return "[green]yes[/]" if site["fits"] else f"[bold red]{site['error']['number']}[/]"


def _table_of(title: str, sites: list[dict[str, Any]], columns: Columns) -> Table:
    table = Table(box=SIMPLE, title=title, title_justify="left", pad_edge=False)
    table.add_column("site", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for site in sites:
        table.add_row(site["site"], *(show(site) for show in columns.values()))
    return table


def _projection_table(facts: dict[str, Any]) -> Table:
    """At most `_ROWS` rows, evenly chosen, the first and the last always; a bar is the plot."""
    points = facts["projection"]
    if len(points) > _ROWS:
        points = [points[round(i * (len(points) - 1) / (_ROWS - 1))] for i in range(_ROWS)]
    table = Table(box=SIMPLE, title="epsilon after each exchange", title_justify="left", pad_edge=False)
    table.add_column("exchange", no_wrap=True)
    for name in ("epsilon", "of promised"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    width = max(1, min(_BAR, screen.width - _BESIDE))
    for point in points:
        share = point["epsilon"] / facts["epsilon"]
        table.add_row(
            _exchange(point), f"{point['epsilon']:.3f}", f"{share:.0%}", f"[blue]{_bar(share, width)}[/]"
        )
    return table


def _exchange(point: dict[str, Any]) -> str:
    """Name one of the exchanges that a hospital takes part in."""
    if point["kind"] == "fold":
        return f"fold {point['fold']} round {point['round']}"
    return f"round {point['round']}" if point["kind"] == "training" else str(point["kind"])


def _bar(share: float, width: int) -> str:
    eighths = round(8 * width * min(share, 1.0))
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def print_cases(cases: list[dict[str, Any]]) -> None:
    """Print cases with their epsilons, beside the published ones where the file has them."""
    golden = any("epsilon_pld" in case for case in cases)
    table = Table(box=SIMPLE, pad_edge=False)
    for name in ("case", "rate x noise x steps", "one patient", "delta", "PRV", "RDP", *(["PLD"] * golden)):
        left = name in ("rate x noise x steps", "one patient")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    for number, case in enumerate(cases, 1):
        steps = [f"{s['sample_rate']:g} x {s['noise_multiplier']:g} x {s['steps']}" for s in case["steps"]]
        shown = "\n".join(steps[:4] + ([f"and {len(steps) - 4} more"] if len(steps) > 4 else []))
        prv, rdp = case["epsilon_prv"], case["epsilon_rdp"]
        pld = case.get("epsilon_pld")
        table.add_row(
            str(number),
            shown,
            "replace" if case.get("adjacency") == "replace-one" else "add/remove",
            f"{case['delta']:g}",
            case.get("error", "") if prv is None else f"{prv:.4f}",
            "" if rdp is None else f"{rdp:.4f}",
            *([f"{pld:.4f}" if isinstance(pld, int | float) and math.isfinite(pld) else ""] * golden),
        )
    screen.print(table)
    for number in sorted({case["error"] for case in cases if "error" in case}):
        screen.print(
            f"{number}: {SENTENCES[number][1]} Here the noise is too small for any, or one is infinite.",
            highlight=False,
        )
