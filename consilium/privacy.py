"""`consilium privacy`: what a study costs before it begins, and epsilon of any composition. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from consilium.cases import read_cases, with_epsilons
from consilium.ledger_keeper import federation_budget
from consilium.output import (
    Json,
    file_to_write,
    home_folder,
    print_json,
    reporting_refusals,
    screen,
    writing,
)
from consilium.plan_sites import (
    PlannedSite,
    check_study,
    federation_facts,
    hospital_facts,
    load_planned,
    patient_facts,
)
from consilium.privacy_tables import print_cases, print_plan
from consilium.study import SHIPPED, find_federation, find_study
from contracts.errors import ConsiliumError
from contracts.privacy import HospitalPrivacy, NoPrivacy, PatientPrivacy
from contracts.study import StudyProtocol, load_study

if TYPE_CHECKING:
    from privacy.calibration import StudyNoise

app = typer.Typer(no_args_is_help=True)

_POINTS = 60  # of epsilon over the exchanges, for the plot


@app.command()
def plan(
    study: Annotated[str, typer.Argument(help="A study file, or the name of a study that ships.")],
    federation: Annotated[
        Path | None, typer.Option(help="Folder of site.yaml files; else the one that ships with the study.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Write epsilon over the rounds as an .svg file.", callback=file_to_write(".svg")),
    ] = None,
    json: Json = False,
) -> None:
    """Say what a study costs: noise, epsilon after each exchange, and at every site what it means there.

    Ends with exit code 1 when a site of the federation would refuse the study.
    """
    with reporting_refusals(json):
        protocol = load_study(find_study(study))
        sites = _sites(protocol, federation)
        facts = plan_facts(protocol, sites)
        if plot is not None:
            figure = _figure(protocol, facts)
            with writing(plot):
                plot.write_text(figure, encoding="utf-8")
        if json:
            print_json(facts)
        else:
            print_plan(facts)
            if plot is not None:
                screen.print(f"plot: {plot}", highlight=False)
        if any(part["error"] for part in (*facts["sites"], facts.get("federation") or {"error": None})):
            raise typer.Exit(1)


@app.command()
def epsilon(
    cases: Annotated[Path, typer.Argument(metavar="CASES.json", help="Compositions; see docs/privacy.md.")],
    json: Json = False,
) -> None:
    """Compute epsilon of every composition in a file, by PRV and by RDP."""
    with reporting_refusals(json):
        found = with_epsilons(read_cases(cases))
        if json:
            print_json({"cases": found})
        else:
            print_cases(found)


def plan_facts(protocol: StudyProtocol, sites: list[PlannedSite]) -> dict[str, Any]:
    """Return everything that `plan` says, as JSON.

    Raises:
        ConsiliumError: E422, the study promises no privacy; E409, no noise keeps its promise; E404, E405,
            E406, E414, E415, every hospital would refuse it; E403, a hospital-level delta that is too large.
    """
    from privacy.accountant import epsilon_without_amplification
    from privacy.calibration import adjacency_of, calibrate, planned_spends, projection

    privacy, training = protocol.privacy, protocol.training
    if isinstance(privacy, NoPrivacy):
        raise ConsiliumError(
            "E422",
            f"{protocol.study!r} has privacy.mode 'none': nothing is spent, and exact updates leave the "
            "hospitals. To plan it with privacy give it `privacy: {mode: patient, ...}` "
            "(docs/write-a-study.md); `consilium simulate STUDY --epsilon 3 --clip 1` tries what that costs",
        )
    check_study(protocol)
    noise = calibrate(protocol)
    spends = planned_spends(protocol, noise)
    facts: dict[str, Any] = {
        "study": protocol.study,
        "protocol_hash": protocol.hash,
        "mode": privacy.mode,
        "adjacency": adjacency_of(protocol),
        "epsilon": privacy.epsilon,
        "delta": privacy.delta,
        "rounds": protocol.rounds,
        "noise_multiplier": {
            "statistics": noise.statistics,
            "training": noise.training,
            "histogram": noise.histogram,
            "local": noise.local,
            "fold": noise.fold,
        },
        "epsilon_planned": noise.epsilon,
        "epsilon_without_amplification": epsilon_without_amplification(
            spends, privacy.delta, adjacency_of(protocol)
        ),
        "projection": [
            {"exchange": p.number, "kind": p.kind, "round": p.round, "fold": p.fold, "epsilon": p.epsilon}
            for p in projection(protocol, noise, most=_POINTS)
        ],
        "sites": [],
    }
    if isinstance(privacy, PatientPrivacy):
        facts |= {
            "sample_rate": training.sample_rate,
            "steps": training.steps,
            "max_grad_norm": privacy.max_grad_norm,
            "sites": [patient_facts(protocol, noise, site) for site in sites],
        }
    if isinstance(privacy, HospitalPrivacy):
        budget = federation_budget(home_folder() / "coordinator" / "budget.json")
        facts |= {
            "max_update_norm": privacy.max_update_norm,
            "sites": hospital_facts(protocol, noise, sites),
            "federation": federation_facts(protocol, noise, sites, budget),
        }
    return facts


def _sites(protocol: StudyProtocol, federation: Path | None) -> list[PlannedSite]:
    """Return the sites of the federation; none when none is named and none ships with the study.

    Raises:
        ConsiliumError: E103, E107, E405.
    """
    from consilium.simulation import site_files

    if federation is None and not (SHIPPED / "federations" / protocol.study).is_dir():
        return []
    return [load_planned(path) for path in site_files(find_federation(protocol.study, federation))]


def _figure(protocol: StudyProtocol, facts: dict[str, Any]) -> str:
    """The plot: the study's curve in its own adjacency, and one for the caps where they are about another."""
    from privacy.calibration import calibrate
    from release.epsilon_figure import Curve, epsilon_plot

    curves = [Curve.of(facts["projection"], facts["delta"], {"promised": facts["epsilon"]})]
    caps: dict[float, dict[str, float]] = {}
    capped = facts["sites"] if protocol.privacy.mode == "patient" else [facts["federation"]]
    for part in capped:
        caps.setdefault(part["cap_delta"], {})[part.get("site", "the federation")] = part["epsilon_cap"]
    for delta, of_sites in sorted(caps.items()):
        grouped: dict[float, list[str]] = {}
        for name, cap in of_sites.items():
            grouped.setdefault(cap, []).append(name)
        limits = {f"cap of {', '.join(names)}": cap for cap, names in grouped.items()}
        if delta == facts["delta"] and facts["adjacency"] == "add-or-remove-one":
            curves[0] = Curve.of(facts["projection"], delta, dict(curves[0].limits) | limits)
            continue
        points = _at_cap(protocol, calibrate(protocol), facts, delta)
        curves.append(Curve.of(points, delta, limits))
    return str(epsilon_plot(curves))


def _at_cap(
    protocol: StudyProtocol, noise: StudyNoise, facts: dict[str, Any], delta: float
) -> list[dict[str, Any]]:
    """Epsilon after the exchanges of the projection as a cap counts it: for one unit added or removed."""
    from privacy.accountant import epsilon
    from privacy.calibration import planned_spends

    spends = planned_spends(protocol, noise)
    numbers = [point["exchange"] for point in facts["projection"]]
    return [{"exchange": n, "epsilon": epsilon(spends[:n], delta)} for n in numbers]
