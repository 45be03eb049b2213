"""`consilium privacy`: what a study costs before it begins, and epsilon of any composition. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from consilium.cases import read_cases, with_epsilons
from consilium.output import Json, print_json, reporting_refusals, screen
from consilium.privacy_tables import print_cases, print_plan
from consilium.study import SHIPPED, find_federation, find_study
from contracts.errors import ConsiliumError
from contracts.study import HospitalPrivacy, NoPrivacy, PatientPrivacy, StudyProtocol, load_study
from site_runtime.config import SitePart, load_site_part

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
    plot: Annotated[Path | None, typer.Option(help="Write epsilon over the rounds as an SVG file.")] = None,
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
            plot.write_text(_figure(protocol, facts), encoding="utf-8")
        if json:
            print_json(facts)
        else:
            print_plan(facts)
            if plot is not None:
                screen.print(f"plot: {plot}", highlight=False)
        if any(site["error"] for site in facts["sites"]):
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


def plan_facts(protocol: StudyProtocol, sites: list[SitePart]) -> dict[str, Any]:
    """Return everything that `plan` says, as JSON.

    Raises:
        ConsiliumError: E409, the study promises no privacy or cannot keep its promise; E403, a hospital-level
            delta that is too large.
    """
    from privacy.accountant import epsilon_without_amplification
    from privacy.calibration import adjacency_of, calibrate, planned_spends, projection

    noise = calibrate(protocol)
    privacy, training = protocol.privacy, protocol.training
    assert not isinstance(privacy, NoPrivacy)
    patient = isinstance(privacy, PatientPrivacy)
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
        },
        "epsilon_planned": noise.epsilon,
        "epsilon_without_amplification": epsilon_without_amplification(
            spends, privacy.delta, adjacency_of(protocol)
        ),
        "projection": [
            {"exchange": p.number, "kind": p.kind, "round": p.round, "epsilon": p.epsilon}
            for p in projection(protocol, noise, most=_POINTS)
        ],
        "sites": [_site_facts(protocol, noise, site) for site in sites] if patient else [],
    }
    if isinstance(privacy, PatientPrivacy):
        facts |= {
            "sample_rate": training.sample_rate,
            "steps": training.steps,
            "max_grad_norm": privacy.max_grad_norm,
        }
    if isinstance(privacy, HospitalPrivacy):
        facts |= {"max_update_norm": privacy.max_update_norm}
    return facts


def _site_facts(protocol: StudyProtocol, noise: StudyNoise, site: SitePart) -> dict[str, Any]:
    """What the study means at one site; `error` is the refusal that it would get there, or None."""
    from privacy.accountant import epsilon as composed
    from privacy.calibration import adjacency_of, check_delta, planned_spends

    privacy, size = protocol.privacy, site.governance.declared_size
    assert isinstance(privacy, PatientPrivacy)
    batch = protocol.training.sample_rate * size
    # A site's cap holds at its own delta, or at the study's where that is smaller: see Budget.
    at = min(site.budget.delta, privacy.delta)
    error = None
    spent: float | None = None
    try:
        check_delta(protocol, size)
        spent = composed(planned_spends(protocol, noise), at, adjacency_of(protocol))
        if spent > site.budget.epsilon:
            detail = f"epsilon {spent:.4f} at delta {at:g}, expected at most {site.budget.epsilon:g}"
            error = ConsiliumError("E401", detail)
    except ConsiliumError as refusal:
        error = refusal
    return {
        "site": site.site,
        "declared_size": size,
        "expected_batch": batch,
        "noise_of_mean_gradient": noise.training * privacy.max_grad_norm / batch,
        "clip_over_noise": batch / noise.training,
        "delta_below": 1.0 / size,
        "epsilon_cap": site.budget.epsilon,
        "cap_delta": at,
        "epsilon_at_cap_delta": spent,
        "fits": error is None,
        "error": None if error is None else {"number": error.number, "detail": error.detail},
    }


def _sites(protocol: StudyProtocol, federation: Path | None) -> list[SitePart]:
    """Return the sites of the federation; none when none is named and none ships with the study.

    Raises:
        ConsiliumError: E103, E107.
    """
    from consilium.simulation import site_files

    if federation is None and not (SHIPPED / "federations" / protocol.study).is_dir():
        return []
    return [load_site_part(path) for path in site_files(find_federation(protocol.study, federation))]


def _figure(protocol: StudyProtocol, facts: dict[str, Any]) -> str:
    """The plot: the study's curve, and one at the caps' delta where that is another one."""
    from privacy.calibration import calibrate, projection
    from release.epsilon_figure import Curve, epsilon_plot

    curves = [Curve.of(facts["projection"], facts["delta"], {"promised": facts["epsilon"]})]
    caps: dict[float, dict[str, float]] = {}
    for site in facts["sites"]:
        caps.setdefault(site["cap_delta"], {})[site["site"]] = site["epsilon_cap"]
    for delta, of_sites in sorted(caps.items()):
        grouped: dict[float, list[str]] = {}
        for name, cap in of_sites.items():
            grouped.setdefault(cap, []).append(name)
        limits = {f"cap of {', '.join(names)}": cap for cap, names in grouped.items()}
        if delta == facts["delta"]:
            curves[0] = Curve.of(facts["projection"], delta, dict(curves[0].limits) | limits)
            continue
        points = projection(protocol, calibrate(protocol), most=_POINTS, delta=delta)
        plain = [{"exchange": p.number, "epsilon": p.epsilon} for p in points]
        curves.append(Curve.of(plain, delta, limits))
    return str(epsilon_plot(curves))
