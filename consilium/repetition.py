"""A study several times over, each time with noise of its own: how much of its outcome is chance.

Every run is a federation of its own, made from one intake: same cohorts, same holdouts, same first model, but
fresh noise keys. On real patients each run would cost its epsilon, and a lineage's ledger would add them up;
nothing here says that a hospital may train until it likes the result.
"""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from consilium.simulation import (
    Progressing,
    Simulation,
    explained,
    outcome,
    prepare,
    run_evaluation,
    run_intake,
    run_rounds,
    site_files,
    with_changes,
)
from contracts.errors import ConsiliumError
from contracts.schedule import most_exchanges
from contracts.study import StudyProtocol
from durable.files import write_atomic
from site_runtime.home import SiteHome

METRICS = ("accuracy", "auroc")
INTAKE = "intake"  # folder of the federation that every run starts from


def steps_of(protocol: StudyProtocol, sites: int, runs: int, comparing: bool) -> int:
    """How often `repeat`, or with `comparing` `compare`, reports progress."""
    steps = sites + runs * (most_exchanges(protocol) + 1)
    if not comparing:
        return steps
    plain = without_privacy(protocol)
    again = steps_of(plain, sites, runs if by_chance(plain) else 1, comparing=False)
    return again if protocol.privacy.mode == "none" else steps + again


def repeat(
    protocol: StudyProtocol,
    federation: Path,
    root: Path,
    runs: int,
    progress: Progressing,
    split_keys: dict[str, Path] | None = None,
) -> list[dict[str, Any]]:
    """Intake once, then `runs` times all rounds and the evaluation; return each run's `outcome`.

    A gate that fails ends no run: the outcome says so.

    Args:
        root: holds the intake and one folder per run afterwards.
        split_keys: of another simulation's sites, by name, so that both have the same patients held out.

    Raises:
        ConsiliumError: the first refusal that stops a run.
    """
    for site, key in (split_keys or {}).items():
        target = SiteHome(root / INTAKE / "sites" / site).split_key
        target.parent.mkdir(parents=True)
        shutil.copyfile(key, target)
    start = prepare(root / INTAKE, protocol, federation)
    run_intake(start, progress)
    found = []
    for number in range(1, runs + 1):
        simulation = fresh_copy(start, root / f"run-{number}")

        def say(text: str, number: int = number) -> None:
            progress(f"run {number} of {runs}: {text}")

        try:
            run_rounds(simulation, say)
            run_evaluation(simulation, say)
        except ConsiliumError as error:
            if error.number not in ("E601", "E602"):
                raise explained(simulation, error) from error
        found.append(outcome(simulation))
    return found


def fresh_copy(start: Simulation, root: Path) -> Simulation:
    """Copy a simulation to an empty folder; sampling and noise of the copy are its own."""
    shutil.copytree(start.root, root, symlinks=True)
    copy = Simulation(root, start.protocol, dict(start.refusals))
    for site in copy.sites.values():
        write_atomic(site.noise_key, os.urandom(32))
    copy.coordinator.noise_key.unlink(missing_ok=True)  # drawn when it is first needed
    return copy


def summary(outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean, standard deviation, lowest and highest over the runs: pooled, by hospital, and of the gates.

    `hospitals_mean` is the unweighted mean over hospitals of one run, as FLamby's example with privacy
    reports it.
    """
    first = outcomes[0]
    names = [k for k, v in first.items() if isinstance(v, dict) and "n" in v and k != "pooled"]
    found: dict[str, Any] = {
        "runs": len(outcomes),
        "rounds": first["rounds"],
        "protocol_hash": first["protocol_hash"],
        "privacy": first["privacy"],
        "sites": {name: spreads([o[name] for o in outcomes]) for name in names},
        "pooled": spreads([o["pooled"] for o in outcomes]),
        "gates": [
            {"gate": gate["gate"], "passed": sum(o["gates"][i]["passed"] is True for o in outcomes)}
            for i, gate in enumerate(first["gates"])
        ],
    }
    each = [[o[name]["accuracy"]["value"] for name in names if "accuracy" in o[name]] for o in outcomes]
    if all(each):
        found["hospitals_mean"] = {"accuracy": spread([statistics.fmean(values) for values in each])}
    return found


def spreads(parts: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The spread of each metric over the runs that show it."""
    values = {name: [part[name]["value"] for part in parts if name in part] for name in METRICS}
    return {name: spread(found) for name, found in values.items() if found}


def spread(values: list[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (none of a single run), lowest, highest, and the values themselves."""
    return {
        "mean": statistics.fmean(values),
        "standard_deviation": statistics.stdev(values) if len(values) > 1 else None,
        "lowest": min(values),
        "highest": max(values),
        "values": values,
    }


def compare(
    protocol: StudyProtocol, federation: Path, root: Path, runs: int, progress: Progressing
) -> dict[str, Any]:
    """Run a study `runs` times with its privacy and as often without: both summaries, and what was lost.

    Without privacy it runs once where every run would be the same.

    Returns:
        `with_privacy` and `without_privacy` as `summary` (the first None where the study has no privacy), and
        `lost`: pooled metrics without privacy less those with it.

    Raises:
        ConsiliumError: E304, a hospital lets no update without privacy leave; else as `repeat`.
    """
    plain = protocol
    found: dict[str, Any] = {"with_privacy": None, "lost": None}
    split_keys: dict[str, Path] = {}
    if protocol.privacy.mode != "none":
        plain = without_privacy(protocol)
        willing = allowing_exact_updates(federation, root / "federation")
        found["with_privacy"] = summary(repeat(protocol, federation, root / "private", runs, progress))
        sites = Simulation(root / "private" / INTAKE, protocol).sites
        split_keys = {name: site.split_key for name, site in sites.items()}
        federation = willing
    often = runs if by_chance(plain) else 1
    exact = repeat(plain, federation, root / "exact", often, progress, split_keys)
    found["without_privacy"] = summary(exact)
    if found["with_privacy"] is not None:
        parts = [found[arm]["pooled"] for arm in ("without_privacy", "with_privacy")]
        found["lost"] = {
            name: parts[0][name]["mean"] - parts[1][name]["mean"]
            for name in METRICS
            if all(name in part for part in parts)
        }
    return found


def by_chance(protocol: StudyProtocol) -> bool:
    """Say whether two runs can differ: by noise, or by who is in a step."""
    training = protocol.training
    return protocol.privacy.mode != "none" or training.sample_rate < 1.0 or training.sampling != "poisson"


def without_privacy(protocol: StudyProtocol) -> StudyProtocol:
    """The same training without privacy; there is no epsilon then for a gate to judge."""
    gates = [gate for gate in protocol.body().get("gates", []) if gate["metric"] != "epsilon"]
    return with_changes(protocol, privacy={"mode": "none"}, gates=gates)


def allowing_exact_updates(federation: Path, target: Path) -> Path:
    """Return a federation whose sites let exact updates leave: the one given, or a copy if it is simulated.

    Raises:
        ConsiliumError: E304, a hospital with patients of its own has to allow it itself.
    """
    sites = [yaml.safe_load(file.read_text()) for file in site_files(federation)]
    unwilling = [s for s in sites if s.get("policy", {}).get("exact_updates", False) is not True]
    if not unwilling:
        return federation
    for site in unwilling:
        if site["source"]["connector"] != "synthetic":
            raise ConsiliumError(
                "E304", f"--compare trains without privacy too, and {site['site']} forbids it"
            )
    permit_exact_updates(federation, target)
    return target


def permit_exact_updates(federation: Path, target: Path) -> None:
    """Copy a federation whose simulated hospitals let updates without differential privacy leave."""
    target.mkdir()
    for file in site_files(federation):
        site = yaml.safe_load(file.read_text())
        site["policy"] = {**site.get("policy", {}), "exact_updates": True}
        (target / f"{site['site']}.yaml").write_text(yaml.safe_dump(site))
