"""What `consilium privacy` prints for people."""

from __future__ import annotations

import math
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from consilium.output import screen

_ROWS = 20  # of the table of epsilon over the exchanges
_BAR = 24  # characters of the study's epsilon


def print_plan(facts: dict[str, Any]) -> None:
    """Print what `plan_facts` found."""
    unit = "one patient" if facts["mode"] == "patient" else "one hospital"
    replaced = facts["adjacency"] == "replace-one"
    screen.print(
        f"[bold]{facts['study']}[/]: epsilon {facts['epsilon_planned']:.4f} of {facts['epsilon']:g} at delta "
        f"{facts['delta']:g}, for {unit} {'replaced' if replaced else 'added or removed'}",
        highlight=False,
    )
    without = facts["epsilon_without_amplification"]
    if facts["mode"] == "patient":
        screen.print(
            f"against someone who knows who was in every batch: epsilon {without:.2f} (no amplification)",
            highlight=False,
        )
    noises = [f"{kind} {sigma:g}" for kind, sigma in facts["noise_multiplier"].items() if sigma is not None]
    screen.print(f"noise multipliers: {', '.join(noises)}", highlight=False)
    if facts["sites"]:
        screen.print(_site_table(facts))
        screen.print(
            "n: declared size; noise: standard deviation of a coordinate of the mean gradient; clip/noise: "
            "the longest gradient against it, below 1 a single step is mostly noise; epsilon and cap at the "
            "cap's delta, for a lineage that spent nothing before",
            highlight=False,
        )
        for site in facts["sites"]:
            if site["error"]:
                detail = f"{site['site']}: {site['error']['number']} {site['error']['detail']}"
                screen.print(f"[bold red]would refuse[/] {detail}", highlight=False)
    elif facts["mode"] == "patient":
        screen.print("no federation here: name one with --federation to see what the study means at a site")
    screen.print(_projection_table(facts))


def _site_table(facts: dict[str, Any]) -> Table:
    table = Table(box=SIMPLE, title="at each site", title_justify="left", pad_edge=False)
    table.add_column("site")
    for name in ("n", "batch", "noise", "clip/noise", "delta", "epsilon", "cap", "fits"):
        table.add_column(name, justify="right", no_wrap=True)
    for site in facts["sites"]:
        spent = site["epsilon_at_cap_delta"]
        table.add_row(
            site["site"],
            str(site["declared_size"]),
            f"{site['expected_batch']:.4g}",
            f"{site['noise_of_mean_gradient']:.3g}",
            f"{site['clip_over_noise']:.3g}",
            f"{site['cap_delta']:g}",
            "" if spent is None else f"{spent:.3f}",
            f"{site['epsilon_cap']:g}",
            "[green]yes[/]" if site["fits"] else f"[bold red]{site['error']['number']}[/]",
        )
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
    for point in points:
        share = point["epsilon"] / facts["epsilon"]
        name = f"round {point['round']}" if point["kind"] == "training" else point["kind"]
        table.add_row(name, f"{point['epsilon']:.3f}", f"{share:.0%}", f"[blue]{_bar(share)}[/]")
    return table


def _bar(share: float) -> str:
    eighths = round(8 * _BAR * min(share, 1.0))
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
