"""`consilium simulate`: the whole of a study in one process, without Airflow."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from consilium.output import NARROW, Json, errors, print_json, reporting_refusals, screen
from consilium.published import published_results
from consilium.repetition import compare, repeat, steps_of, summary
from consilium.run_tables import show_published, show_runs
from consilium.simulation import (
    Progressing,
    Simulation,
    achievable_at,
    outcome,
    simulate_study,
    site_files,
    with_changes,
    with_privacy,
)
from consilium.simulation_folder import fresh_folder, kept_folder
from consilium.study import find_federation, find_study
from contracts.errors import ConsiliumError
from contracts.schedule import most_exchanges
from contracts.study import StudyProtocol, load_study
from tasks.stopped import evidence_page

app = typer.Typer()


def progress_bar() -> Progress:
    """The progress display of long commands."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=screen,
        transient=True,
    )


@app.command()
def simulate(
    study: Annotated[str, typer.Argument(help="A study file, or the name of a study that ships.")],
    federation: Annotated[
        Path | None, typer.Option(help="Folder of site.yaml files for your own data.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Another number of rounds than the study's.")
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Another epsilon; with --clip also for a study without privacy.")
    ] = None,
    delta: Annotated[float | None, typer.Option(help="Another delta. 1e-4 where nobody says one.")] = None,
    clip: Annotated[
        float | None, typer.Option(help="Another clip norm of a patient's gradient (or hospital's update).")
    ] = None,
    statistics_fraction: Annotated[
        float | None, typer.Option(help="Another share of epsilon for normalisation statistics.")
    ] = None,
    runs: Annotated[
        int | None, typer.Option(min=1, help="So many runs, each with its own noise; no release.")
    ] = None,
    compare: Annotated[
        bool, typer.Option(help="Also without privacy, beside what others published; no release.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for everything it makes.")] = None,
    going_on: Annotated[
        bool,
        typer.Option(
            "--continue",
            help="On the hospitals of an earlier simulation: same keys, same ledgers. So runs an amendment.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Run a study's whole lifecycle here, all sites in one process, and print its metrics."""
    with reporting_refusals(json):
        protocol = load_study(find_study(study))
        if rounds is not None:
            protocol = with_changes(protocol, rounds=rounds)
        protocol = with_privacy(
            protocol, epsilon=epsilon, delta=delta, clip=clip, statistics_fraction=statistics_fraction
        )
        folder = find_federation(protocol.product_name, federation)
        often = runs is not None or compare
        if going_on and often:
            raise typer.BadParameter("--continue goes with one run, not with --runs or --compare")
        if protocol.amends is not None and not going_on:
            raise typer.BadParameter(f"{protocol.study} amends a study: run it with --continue")
        if going_on:
            root = kept_folder(out, protocol.study, protocol.product_name)
        else:
            root = fresh_folder(out, protocol.study)
        if often:
            simulate_often(protocol, folder, root, runs or 1, compare, json)
        else:
            simulate_once(protocol, folder, root, json)


def simulate_once(protocol: StudyProtocol, folder: Path, root: Path, json: bool) -> None:
    """Run a study from intake to release and print its metrics; a gate that fails ends it with code 1."""
    started = time.monotonic()
    steps = len(site_files(folder)) + most_exchanges(protocol) + 3
    stopped: ConsiliumError | None = None
    published: Path | None = None
    with progress_of(protocol.study, steps, json) as progress:
        try:
            _, published = simulate_study(protocol, folder, root, progress)
        except ConsiliumError as error:
            if error.number not in ("E601", "E602"):
                raise
            stopped = error
    simulation = Simulation(root, protocol)
    made = evidence_page(simulation.coordinator, protocol.study)
    page = published / made.name if published else made
    found = outcome(simulation) | {
        "release": str(published) if published else None,
        "achievable_auroc": achievable_at(simulation.coordinator, protocol, list(simulation.sites.values()))
        or None,
        "seconds": round(time.monotonic() - started, 1),
        "home": str(root),
        "page": str(page) if page.is_file() else None,
    }
    if json:
        print_json(
            found | ({"stopped": {"number": stopped.number, "detail": stopped.detail}} if stopped else {})
        )
    else:
        show(found)
    if stopped is not None:
        if json:
            raise typer.Exit(1)
        raise stopped


def simulate_often(
    protocol: StudyProtocol, folder: Path, root: Path, runs: int, comparing: bool, json: bool
) -> None:
    """Run a study several times, and with `comparing` as often without privacy; print means and spreads."""
    started = time.monotonic()
    steps = steps_of(protocol, len(site_files(folder)), runs, comparing)
    with progress_of(protocol.study, steps, json) as progress:
        if comparing:
            found = compare(protocol, folder, root, runs, progress)
        else:
            arm = "without_privacy" if protocol.privacy.mode == "none" else "with_privacy"
            found = {arm: summary(repeat(protocol, folder, root / "runs", runs, progress))}
    published = published_results(protocol.study) if comparing else None
    found |= {
        "study": protocol.study,
        "published": published.model_dump() if published else None,
        "seconds": round(time.monotonic() - started, 1),
        "home": str(root),
    }
    if json:
        print_json(found)
    else:
        show_runs(found)
        if published:
            show_published(found, published)
        screen.print(f"{found['seconds']} s; everything is in {root}", soft_wrap=True)


@contextmanager
def progress_of(title: str, steps: int, silent: bool) -> Iterator[Progressing]:
    """A progress bar of so many steps; each call names the next one, on a line where there is no terminal."""
    if not (silent or screen.is_terminal):
        numbers = count(1)
        yield lambda text: errors.print(f"{next(numbers)}/{steps} {text}", highlight=False, markup=False)
        return
    with progress_bar() as bar:
        bar.disable = silent
        task = bar.add_task(title, total=steps)
        yield lambda text: bar.update(task, description=text, advance=1)


def show(found: dict[str, Any]) -> None:
    """Print a simulation's outcome as tables."""
    names = ["auroc", "accuracy", "brier"]
    if screen.width >= NARROW:
        names += ["calibration_slope", "calibration_intercept"]
    best = found.get("achievable_auroc") or {}
    table = Table(title=f"{found['study']}: {found['rounds']} rounds", box=SIMPLE, pad_edge=False)
    table.add_column("hospital", overflow="fold")
    for name in names:
        table.add_column(name.removeprefix("calibration_"), justify="right", no_wrap=True)
    sites = [
        key for key, value in found.items() if isinstance(value, dict) and "n" in value and key != "pooled"
    ]
    for site in [*sites, "pooled"]:
        cells = [interval(found[site].get(name), "\n{:.2f}..{:.2f}") for name in names]
        table.add_row(site, *cells, end_section=site == (sites or [""])[-1])
    screen.print(table)
    wide = "; slope and intercept are of calibration" if len(names) > 3 else ""
    screen.print(f"below each value its 95 % interval{wide}")
    if best:
        each = ", ".join(f"{site} {value:.3f}" for site, value in best.items())
        screen.print(f"best achievable AUROC (simulated patients): {each}", highlight=False)
    privacy = found["privacy"]
    if privacy["mode"] != "none":
        level = "patient level" if privacy["mode"] == "patient" else "hospital level, trusted coordinator"
        screen.print(
            f"differential privacy: epsilon {privacy['maximum']:.3f} at delta {privacy['delta']:g} "
            f"({level}, whole study), sigma {privacy['noise_multiplier']:g}"
        )
    else:
        screen.print("no differential privacy: exact updates left the hospitals")
    for gate in found["gates"]:
        mark = {True: "[green]passed[/]", False: "[bold red]failed[/]", None: "[bold yellow]not testable[/]"}[
            gate["passed"]
        ]
        screen.print(f"gate {gate['gate']}: {mark} {gate['detail']}", highlight=False)
    screen.print(f"{found['seconds']} s; everything is in {found['home']}", soft_wrap=True)
    if found["page"]:
        screen.print(f"validation page: {found['page']}", soft_wrap=True)
    if found["release"]:
        screen.print(f"release: [bold]{found['release']}[/]", soft_wrap=True)


def interval(metric: dict[str, float] | None, form: str = " ({:.3f} to {:.3f})") -> str:
    """Show an estimate with its 95 % interval."""
    if not metric:
        return "-"
    if metric.get("lower") is None:
        return f"{metric['value']:.3f}"
    return f"{metric['value']:.3f}" + form.format(metric["lower"], metric["upper"])
