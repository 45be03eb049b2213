"""Tables of a study that was simulated several times, beside the same without privacy and the published."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from consilium.output import NARROW, screen
from consilium.published import Published
from consilium.repetition import METRICS

Summary = dict[str, Any]


def show_runs(found: dict[str, Any]) -> None:
    """Print accuracy and AUROC by hospital and pooled, with and without privacy side by side."""
    arms = {title_of(arm): arm for arm in arms_of(found)}
    some = next(iter(arms.values()))
    table = Table(title=f"{found['study']}: {often(some['runs'])} of {some['rounds']} rounds", box=SIMPLE)
    table.add_column("hospital", overflow="fold")
    for metric in METRICS:
        for title in arms:
            name = "AUROC" if metric == "auroc" else metric
            table.add_column(f"{name}\n{title}", justify="right", no_wrap=True)
    sites = list(some["sites"])
    for site in sites:
        cells = [cell(arm["sites"][site].get(metric)) for metric in METRICS for arm in arms.values()]
        table.add_row(site, *cells, end_section=site == sites[-1])
    table.add_row("pooled", *[cell(arm["pooled"].get(metric)) for metric in METRICS for arm in arms.values()])
    screen.print(table)
    if some["runs"] > 1:
        screen.print(
            "mean ± standard deviation over the runs, "
            + ("below it the lowest and the highest; " if screen.width >= NARROW else "")
            + "every run has noise of its own, on the same cohorts and holdouts: this is no interval for new "
            "patients",
            highlight=False,
        )
    for arm in arms.values():
        for gate in arm["gates"]:
            times = f"passed in {gate['passed']} of {often(arm['runs'])}"
            screen.print(f"gate {gate['gate']}, {title_of(arm)}: {times}", highlight=False)
    private = found.get("with_privacy")
    if private:
        show_privacy(private)
    if found.get("lost"):
        lost = ", ".join(
            f"{value:+.3f} {'AUROC' if name == 'auroc' else name}" for name, value in found["lost"].items()
        )
        screen.print(f"lost to privacy (pooled, of the means): [bold]{lost}[/]", highlight=False)


def show_privacy(private: Summary) -> None:
    """Print what one run of a private study promised, and that several promise less."""
    privacy = private["privacy"]
    unit = "patient" if privacy["mode"] == "patient" else "hospital"
    screen.print(
        f"differential privacy of one run: epsilon {privacy['maximum']:.3f} at delta {privacy['delta']:g} "
        f"per {unit}, whole study,\nnormalisation statistics included; sigma {privacy['noise_multiplier']:g}",
        highlight=False,
    )
    if private["runs"] > 1:
        screen.print(
            f"on real patients {private['runs']} runs would cost more than one: their epsilons add up in the "
            "ledger",
            highlight=False,
        )


def show_published(found: dict[str, Any], published: Published) -> None:
    """Print our accuracies above the published ones, and where those come from."""
    table = Table(title="accuracy beside published results, same split", box=SIMPLE)
    table.add_column("method")
    for name in ("pooled", *published.sites):
        table.add_column(name, justify="right", no_wrap=True)
    for arm in arms_of(found):
        pooled = arm["pooled"]["accuracy"]["mean"]
        each = [arm["sites"].get(s, {}).get("accuracy", {}).get("mean") for s in published.sites]
        table.add_row(f"[bold]here, {title_of(arm)}[/]", *map(number, [pooled, *each]))
    table.add_section()
    for row in published.rows:
        each = [*row.sites] or [None] * len(published.sites)
        table.add_row(row.method, *map(number, [row.pooled, *each]))
    screen.print(table)
    screen.print(f"published: {published.source}\n{published.note}", highlight=False)
    if published.privacy:
        show_published_privacy(found, published)


def show_published_privacy(found: dict[str, Any], published: Published) -> None:
    """Print the published runs with differential privacy, as means over hospitals, and the note on them."""
    assert published.privacy is not None
    table = Table(title="mean accuracy over the hospitals, with differential privacy", box=SIMPLE)
    table.add_column("epsilon")
    table.add_column("delta")
    table.add_column("here", justify="right")
    table.add_column("published", justify="right")
    for arm in arms_of(found):
        private = arm["privacy"]["mode"] != "none"
        label = f"{arm['privacy']['maximum']:.3f}, spent" if private else "no privacy"
        delta = f"{arm['privacy']['delta']:g}" if private else ""
        table.add_row(label, delta, number(arm.get("hospitals_mean", {}).get("accuracy", {}).get("mean")), "")
    table.add_section()
    for row in published.privacy.rows:
        claimed = "no privacy" if row.claimed_epsilon is None else f"{row.claimed_epsilon:g}, claimed"
        delta = "" if row.claimed_epsilon is None else f"{published.privacy.delta:g}"
        table.add_row(claimed, delta, "", number(row.accuracy))
    screen.print(table)
    screen.print(f"published: {published.privacy.source}\n{published.privacy.note}", highlight=False)


def arms_of(found: dict[str, Any]) -> list[Summary]:
    """The summaries that there are: with privacy, without it."""
    return [found[arm] for arm in ("with_privacy", "without_privacy") if found.get(arm)]


def title_of(arm: Summary) -> str:
    """What an arm is called in tables."""
    privacy = arm["privacy"]
    return "no privacy" if privacy["mode"] == "none" else f"epsilon {privacy['planned']:g}"


def often(runs: int) -> str:
    """Say how many runs."""
    return "1 run" if runs == 1 else f"{runs} runs"


def cell(spread: dict[str, Any] | None) -> str:
    """Show a spread over the runs in two short lines."""
    if spread is None:
        return "-"
    if spread["standard_deviation"] is None:
        return f"{spread['mean']:.3f}"
    if screen.width < NARROW:
        return f"{spread['mean']:.3f}\n± {spread['standard_deviation']:.3f}"
    return (
        f"{spread['mean']:.3f} ± {spread['standard_deviation']:.3f}\n"
        f"{spread['lowest']:.3f} to {spread['highest']:.3f}"
    )


def number(value: float | None) -> str:
    """Show an accuracy, or that there is none."""
    return "-" if value is None else f"{value:.3f}"
