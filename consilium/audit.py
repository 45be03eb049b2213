"""`consilium audit`: attack a study's privacy mechanism and compare what leaks with what is claimed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from consilium.audit_tables import Asked, draw_scores, facts, show_power, show_verdicts
from consilium.output import Json, file_to_write, print_json, reporting_refusals, writing
from consilium.plan_sites import check_study
from consilium.study import find_study
from contracts.errors import ConsiliumError
from contracts.privacy import PatientPrivacy
from contracts.study import StudyProtocol, load_study
from privacy.accountant import Spend, epsilon
from privacy.audit import (
    FAULTS,
    PATHS,
    AttackPath,
    Fault,
    expected_power,
    judge,
    path_of,
    records_on,
    runs_needed,
)
from privacy.calibration import calibrate

if TYPE_CHECKING:
    from privacy.canaries import Observation, Target

app = typer.Typer()

_CONFIDENCE = 0.95
_PICTURES = (".png", ".svg", ".pdf")


@app.command()
def audit(
    study: Annotated[str, typer.Argument(help="A study file, or the name of a study that ships.")],
    runs: Annotated[int, typer.Option(min=1, max=100, help="How often to attack.")] = 1,
    canaries: Annotated[int, typer.Option(min=100, max=1900, help="Patients that are in by a coin.")] = 1000,
    fault: Annotated[str, typer.Option(help=f"Put a fault in: {', '.join(FAULTS)}.")] = "none",
    path: Annotated[
        str | None, typer.Option(help=f"Model to attack instead of the study's kind: {', '.join(PATHS)}.")
    ] = None,
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
        if path is not None and path not in PATHS:
            raise typer.BadParameter(f"{path!r}, expected one of {', '.join(PATHS)}", param_hint="--path")
        protocol = load_study(find_study(study))
        if protocol.privacy.mode == "patient":
            check_study(protocol)
        privacy, spend = audited(protocol)
        claim = epsilon([spend], privacy.delta)
        settings: dict[str, Any] = {"claim": claim, "delta": privacy.delta, "confidence": _CONFIDENCE}
        target = target_of(protocol, privacy, canaries, path)
        height = target.layers**-0.5 if privacy.clipping == "per-layer" else 1.0
        powers = expected_power(spend, canaries=canaries, height=height, **settings)
        asked = Asked(protocol, privacy, spend, claim, target.path, target.name, target.records, fault)
        if not json:
            show_power(asked, powers, canaries)
        seen = _attacks(protocol, canaries, fault, path, runs, quiet=json)
        verdicts = [judge(each.scores, each.included, **settings) for each in seen]
        if plot is not None:
            with writing(plot):
                draw_scores(seen[0], verdicts[0], fault, plot)
        needed = runs_needed(runs, _CONFIDENCE)
        refuted = sum(v.refuted for v in verdicts) >= needed
        if json:
            print_json(facts(asked, powers, verdicts, needed, refuted) | {"confidence": _CONFIDENCE})
        else:
            show_verdicts(asked, verdicts, needed, refuted)
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


def target_of(
    protocol: StudyProtocol, privacy: PatientPrivacy, canaries: int, path: AttackPath | None = None
) -> Target:
    """Build what is attacked in place of this study's model: a small one of its kind, or of another path.

    Raises:
        ConsiliumError: E101, the study's model is not of the registry.
    """
    from consilium.canary_models import canary_target

    most = protocol.cohort.max_records
    path = path or path_of(protocol.model.name, most)
    norm: Literal["group", "none"] = "none" if protocol.model.norm == "none" else "group"
    return canary_target(path, canaries, privacy.max_grad_norm, records=records_on(path, most), norm=norm)


def attack_study(
    protocol: StudyProtocol,
    canaries: int,
    fault: Fault,
    progress: Callable[[], None] = lambda: None,
    path: AttackPath | None = None,
) -> Observation:
    """Attack once what makes this study's training private: its sampling, clipping, noise, and all steps."""
    from privacy.canaries import attack
    from privacy.dpsgd import AdaptiveOptimizer, PatientOptimizer, PerLayerOptimizer

    privacy, spend = audited(protocol)
    make: Callable[..., PatientOptimizer] = PatientOptimizer
    if privacy.clipping == "per-layer":
        make = PerLayerOptimizer
    elif privacy.clipping == "adaptive":
        make = partial(AdaptiveOptimizer, quantile=privacy.quantile, start=privacy.max_grad_norm)
    return attack(
        target_of(protocol, privacy, canaries, path),
        spend,
        max_grad_norm=privacy.max_grad_norm,
        make=make,
        fault=fault,
        progress=progress,
    )


def _attacks(
    protocol: StudyProtocol, canaries: int, fault: Fault, path: AttackPath | None, runs: int, *, quiet: bool
) -> list[Observation]:
    """Run the attack as often as asked for."""
    from consilium.simulate import progress_bar

    _, spend = audited(protocol)
    with progress_bar() as bar:
        bar.disable = quiet
        task = bar.add_task("attacking", total=runs * spend.steps)
        return [attack_study(protocol, canaries, fault, lambda: bar.advance(task), path) for _ in range(runs)]
