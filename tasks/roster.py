"""Making a plan: who is on the roster, who is not and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Literal

from contracts.datasheet import DataSheet
from contracts.masking import MaskKey
from contracts.plan import RosterEntry, RoundPlan
from contracts.schedule import deadline_of
from contracts.study import StudyProtocol
from durable.files import locked, read_json, write_json
from privacy.calibration import StudyNoise, calibrate
from tasks.baselines import baselines_of
from tasks.federation import load_federation
from tasks.head import Head, now
from tasks.home import CoordinatorHome
from tasks.intake import admitted_sheets
from tasks.sealed import seal_key
from tasks.settings import accepted_versions, load_settings
from tasks.store import load_sheet
from tasks.withdrawals import has_withdrawn

Kind = Literal["statistics", "training", "histogram", "local", "evaluation", "verification"]
NOISED = ("statistics", "training", "histogram", "local")


def eligible_sites(
    home: CoordinatorHome, protocol: StudyProtocol, present: set[str]
) -> tuple[dict[str, tuple[DataSheet, str]], dict[str, str]]:
    """Return the sites that a plan can count on, and why each of the others is absent."""
    sheets = admitted_sheets(home, protocol.study, protocol.hash)
    withdrawn = has_withdrawn(home, protocol.study, {site: digest for site, (_, digest) in sheets.items()})
    eligible, absent = {}, {}
    for site in load_federation(home).sites:
        if site not in sheets:
            known = load_sheet(home, protocol.study, site) is not None
            absent[site] = "blocked by data quality or protocol version" if known else "no data sheet"
        elif site in withdrawn:
            absent[site] = "withdrawn from the study"
        elif site not in present:
            absent[site] = "not connected"
        else:
            eligible[site] = sheets[site]
    return eligible, absent


def study_noise(home: CoordinatorHome, protocol: StudyProtocol) -> StudyNoise | None:
    """The study's calibrated noise, computed once and kept; None without differential privacy."""
    if protocol.privacy.mode == "none":
        return None
    path = home.study(protocol.study) / "noise.json"
    if not path.exists():
        write_json(path, asdict(calibrate(protocol)))
    return StudyNoise(**read_json(path))


def make_plan(
    home: CoordinatorHome,
    protocol: StudyProtocol,
    head: Head,
    kind: Kind,
    eligible: dict[str, tuple[DataSheet, str]],
    *,
    attempt: int = 1,
    artefact: str | None = None,
    base_model: str | None = None,
    fold: str | None = None,
    masks: Mapping[str, MaskKey] | None = None,
) -> RoundPlan:
    """Write the plan of the next exchange for these sites.

    Args:
        base_model: that the exchange starts from; the head's model when not given.
        fold: the hospital that the model has no part in.
        masks: of an exchange under masks, each hospital's key for it.
    """
    purpose = kind if fold is None else "fold"
    noise = study_noise(home, protocol) if kind in NOISED else None
    heads = last_ledger_heads(home)
    roster = [
        RosterEntry(
            site=site,
            data_sheet=digest,
            declared_size=sheet.declared_size,
            ledger_head=heads.get(site),
            mask=(masks or {}).get(site),
        )
        for site, (sheet, digest) in sorted(eligible.items())
    ]
    return RoundPlan(
        study=protocol.study,
        protocol_hash=protocol.hash,
        kind=kind,
        round=head.round,
        attempt=attempt,
        rounds=protocol.rounds,
        base_model=head.model if base_model is None else base_model,
        artefact=artefact,
        roster=roster,
        code_versions=accepted_versions(load_settings(home)),
        noise_multiplier=None if noise is None else noise.of(purpose),
        expected_epsilon=None if noise is None else noise.epsilon,
        decision_threshold=None if kind in NOISED else head.threshold,
        fold=fold,
        seal_key=seal_key(home).public if kind == "evaluation" else None,
        baselines=baselines_of(home, protocol) if kind == "evaluation" else {},
        folds=head.folds if kind == "evaluation" else {},
        deadline_seconds=deadline_of(protocol, purpose),
        created=now(),
    )


def last_ledger_heads(home: CoordinatorHome) -> dict[str, str]:
    """The newest ledger head that each site has shown, over all studies: an older ledger is a rollback."""
    return {site: head for site, (_, head) in _known_heads(home).items()}


def note_ledger_heads(home: CoordinatorHome, heads: dict[str, tuple[int, str]]) -> None:
    """Remember ledger heads that were shown, with the number of entries; a longer one is never forgotten.

    Args:
        heads: of what was signed, whatever becomes of the document that showed it.
    """
    with locked(home.root / ".ledger_heads.lock"):
        known = _known_heads(home)
        for site, (length, head) in heads.items():
            if length > known.get(site, (0, ""))[0]:
                known[site] = (length, head)
        value = {site: {"length": length, "head": head} for site, (length, head) in known.items()}
        write_json(home.root / "ledger_heads.json", value)


def _known_heads(home: CoordinatorHome) -> dict[str, tuple[int, str]]:
    path = home.root / "ledger_heads.json"
    found = read_json(path) if path.exists() else {}
    # Version 0.1 noted the head alone: anything longer than nothing may take its place.
    return {
        site: (int(shown["length"]), str(shown["head"])) if isinstance(shown, dict) else (0, str(shown))
        for site, shown in found.items()
    }
