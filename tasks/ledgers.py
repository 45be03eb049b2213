"""What hospitals show of their privacy ledgers: verified, composed anew, and kept for the release."""

from __future__ import annotations

import contextlib

from contracts.errors import ConsiliumError
from contracts.evaluation import EvaluationReport
from contracts.privacy import PatientPrivacy
from contracts.study import StudyProtocol
from privacy.accountant import Spend, epsilon
from privacy.calibration import spend_of
from privacy.excerpt import MAX_EXCERPT_BYTES, Excerpt, read_excerpt
from tasks.exchange import DirectoryExchange, file_digest
from tasks.federation import load_federation
from tasks.folds import exchange_records
from tasks.home import CoordinatorHome
from tasks.roster import last_ledger_heads, note_ledger_heads

_TOLERANCE = 1e-6  # of an epsilon that was sent as JSON


def excerpt_bytes(home: CoordinatorHome, report: EvaluationReport) -> bytes | None:
    """The excerpt that a report names, as it lies in the exchange; None when it names none.

    Raises:
        ConsiliumError: E509, it is not there or not what its digest says; E418, it is too large.
    """
    if report.ledger is None:
        return None
    path = DirectoryExchange(home.exchange).path_of(report.ledger)
    if not path.is_file():
        raise ConsiliumError("E509", f"the ledger's excerpt {report.ledger} of {report.site!r}")
    if path.stat().st_size > MAX_EXCERPT_BYTES:
        raise ConsiliumError("E418", f"excerpt of {path.stat().st_size} bytes")
    if file_digest(path) != report.ledger:
        raise ConsiliumError("E509", f"the content under {report.ledger} has another digest")
    return path.read_bytes()


def ledger_key(home: CoordinatorHome, report: EvaluationReport) -> str:
    """A key of the hospital that the ledger it showed verifies with: its newest that signed an entry there.

    Raises:
        ConsiliumError: E402, none of its keys did; E418, E509.
    """
    member, data = load_federation(home).known(report.site), excerpt_bytes(home, report)
    keys = [member.sign_key, *(former.sign_key for former in reversed(member.former))]
    if data is None:  # nothing was spent
        return keys[0]
    for key in keys[:-1]:
        with contextlib.suppress(ConsiliumError):
            read_excerpt(data, key)
            return key
    read_excerpt(data, keys[-1])
    return keys[-1]


def check_ledger(home: CoordinatorHome, protocol: StudyProtocol, report: EvaluationReport) -> Excerpt | None:
    """Verify the ledger that a hospital shows with its evaluation, and compose its epsilon anew.

    It must hold every head that was seen of it, and one reservation with the plan's own triple for every
    update of this hospital that went into the model. None for a study without patient-level privacy and for a
    hospital that never spent.

    Raises:
        ConsiliumError: E402, E418, E509, the excerpt does not verify; E407, it is older than what was seen;
            E408, it holds less than the updates cost, or the report states another epsilon than it gives.
    """
    privacy = protocol.privacy
    if not isinstance(privacy, PatientPrivacy):
        return None
    owed = owed_by(home, protocol, report.site)
    data = excerpt_bytes(home, report)
    if data is None:
        if owed or report.epsilon_study is not None:
            raise ConsiliumError("E408", f"{report.site!r} shows no ledger for {len(owed)} plans it answered")
        return None
    found = read_excerpt(data, ledger_key(home, report))
    if found.site != report.site or found.study not in (None, protocol.study):
        raise ConsiliumError("E402", f"the ledger of {found.site!r} for {found.study!r}")
    seen = last_ledger_heads(home).get(report.site)
    if found.head != report.ledger_head or (seen and seen not in (*found.heads, *found.lost_heads)):
        raise ConsiliumError("E407", f"head {found.head}, expected {report.ledger_head} and {seen} before it")
    reserved = {r.plan: r.spend for r in found.reservations}
    # After a loss its officer charged again, without the plan, what had been reserved under it.
    charged = list(found.by_purpose.get("write-off", ())) if found.lost_heads else []
    for plans, spend in owed:
        paid = [reserved[plan] for plan in plans if plan in reserved]
        if spend in paid:
            continue
        if spend not in charged:
            raise ConsiliumError("E408", f"plan {plans[-1]}: reserved {paid}, answered for {spend}")
        charged.remove(spend)
    stated = (report.epsilon_study, report.epsilon_lineage)
    composed = tuple(
        epsilon(spends, privacy.delta, privacy.adjacency) for spends in (found.study_spends, found.spends)
    )
    for value, expected in zip(stated, composed, strict=True):
        if value is None or abs(value - expected) > _TOLERANCE * max(1.0, expected):
            raise ConsiliumError(
                "E408", f"{report.site!r} states {stated}, its ledger composes to {composed}"
            )
    note_ledger_heads(home, {report.site: (found.length, found.head)})
    return found


def owed_by(home: CoordinatorHome, protocol: StudyProtocol, site: str) -> list[tuple[list[str], Spend]]:
    """What each admitted update of this hospital must have cost, and the plans it may be reserved under.

    A round that was planned anew may have been answered with the bytes of an earlier attempt, which were paid
    under that attempt's plan.
    """
    owed = []
    for record in exchange_records(home, protocol):
        if record["noise_multiplier"] is None or site not in {line["site"] for line in record["updates"]}:
            continue
        plans = [attempt["plan"] for attempt in (*record.get("attempts", []), record)]
        owed.append((plans, spend_of(protocol, record["kind"], record["noise_multiplier"])))
    return owed
