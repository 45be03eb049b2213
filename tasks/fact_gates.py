"""The gates on facts: parity, ledgers, approvals and vulnerabilities. What is not known does not pass."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from contracts.errors import ConsiliumError
from contracts.gates import Fact
from release.dossier import vulnerabilities
from release.facts import Evidence, ReleaseFacts
from release.ledgers import check_exchanges, check_replay, keeper
from tasks.head import now
from tasks.home import CoordinatorHome
from tasks.lineage import closed_exchanges
from tasks.store import load_record
from validation.gates import Verdict

_NOT_APPROVED = ("E301", "E302", "E303")
_LEDGER = ("E402", "E407", "E408", "E418", "E509")


def fact_verdicts(home: CoordinatorHome, facts: ReleaseFacts) -> dict[Fact, Verdict]:
    """Decide every fact about a candidate, from its own facts and the records of its two exchanges."""
    evaluated = load_record(home, facts.protocol.study, "evaluation")
    verification = load_record(home, facts.protocol.study, "verification")
    closed = closed_exchanges(home, facts.protocol.study)
    trained = {line["site"] for record in closed for line in record["updates"]}
    expected = sorted(trained | set(evaluated["evaluated"]))
    return {
        "parity": parity_verdict(facts, expected),
        "ledgers": ledgers_verdict(facts, evaluated["refused"]),
        "approvals": approvals_verdict(
            expected, verification["verified"], {**evaluated["refused"], **verification["refused"]}
        ),
        "vulnerabilities": Verdict(*vulnerabilities.verdict(facts.evidence, now(), facts.components)),
    }


def parity_verdict(facts: ReleaseFacts, expected: list[str]) -> Verdict:
    """Does the exported model agree with the trained one at every hospital that trained or evaluated it?"""
    found = {report.site: report.parity for report in facts.verification if report.parity}
    for site, parity in sorted(found.items()):
        if parity.decisions_flipped or parity.max_abs_difference > parity.tolerance:
            return Verdict(False, f"the exported model disagrees at {site}", site)
    missing = [site for site in expected if site not in found]
    if missing:
        return Verdict(None, f"not testable: no parity from {', '.join(missing)}", missing[0])
    return Verdict(bool(found) or None, f"it agrees at {len(found)} hospitals", None)


def approvals_verdict(
    expected: list[str], verified: list[str], refused: Mapping[str, Mapping[str, str]]
) -> Verdict:
    """Did every hospital that trained or evaluated also verify, under an approval that is current?

    Args:
        refused: hospital -> refusal (number, name, sentence), of evaluation and verification.
    """
    against = [site for site in expected if refused.get(site, {}).get("number") in _NOT_APPROVED]
    if against:
        said = "; ".join(f"{site}: {refused[site]['number']} {refused[site]['name']}" for site in against)
        return Verdict(False, said, against[0])
    missing = [site for site in expected if site not in verified]
    if missing:
        return Verdict(None, f"not testable: {', '.join(missing)} did not verify", missing[0])
    return Verdict(bool(expected) or None, f"{len(expected)} hospitals verified under their approval", None)


def ledgers_verdict(facts: ReleaseFacts, refused: Mapping[str, Mapping[str, str]]) -> Verdict:
    """Does the ledger of every hospital that may have spent replay to the epsilon that is stated for it?"""
    if facts.protocol.privacy.mode == "none":
        return Verdict(True, "the study spends no epsilon", None)
    missing, replayed = [], []
    for stated in facts.site_privacy:
        if refused.get(stated.site, {}).get("number") in _LEDGER:
            number = refused[stated.site]["number"]
            return Verdict(False, f"{stated.site}: {number} {refused[stated.site]['name']}", stated.site)
        data = facts.ledgers.get(keeper(facts.protocol, stated.site))
        if data is None:
            missing.append(stated.site)
            continue
        try:
            replayed.append(check_replay(facts.protocol, stated, data))
        except ConsiliumError as error:
            return Verdict(False, str(error)[:300], stated.site)
    if missing or not replayed:
        said = f"not testable: no ledger from {', '.join(missing) or 'anybody'}"
        return Verdict(None, said, missing[0] if missing else None)
    try:
        check_exchanges(facts.protocol, replayed, facts.lineage.rounds)
    except ConsiliumError as error:
        return Verdict(False, str(error)[:300], None)
    return Verdict(True, f"{len(replayed)} ledgers replay to the stated epsilon", None)


def evidence_times(evidence: Evidence) -> list[str]:
    """When the evidence was made, as contracts write times: a candidate is not older than what it shows."""
    known = [text for text in (evidence.scan_time, evidence.tests_time) if text is not None]
    return [_time(text).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") for text in known]


def _time(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)
