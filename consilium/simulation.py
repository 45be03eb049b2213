"""A whole federation in one process: the same steps as under Airflow, called one after the other."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contracts.errors import ConsiliumError
from contracts.schedule import title_of
from contracts.study import StudyProtocol, parse_study
from durable.files import write_json
from site_runtime.home import SiteHome
from tasks.exchange import DirectoryExchange
from tasks.home import CoordinatorHome

RUN = "simulate"
DELTA = 1e-4  # of a study that was written without privacy

Progressing = Callable[[str], None]


@dataclass(frozen=True)
class Simulation:
    """All homes of a simulated federation, below one folder.

    `refusals` holds what each hospital's own log said last, by its name: here one person has all of them.
    """

    root: Path
    protocol: StudyProtocol
    refusals: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def coordinator(self) -> CoordinatorHome:
        """The coordinator's home."""
        return CoordinatorHome(self.root / "coordinator")

    @property
    def sites(self) -> dict[str, SiteHome]:
        """The sites' homes by name."""
        return {p.name: SiteHome(p) for p in sorted((self.root / "sites").glob("*")) if p.is_dir()}


def site_files(federation: Path) -> list[Path]:
    """Return the `site.yaml` files of a federation: `<site>.yaml` or `<site>/site.yaml`.

    Raises:
        ConsiliumError: E107, there is none.
    """
    found = sorted({*federation.glob("*.yaml"), *federation.glob("*/site.yaml")})
    if not found:
        raise ConsiliumError("E107", f"{federation} holds no <site>.yaml and no <site>/site.yaml")
    return found


def prepare(root: Path, protocol: StudyProtocol, federation: Path) -> Simulation:
    """Enrol the federation's sites and register and approve the study, all below `root`."""
    from consilium.local_sites import enrol_together
    from site_runtime.consent import approve_unless_declined
    from tasks.head import register_study

    simulation = Simulation(root, protocol)
    register_study(simulation.coordinator, protocol)  # first: another protocol of this name changes nothing
    for home in enrol_together(simulation.coordinator, root / "sites", site_files(federation)):
        approve_unless_declined(home, protocol)
    pin_each_other(simulation)
    return simulation


def pin_each_other(simulation: Simulation) -> None:
    """Pin every simulated hospital's key at all others: here one person may vouch for them all."""
    from contracts.signing import SigningKey
    from site_runtime.peers import pin_peer

    keys = {name: SigningKey.load(name, home.signing_key).public for name, home in simulation.sites.items()}
    for site, home in simulation.sites.items():
        for peer in set(keys) - {site}:
            pin_peer(home, peer, keys[peer])


def ask(step: Callable[..., str], *arguments: Any) -> str:
    """Return what a site's step answers, which may be its refusal."""
    from site_runtime.steps import SiteRefused

    try:
        return step(*arguments)
    except SiteRefused as refused:
        return refused.document


def ask_site(simulation: Simulation, site: str, step: Callable[..., str], *arguments: Any) -> str:
    """Ask one site, and note the refusal that its log says more of than its answer may."""
    home = simulation.sites[site]
    before = home.log.stat().st_size if home.log.exists() else 0
    answer = ask(step, home, *arguments)
    text = home.log.read_bytes()[before:].decode(errors="replace") if home.log.exists() else ""
    said = re.search(r"\bE\d{3} .*", text)
    if said:
        simulation.refusals[site] = said.group()
    return answer


def explained(simulation: Simulation, error: ConsiliumError) -> ConsiliumError:
    """Return E506 with each hospital's own reason below it; any other refusal as it is."""
    if error.number != "E506" or not simulation.refusals:
        return error
    reasons = [f"{site}: {reason}" for site, reason in sorted(simulation.refusals.items())]
    return ConsiliumError("E506", "\n".join([error.detail, *reasons]))


def run_intake(simulation: Simulation, progress: Progressing) -> dict[str, Any]:
    """Intake at every site and its half at the coordinator; returns the intake's record."""
    from site_runtime.steps import intake
    from tasks.intake import admit_sheets

    study = simulation.protocol.study
    results: dict[str, str | None] = {}
    for name in simulation.sites:
        progress(f"intake: {name}")
        results[name] = ask_site(simulation, name, intake, study)
    return admit_sheets(simulation.coordinator, study, results)


def run_rounds(simulation: Simulation, progress: Progressing) -> None:
    """All exchanges of the study up to its release, one after the other.

    Raises:
        ConsiliumError: E506, a round missed its quorum.
    """
    from site_runtime.steps import train, unmask
    from tasks.head import load_head
    from tasks.rounds import close_round, open_round
    from tasks.unmasking import open_unmasking

    study, home = simulation.protocol.study, simulation.coordinator
    exchange = DirectoryExchange(home.exchange)
    number = simulation.protocol.first_round
    while True:
        run = f"{RUN}-{number}"
        progress(title_of(simulation.protocol, number, load_head(home, study).fold_sites))
        opened = open_round(home, study, run, set(simulation.sites))
        if opened.plan is None:
            return
        results: dict[str, str | None] = {
            site: ask_site(simulation, site, train, opened.plan, exchange) for site in opened.roster
        }
        asked = open_unmasking(home, study, run, results) if simulation.protocol.secure else None
        if asked is not None and asked.plan is not None:
            results = {
                site: ask_site(simulation, site, unmask, asked.plan, exchange) for site in asked.roster
            }
        if close_round(home, study, run, results).next != "round":
            return
        number += 1


def ask_everywhere(simulation: Simulation, opened: Any) -> dict[str, str | None]:
    """Have every site of a roster answer an evaluation or verification plan."""
    from site_runtime.steps import evaluate

    exchange = DirectoryExchange(simulation.coordinator.exchange)
    return {site: ask_site(simulation, site, evaluate, opened.plan, exchange) for site in opened.roster}


def run_evaluation(simulation: Simulation, progress: Progressing) -> None:
    """Evaluate the final model at every site and judge the gates.

    Raises:
        ConsiliumError: E601, E602, a gate; E506, too few hospitals.
    """
    from tasks.evaluation import judge, open_evaluation

    study, home = simulation.protocol.study, simulation.coordinator
    progress("evaluate at every hospital")
    opened = open_evaluation(home, study, RUN, set(simulation.sites))
    judge(home, study, RUN, ask_everywhere(simulation, opened))


def run_release(simulation: Simulation, progress: Progressing) -> Path:
    """Evaluate, judge, export, verify and publish; the release says that no person approved it.

    Raises:
        ConsiliumError: E601, E602, a gate; E603, parity; E506, too few hospitals.
    """
    from tasks.approvals import APPROVE, Answer
    from tasks.candidate import collect_verification, export
    from tasks.head import now
    from tasks.publication import publish

    study, home = simulation.protocol.study, simulation.coordinator
    run_evaluation(simulation, progress)
    progress("export and verify at every hospital")
    opened = export(home, study, RUN, set(simulation.sites))
    candidate = collect_verification(home, study, RUN, ask_everywhere(simulation, opened))
    assert candidate is not None
    progress("publish")
    answers = {
        role: Answer(
            candidate=candidate,
            choice=APPROVE,
            user=role,
            name="simulation, not a person",
            reason="consilium simulate approves its own candidates",
            time=now(),
        )
        for role in simulation.protocol.sign_off.roles
    }
    return publish(home, study, RUN, answers)


def outcome(simulation: Simulation) -> dict[str, Any]:
    """What a finished simulation prints: metrics pooled and by hospital, privacy, gates, digests."""
    from release.directory import read_manifest
    from tasks.account import spent_of
    from tasks.folds import exchange_records
    from tasks.head import load_head
    from tasks.stopped import release_folder
    from tasks.store import load_record

    home, protocol = simulation.coordinator, simulation.protocol
    evaluation = load_record(home, protocol.study, "evaluation")
    last = load_record(home, protocol.study, str(protocol.rounds))
    metrics, head, gates = evaluation["metrics"], load_head(home, protocol.study), evaluation["gates"]
    if head.candidate is not None:  # those on facts, which come after the export, are decided as well
        manifest = read_manifest(release_folder(home, protocol.study) / "candidate")
        gates = [gate.model_dump(mode="json") for gate in manifest.gates]
    found: dict[str, Any] = {
        "study": protocol.study,
        "protocol_hash": protocol.hash,
        "rounds": protocol.rounds,
        "model": head.model,
        **metrics,
        "gates": gates,
        "privacy": {"mode": protocol.privacy.mode, "noise_multiplier": last["noise_multiplier"]},
    }
    spent = spent_of(exchange_records(home, protocol))
    if spent:
        found["privacy"] |= spent
    return found


def achievable_at(home: CoordinatorHome, protocol: StudyProtocol, sites: list[SiteHome]) -> dict[str, float]:
    """The best possible AUROC by site and pooled, where all data are simulated; else empty.

    Known from the simulator, not from any hospital's data; kept beside the study for its validation report.
    """
    from site_runtime.config import load_site
    from site_runtime.connectors import synthetic

    configs = [load_site(site) for site in sites]
    options = {c.site: c.source for c in configs if isinstance(c.source, synthetic.Options)}
    if len(options) < len(configs):
        return {}
    best = synthetic.achievable_auroc(options)
    write_json(home.study(protocol.study) / "achievable.json", best)
    return best


def with_changes(protocol: StudyProtocol, **changes: Any) -> StudyProtocol:
    """Return the protocol with some fields replaced; it is another protocol, with another hash."""
    return parse_study({**protocol.body(), **changes})


def with_privacy(
    protocol: StudyProtocol,
    *,
    epsilon: float | None = None,
    delta: float | None = None,
    clip: float | None = None,
    statistics_fraction: float | None = None,
) -> StudyProtocol:
    """Return the protocol with these numbers in its privacy; one without privacy gets it at patient level.

    Args:
        delta: 1e-4 where neither this nor the study says one.
        clip: norm of a patient's gradient; with hospital-level privacy, of a hospital's update.

    Raises:
        ConsiliumError: E101, a study without privacy that is not given both epsilon and clip, or a number out
            of its bounds.
    """
    privacy = protocol.body()["privacy"]
    norm = "max_update_norm" if privacy["mode"] == "site" else "max_grad_norm"
    named = {"epsilon": epsilon, "delta": delta, norm: clip, "statistics_fraction": statistics_fraction}
    given = {name: value for name, value in named.items() if value is not None}
    if not given:
        return protocol
    if privacy["mode"] == "none":
        if epsilon is None or clip is None:
            missing = "--epsilon" if epsilon is None else "--clip (the largest norm of a patient's gradient)"
            raise ConsiliumError("E101", f"study {protocol.study!r} has no privacy: {missing} is missing")
        privacy = {"mode": "patient", "delta": DELTA}
    return with_changes(protocol, privacy={**privacy, **given})


def simulate_study(
    protocol: StudyProtocol, federation: Path, root: Path, progress: Progressing, *, release: bool = True
) -> tuple[Simulation, Path | None]:
    """Run a study from enrolment to release below `root`; without `release` it ends after its evaluation.

    Raises:
        ConsiliumError: the first refusal that stops the study; E506 with every hospital's own reason.
    """
    simulation = prepare(root, protocol, federation)
    achievable_at(simulation.coordinator, protocol, list(simulation.sites.values()))
    try:
        run_intake(simulation, progress)
        run_rounds(simulation, progress)
        if release:
            return simulation, run_release(simulation, progress)
        run_evaluation(simulation, progress)
    except ConsiliumError as error:
        raise explained(simulation, error) from error
    return simulation, None
