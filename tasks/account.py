"""The coordinator's own account of a study under patient-level privacy: what its plans must have cost."""

from __future__ import annotations

from typing import Any

from contracts.errors import ConsiliumError
from contracts.plan import RoundPlan
from contracts.privacy import PatientPrivacy
from contracts.study import StudyProtocol
from contracts.update import UpdateEnvelope
from privacy.accountant import Spend, epsilon
from privacy.calibration import spend_of
from tasks.home import CoordinatorHome
from tasks.store import load_record


class Account:
    """What the plans that a site answered must have cost it, of every kind and of every fold."""

    def __init__(self, home: CoordinatorHome, protocol: StudyProtocol, plan: RoundPlan) -> None:
        self.privacy = protocol.privacy if isinstance(protocol.privacy, PatientPrivacy) else None
        self.spends: dict[str, list[Spend]] = {}
        self._composed: dict[tuple[Spend, ...], float] = {}
        if self.privacy is None:
            return
        assert plan.noise_multiplier is not None
        for number in range(protocol.first_round, plan.round):
            record = load_record(home, protocol.study, str(number))
            for line in record["updates"]:
                spend = spend_of(protocol, record["kind"], record["noise_multiplier"])
                self.spends.setdefault(line["site"], []).append(spend)
        self.own = spend_of(protocol, plan.kind, plan.noise_multiplier)

    def check(self, envelope: UpdateEnvelope) -> None:
        """Check that a site states the plan's mechanism and no less epsilon than its updates must have cost.

        Raises:
            ConsiliumError: E408.
        """
        if self.privacy is None:
            return
        stated = (envelope.sample_rate, envelope.noise_multiplier, envelope.planned_steps, envelope.delta)
        expected = (self.own.sample_rate, self.own.noise_multiplier, self.own.steps, self.privacy.delta)
        if stated != expected:
            raise ConsiliumError("E408", f"(rate, sigma, steps, delta) {stated}, expected {expected}")
        own = (*self.spends.get(envelope.site, []), self.own)
        if own not in self._composed:
            self._composed[own] = epsilon(list(own), self.privacy.delta, self.privacy.adjacency)
        least = self._composed[own]
        lineage = envelope.epsilon_lineage
        if envelope.epsilon_study is None or lineage is None or lineage < envelope.epsilon_study - 1e-6:
            raise ConsiliumError("E408", f"study {envelope.epsilon_study}, lineage {lineage}")
        if envelope.epsilon_study < least - 1e-6:
            raise ConsiliumError("E408", f"states {envelope.epsilon_study}, its updates cost {least:.4f}")


def epsilon_of(protocol: StudyProtocol, updates: list[UpdateEnvelope]) -> dict[str, Any] | None:
    """Epsilon of the study per site, as its own ledger states it and as was checked, and the maximum."""
    if not isinstance(protocol.privacy, PatientPrivacy):
        return None
    sites = {e.site: e.epsilon_study for e in updates if e.epsilon_study is not None}
    return {
        "delta": protocol.privacy.delta,
        "sites": sites,
        "maximum": max(sites.values()),
        "planned": protocol.privacy.epsilon,
    }


def spent_of(records: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What the hospitals' ledgers said last of the study, each and the largest; None without privacy.

    Args:
        records: of all exchanges, in order; the last one may have had fewer hospitals.
    """
    told: list[dict[str, Any]] = [record["epsilon"] for record in records if record.get("epsilon")]
    if not told:
        return None
    sites = {site: spent for epsilon in told for site, spent in epsilon.get("sites", {}).items()}
    return told[-1] | ({"sites": sites, "maximum": max(sites.values())} if sites else {})
