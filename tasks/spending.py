"""What every hospital spent of its privacy on a study, as the release states it."""

from __future__ import annotations

from typing import Any

from contracts.evaluation import EvaluationReport
from contracts.privacy import HospitalPrivacy, PatientPrivacy
from contracts.release import SitePrivacy
from contracts.study import StudyProtocol
from privacy.accountant import Spend, epsilon
from privacy.calibration import spend_of
from tasks.central import COORDINATOR
from tasks.federation import load_federation
from tasks.federation_ledger import federation_ledger, hospitals_privacy
from tasks.home import CoordinatorHome
from tasks.ledgers import excerpt_bytes, ledger_key
from tasks.lineage import exchanges


def site_privacy(
    home: CoordinatorHome, protocol: StudyProtocol, reports: list[EvaluationReport] | None = None
) -> list[SitePrivacy]:
    """What every hospital has spent that was ever on a roster of the study, never less than is known.

    A reservation counts whether or not its update arrived. So it is the ledger that speaks, as each hospital
    showed it after training, with its evaluation; where a hospital has shown none, every plan that named it
    is counted.
    """
    federation = load_federation(home)
    named: dict[str, list[Spend]] = {}
    newest: dict[str, dict[str, Any]] = {}
    for record in exchanges(home, protocol.study):
        for attempt in (*record.get("attempts", []), record):
            for site in attempt["expected"]:
                if attempt["noise_multiplier"] is not None:
                    spend = spend_of(protocol, attempt["kind"], attempt["noise_multiplier"])
                    named.setdefault(site, []).append(spend)
                else:
                    named.setdefault(site, [])
        for line in record.get("updates", []):
            newest[line["site"]] = line
    if isinstance(protocol.privacy, HospitalPrivacy):
        return hospitals_privacy(home, protocol, sorted(named))
    for report in reports or []:
        if report.epsilon_study is not None:
            before = newest.get(report.site, {}).get("epsilon_study", 0.0)
            if report.epsilon_study >= before - 1e-6:
                newest[report.site] = report.model_dump()
    shown = {r.site: r for r in reports or [] if r.epsilon_study is not None}
    found = []
    for site, spends in sorted(named.items()):
        line = newest.get(site, {})
        study, lineage = line.get("epsilon_study"), line.get("epsilon_lineage")
        if isinstance(protocol.privacy, PatientPrivacy) and site not in shown:
            most = epsilon(spends, protocol.privacy.delta, protocol.privacy.adjacency)
            study, lineage = max(study or 0.0, most), max(lineage or 0.0, most)
        found.append(
            SitePrivacy(
                site=site,
                declared_size=federation.known(site).declared_size,
                epsilon_study=study,
                epsilon_lineage=lineage,
                ledger_head=line.get("ledger_head"),
                ledger_key=ledger_key(home, shown[site]) if site in shown else None,
            )
        )
    return found


def shown_ledgers(
    home: CoordinatorHome, protocol: StudyProtocol, reports: list[EvaluationReport]
) -> dict[str, bytes]:
    """The excerpts of the ledgers, by who keeps them: what the release's epsilon can be replayed from."""
    if isinstance(protocol.privacy, HospitalPrivacy):
        return {COORDINATOR: federation_ledger(home).excerpt(protocol.study)}
    shown = {report.site: excerpt_bytes(home, report) for report in reports}
    return {site: data for site, data in sorted(shown.items()) if data is not None}
