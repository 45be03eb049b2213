"""What `consilium audit` prints, and the picture it draws."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.table import Table

from consilium.output import screen
from contracts.privacy import PatientPrivacy
from contracts.study import StudyProtocol
from privacy.accountant import Spend
from privacy.audit import AttackPath, Fault, Power, Verdict

if TYPE_CHECKING:
    from privacy.canaries import Observation

_NETWORKS: dict[AttackPath, str] = {
    "logistic": "a logistic regression",
    "records": "a logistic regression over several records",
    "perceptron": "a multilayer perceptron",
    "recurrent": "an LSTM",
    "convolution": "a convolutional network",
}


@dataclass(frozen=True)
class Asked:
    """What was attacked, and what is claimed of it.

    Attributes:
        claim: epsilon of training alone, at the study's delta.
        layer: the parameter of the path's model that canaries are loud in.
        records: of every patient of the attack.
    """

    protocol: StudyProtocol
    privacy: PatientPrivacy
    spend: Spend
    claim: float
    path: AttackPath
    layer: str
    records: int
    fault: Fault


def facts(
    asked: Asked, powers: list[Power], verdicts: list[Verdict], needed: int, refuted: bool
) -> dict[str, Any]:
    """The whole audit for `--json`."""
    return {
        "study": asked.protocol.study,
        "protocol_hash": asked.protocol.hash,
        "model": asked.protocol.model.name,
        "path": asked.path,
        "layer": asked.layer,
        "records": asked.records,
        "fault": asked.fault,
        "sample_rate": asked.spend.sample_rate,
        "noise_multiplier": asked.spend.noise_multiplier,
        "steps": asked.spend.steps,
        "max_grad_norm": asked.privacy.max_grad_norm,
        "clipping": asked.privacy.clipping,
        "delta": asked.privacy.delta,
        "claimed_epsilon": asked.claim,
        "adjacency": "add-or-remove-one",
        "canaries": verdicts[0].canaries,
        "guesses": verdicts[0].guesses,
        "expected": [{"fault": p.fault, "lower_bound": p.bound, "detection": p.detection} for p in powers],
        "runs": [
            {"correct": v.correct, "lower_bound": v.lower_bound, "refuted": v.refuted} for v in verdicts
        ],
        "runs_needed": needed,
        "refuted": refuted,
    }


def show_power(asked: Asked, powers: list[Power], canaries: int) -> None:
    """Say what is claimed, what will be attacked and what that can find."""
    spend = asked.spend
    screen.print(
        f"{asked.protocol.study}: training claims epsilon {asked.claim:.3f} at delta {asked.privacy.delta:g} "
        f"for one patient added or removed "
        f"({spend.steps} steps, rate {spend.sample_rate:g}, sigma {spend.noise_multiplier:g})",
        highlight=False,
    )
    table = Table(
        title=f"What to expect of {canaries} canaries on path {asked.path}, simulated beforehand", box=SIMPLE
    )
    table.add_column("mechanism")
    table.add_column("lower bound (mean)", justify="right")
    table.add_column("claim refuted", justify="right")
    for power in powers:
        name = "as claimed" if power.fault == "none" else power.fault
        table.add_row(name, f"{power.bound:.2f}", f"{power.detection:.0%} of runs")
    screen.print(table)


def show_verdicts(asked: Asked, verdicts: list[Verdict], needed: int, refuted: bool) -> None:
    """Say what each run showed, and of which layer."""
    what = "the mechanism as it is" if asked.fault == "none" else f"fault put in: {asked.fault}"
    table = Table(title=f"Attack on {what}, path {asked.path}", box=SIMPLE)
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
        screen.print(f"together they refute the claim if {needed} or more of {len(verdicts)} do")
    if asked.fault == "none" and not refuted:
        screen.print(
            "An audit can refute a claim and not prove it: docs/audit.md says what this one cannot see."
        )
    records = "1 record" if asked.records == 1 else f"{asked.records} records"
    screen.print(
        f"attacked: {asked.layer} of {_NETWORKS[asked.path]}, {records} a patient (path {asked.path}); "
        f"no other layer, and no other path",
        highlight=False,
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
    axes.set_xlabel("canary's direction, summed over all steps (clip norms)")
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
