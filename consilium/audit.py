"""`consilium audit`: attack a study's privacy mechanism and compare what leaks with what is claimed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.table import Table

from consilium.output import Json, file_to_write, print_json, reporting_refusals, screen, writing
from consilium.plan_sites import check_study
from consilium.study import find_study
from contracts.errors import ConsiliumError
from contracts.study import PatientPrivacy, StudyProtocol, load_study, parse_study
from privacy.accountant import Spend, epsilon
from privacy.audit import FAULTS, Fault, Power, Verdict, expected_power, judge, runs_needed
from privacy.calibration import calibrate

if TYPE_CHECKING:
    from torch import Tensor, nn

    from privacy.canaries import Observation

app = typer.Typer()

_CONFIDENCE = 0.95
_PICTURES = (".png", ".svg", ".pdf")


@app.command()
def audit(
    study: Annotated[str, typer.Argument(help="A study file, or the name of a study that ships.")],
    runs: Annotated[int, typer.Option(min=1, max=100, help="How often to attack.")] = 1,
    canaries: Annotated[int, typer.Option(min=100, max=1900, help="Patients that are in by a coin.")] = 1000,
    fault: Annotated[str, typer.Option(help=f"Put a fault in: {', '.join(FAULTS)}.")] = "none",
    plot: Annotated[
        Path | None,
        typer.Option(
            help=f"Draw the scores of the first run: {', '.join(_PICTURES)}.",
            callback=file_to_write(*_PICTURES),
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Attack the privacy mechanism with canaries and compare with its claim. Needs no patient's data."""
    with reporting_refusals(json):
        if fault not in FAULTS:
            raise typer.BadParameter(f"{fault!r}, expected one of {', '.join(FAULTS)}", param_hint="--fault")
        protocol = load_study(find_study(study))
        if protocol.privacy.mode == "patient":
            check_study(protocol)
        privacy, spend = audited(protocol)
        claim = epsilon([spend], privacy.delta)
        settings: dict[str, Any] = {"claim": claim, "delta": privacy.delta, "confidence": _CONFIDENCE}
        powers = expected_power(spend, canaries=canaries, **settings)
        if not json:
            _show_power(protocol, spend, privacy.delta, claim, canaries, powers)
        seen = _attacks(protocol, canaries, fault, runs, quiet=json)
        verdicts = [judge(each.scores, each.included, **settings) for each in seen]
        if plot is not None:
            with writing(plot):
                draw_scores(seen[0], verdicts[0], fault, plot)
        refuted = sum(v.refuted for v in verdicts) >= runs_needed(runs, _CONFIDENCE)
        if json:
            print_json(_facts(protocol, spend, privacy, claim, fault, powers, verdicts, refuted))
        else:
            _show_verdicts(verdicts, fault, refuted)
        detail = f"lower bound {max(v.lower_bound for v in verdicts):.3f}, claimed epsilon {claim:.3f}"
        refusal = None
        if fault == "none" and refuted:
            refusal = ConsiliumError("E420", detail)
        if fault != "none" and not refuted:
            refusal = ConsiliumError("E421", f"fault {fault!r}: {detail}")
        if refusal is not None:
            if json:
                raise typer.Exit(1)
            raise refusal


def audited(protocol: StudyProtocol) -> tuple[PatientPrivacy, Spend]:
    """Return the privacy of a study and all its training steps: what the audit attacks and what is claimed.

    Raises:
        ConsiliumError: E422, there is no patient-level claim.
    """
    privacy = protocol.privacy
    if not isinstance(privacy, PatientPrivacy):
        raise ConsiliumError("E422", f"privacy.mode {privacy.mode!r}, expected 'patient'")
    training = protocol.training
    sigma = calibrate(protocol).training
    return privacy, Spend(training.sample_rate, sigma, training.steps * protocol.rounds)


def canary_model(canaries: int, max_grad_norm: float) -> tuple[nn.Module, Tensor]:
    """Build the registered logistic model over the canaries' features and the ordinary patients'.

    It is whole, with its preprocessing. The scale that a round of statistics could have released turns the
    1 of a canary's feature into a network input far beyond what the clip norm lets through.
    """
    import torch

    from models.registry import build_model, load_state, state_of
    from privacy.canaries import ORDINARY_FEATURES, canary_input

    width = canaries + ORDINARY_FEATURES
    protocol = parse_study(
        {
            "schema": "consilium/study/1",
            "study": "canaries",
            "title": "Canaries",
            "intended_use": "The audit of a privacy mechanism.",
            "cohort": {},
            "features": [
                {"name": f"f{i}", "kind": "numeric", "unit": "1", "range": [-1, 1]} for i in range(width)
            ],
            "label": {"name": "event", "positive": "event"},
            "model": {"name": "logistic"},
            "training": {"steps": 1, "sample_rate": 1, "learning_rate": 1, "normalisation": "declared"},
            "privacy": {"mode": "none"},
            "rounds": 1,
            "min_sites": 1,
        }
    )
    model = build_model(protocol)
    state = state_of(model)
    state["preprocessing.scale"][:canaries] = 1.0 / canary_input(max_grad_norm)
    load_state(model, state)
    assert isinstance(model.network, torch.nn.Linear)
    return model, model.network.weight


def attack_study(
    protocol: StudyProtocol, canaries: int, fault: Fault, progress: Callable[[], None] = lambda: None
) -> Observation:
    """Attack once what trains this study at its hospitals: its sampling, clipping, noise, and all steps."""
    from privacy.canaries import attack
    from privacy.dpsgd import AdaptiveOptimizer, PatientOptimizer, PerLayerOptimizer

    privacy, spend = audited(protocol)
    make: Callable[..., PatientOptimizer] = PatientOptimizer
    if privacy.clipping == "per-layer":
        make = PerLayerOptimizer
    elif privacy.clipping == "adaptive":
        make = partial(AdaptiveOptimizer, quantile=privacy.quantile, start=privacy.max_grad_norm)
    model, weight = canary_model(canaries, privacy.max_grad_norm)
    return attack(
        model,
        weight,
        spend,
        max_grad_norm=privacy.max_grad_norm,
        canaries=canaries,
        make=make,
        fault=fault,
        progress=progress,
    )


def _attacks(
    protocol: StudyProtocol, canaries: int, fault: Fault, runs: int, *, quiet: bool
) -> list[Observation]:
    """Run the attack as often as asked for."""
    from consilium.simulate import progress_bar

    _, spend = audited(protocol)
    with progress_bar() as bar:
        bar.disable = quiet
        task = bar.add_task("attacking", total=runs * spend.steps)
        return [attack_study(protocol, canaries, fault, lambda: bar.advance(task)) for _ in range(runs)]


def _facts(
    protocol: StudyProtocol,
    spend: Spend,
    privacy: PatientPrivacy,
    claim: float,
    fault: Fault,
    powers: list[Power],
    verdicts: list[Verdict],
    refuted: bool,
) -> dict[str, Any]:
    return {
        "study": protocol.study,
        "protocol_hash": protocol.hash,
        "fault": fault,
        "sample_rate": spend.sample_rate,
        "noise_multiplier": spend.noise_multiplier,
        "steps": spend.steps,
        "max_grad_norm": privacy.max_grad_norm,
        "delta": privacy.delta,
        "claimed_epsilon": claim,
        "adjacency": "add-or-remove-one",
        "canaries": verdicts[0].canaries,
        "guesses": verdicts[0].guesses,
        "confidence": _CONFIDENCE,
        "expected": [{"fault": p.fault, "lower_bound": p.bound, "detection": p.detection} for p in powers],
        "runs": [
            {"correct": v.correct, "lower_bound": v.lower_bound, "refuted": v.refuted} for v in verdicts
        ],
        "runs_needed": runs_needed(len(verdicts), _CONFIDENCE),
        "refuted": refuted,
    }


def _show_power(
    protocol: StudyProtocol,
    spend: Spend,
    delta: float,
    claim: float,
    canaries: int,
    powers: list[Power],
) -> None:
    screen.print(
        f"{protocol.study}: training claims epsilon {claim:.3f} at delta {delta:g} for one patient added or "
        f"removed ({spend.steps} steps, rate {spend.sample_rate:g}, sigma {spend.noise_multiplier:g})",
        highlight=False,
    )
    table = Table(title=f"What to expect of {canaries} canaries, simulated beforehand", box=SIMPLE)
    table.add_column("mechanism")
    table.add_column("lower bound (mean)", justify="right")
    table.add_column("claim refuted", justify="right")
    for power in powers:
        name = "as claimed" if power.fault == "none" else power.fault
        table.add_row(name, f"{power.bound:.2f}", f"{power.detection:.0%} of runs")
    screen.print(table)


def _show_verdicts(verdicts: list[Verdict], fault: Fault, refuted: bool) -> None:
    what = "the mechanism as it is" if fault == "none" else f"fault put in: {fault}"
    table = Table(title=f"Attack on {what}", box=SIMPLE)
    numbers = ("run", "claimed", "lower bound", "guesses", "correct")
    for name in (*numbers, "verdict"):
        table.add_column(name, justify="right" if name in numbers else "left", no_wrap=True)
    for i, verdict in enumerate(verdicts, start=1):
        table.add_row(
            str(i),
            f"{verdict.claim:.3f}",
            f"{verdict.lower_bound:.3f}",
            str(verdict.guesses),
            str(verdict.correct),
            "[bold red]the claim is refuted[/]" if verdict.refuted else "no violation found",
        )
    screen.print(table)
    screen.print("each lower bound of epsilon holds with a confidence of 95 %", highlight=False)
    if len(verdicts) > 1:
        needed = runs_needed(len(verdicts), _CONFIDENCE)
        screen.print(f"together they refute the claim if {needed} or more of {len(verdicts)} do")
    if fault == "none" and not refuted:
        screen.print(
            "An audit can refute a claim and not prove it: docs/audit.md says what this one cannot see."
        )


def draw_scores(seen: Observation, verdict: Verdict, fault: Fault, path: Path) -> None:
    """Draw the scores of canaries in and out of the cohort, and which were guessed, as PNG, SVG or PDF."""
    import numpy as np
    from matplotlib.figure import Figure

    from release.figures import BLUE, GREY, INK

    figure = Figure(figsize=(7.0, 3.6), layout="constrained")
    axes = figure.subplots()
    edges = np.histogram_bin_edges(seen.scores, bins=40).tolist()
    axes.hist(seen.scores[~seen.included], edges, color=GREY, alpha=0.65, label="left out")
    axes.hist(seen.scores[seen.included], edges, color=BLUE, alpha=0.65, label="in the cohort")
    ordered, half = np.sort(seen.scores), verdict.guesses // 2
    axes.axvline(ordered[half - 1], color=INK, linestyle="--", linewidth=1)
    axes.axvline(ordered[-half], color=INK, linestyle="--", linewidth=1, label="guessed beyond")
    axes.set_xlabel("canary's coordinate, summed over all steps (clip norms)")
    axes.set_ylabel("canaries")
    what = "mechanism as it is" if fault == "none" else f"fault {fault}"
    axes.set_title(
        f"{what}: {verdict.correct} of {verdict.guesses} guesses right, epsilon at least "
        f"{verdict.lower_bound:.2f}, claimed {verdict.claim:.2f}",
        fontsize=10,
        loc="left",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
