"""Who keeps the ledgers that `consilium ledger` reads, and which cap holds there. Nothing here writes.

A hospital keeps one for each of its lineages. The coordinator keeps one for all hospitals together, of the
studies whose privacy is per hospital (`privacy.mode: site`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts.errors import ConsiliumError
from contracts.privacy import Adjacency

if TYPE_CHECKING:
    from site_runtime.home import SiteHome

COORDINATOR = "coordinator"  # the name in its ledger; no hospital can have it
FEDERATION = "federation"  # the lineage of its ledger
BUDGET = (50.0, 1e-3)  # epsilon and delta of a federation that wrote no budget.json


@dataclass(frozen=True)
class LineageFile:
    """One ledger, and a public key that must have signed it."""

    lineage: str
    path: Path
    public: str


@dataclass(frozen=True)
class Keeper:
    """The ledgers of a hospital or of the coordinator, with the cap of each.

    Attributes:
        unit: what the ledgers protect: a patient, or a hospital with all its patients.
        cap, cap_delta: the cap of each lineage holds at this delta, for one unit added or removed, whatever
            the adjacency of a study: a lineage holds studies of both.
        privacy: section `privacy` of every study known here, by the study's name.
    """

    unit: str
    ledgers: list[LineageFile]
    cap: float
    cap_delta: float
    privacy: Mapping[str, Mapping[str, Any]]

    @property
    def delta(self) -> float:
        """The delta at which epsilon is shown: the strictest of the cap's and of the studies'."""
        stated = (p.get("delta") for p in self.privacy.values() if p.get("mode") == self._mode)
        return min([self.cap_delta, *(delta for delta in stated if isinstance(delta, float))])

    def cap_at(self, delta: float) -> float | None:
        """The cap; None at a larger delta than it holds at, where the same epsilon promises less."""
        return self.cap if delta <= self.cap_delta else None

    def promise(self, study: str) -> tuple[float, Adjacency]:
        """Delta and adjacency in which a study states its epsilon; those of the cap if it is not known."""
        privacy = self.privacy.get(study, {})
        delta = privacy.get("delta")
        return (
            delta if isinstance(delta, float) else self.delta,
            "replace-one" if privacy.get("public_n") is True else "add-or-remove-one",
        )

    @property
    def kept_by_coordinator(self) -> list[str]:
        """Studies known to a hospital whose spending stands in the coordinator's ledger."""
        if self._mode == "site":
            return []
        return sorted(name for name, privacy in self.privacy.items() if privacy.get("mode") == "site")

    @property
    def _mode(self) -> str:
        return "patient" if self.unit == "patient" else "site"


def hospital(home: SiteHome, lineage: str | None = None) -> Keeper:
    """The ledgers of a hospital, by name of their lineages, or the one that is named.

    Raises:
        ConsiliumError: E417, no such lineage here; E103, E801.
    """
    from contracts.signing import SigningKey
    from site_runtime.config import load_site_part

    part = load_site_part(home.config)
    public = SigningKey.load("site", home.signing_key).public
    return Keeper(
        unit="patient",
        ledgers=_ledgers(home.ledger("any").parent, public, part.governance.lineage, lineage),
        cap=part.budget.epsilon,
        cap_delta=part.budget.delta,
        privacy=_privacy(home.approval("any").parent.glob("*.json")),
    )


def coordinator(home: Path, lineage: str | None = None) -> Keeper:
    """The ledger of hospital-level privacy.

    Args:
        home: the coordinator's own folder, or the one that holds `coordinator`.

    Raises:
        ConsiliumError: E806, there is no coordinator; E417, no such lineage; E423, the budget; E801.
    """
    from contracts.signing import SigningKey
    from tasks.home import CoordinatorHome

    found = CoordinatorHome(home / COORDINATOR if (home / COORDINATOR).is_dir() else home)
    if not found.signing_key.exists():
        raise ConsiliumError("E806", f"{home} holds no coordinator; name its folder with --home")
    public = SigningKey.load(COORDINATOR, found.signing_key).public
    cap, delta = federation_budget(found.budget)
    return Keeper(
        unit="hospital",
        ledgers=_ledgers(found.ledger("any").parent, public, FEDERATION, lineage),
        cap=cap,
        cap_delta=delta,
        privacy=_privacy(found.studies.glob("*/protocol.json")),
    )


def federation_budget(path: Path) -> tuple[float, float]:
    """Epsilon and delta of the coordinator's `budget.json`; the default where there is none yet.

    `tasks.federation_ledger` reads the same file when it spends, and needs what a light install lacks.

    Raises:
        ConsiliumError: E423, the file does not say what may be spent.
    """
    if not path.exists():
        return BUDGET
    try:
        value = json.loads(path.read_bytes())
        epsilon, delta = float(value.get("epsilon", BUDGET[0])), float(value.get("delta", BUDGET[1]))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConsiliumError("E423", f"{path}: {error}") from error
    if not (epsilon > 0 and 0 < delta < 1):
        raise ConsiliumError("E423", f"{path}: epsilon {epsilon:g} at delta {delta:g}")
    return epsilon, delta


def _ledgers(folder: Path, public: str, own: str, lineage: str | None) -> list[LineageFile]:
    # A head without its ledger is a ledger that was deleted, so both kinds of file name a lineage.
    names = sorted({p.stem for suffix in ("jsonl", "head") for p in folder.glob(f"*.{suffix}")})
    if lineage is not None and lineage not in {own, *names}:
        known = ", ".join(sorted({own, *names}))
        raise ConsiliumError("E417", f"lineage {lineage!r}, expected one of {known}")
    return [LineageFile(n, folder / f"{n}.jsonl", public) for n in names if lineage in (None, n)]


def _privacy(files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """The `privacy` of every protocol among these files; what is no protocol is passed over."""
    found: dict[str, dict[str, Any]] = {}
    for path in files:
        try:
            value = json.loads(path.read_bytes())
            privacy, study = value.get("privacy"), value.get("study", path.stem)
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(privacy, dict):
            found[str(study)] = privacy
    return found
