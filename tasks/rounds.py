"""One round of a study at the coordinator: open it, close it, and what to ring when nothing moves.

Every function acts on the head and on signed documents, never on the event that called it, so that a
cleared, repeated or hand-started run does no harm (design section 3).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from contracts.errors import ConsiliumError
from contracts.plan import RoundPlan
from contracts.study import HospitalPrivacy, PatientPrivacy, StudyProtocol
from contracts.update import UpdateEnvelope
from contracts.version import CODE_VERSION
from durable.files import locked
from privacy.accountant import Spend, epsilon
from privacy.calibration import spend_of
from tasks import federation_ledger
from tasks.admission import check_envelope, check_tensors
from tasks.aggregate import Base, aggregate, expectation, weight_of
from tasks.answers import Answers, gather
from tasks.events import record_event
from tasks.exchange import DirectoryExchange
from tasks.head import Head, advance, load_head, load_protocol, now, registered_studies
from tasks.home import CoordinatorHome
from tasks.presence import present_sites
from tasks.roster import eligible_sites, make_plan, note_ledger_heads
from tasks.store import load_plan, load_record, plan_text, put_tensors, save_answer, save_plan, save_record
from tasks.threshold import decide_threshold

IDLE_SECONDS = 20.0  # without activity before the watchdog rings
LONGEST_DOUBLINGS = 8  # of that time, one for each refusal of the round: up to an hour and a half


@dataclass(frozen=True)
class OpenedRound:
    """What a run has to do: a signed plan for its roster, or nothing and the reason."""

    plan: str | None
    roster: list[str] = field(default_factory=list)
    reason: str = ""


@dataclass(frozen=True)
class ClosedRound:
    """What to ring after a round, and the round's record."""

    next: Literal["round", "finished"] | None
    record: dict[str, Any]


def open_round(home: CoordinatorHome, study: str, run_id: str, present: set[str]) -> OpenedRound:
    """Open the study's next round for this run, or resume the one that is open.

    A run is bound to the round that it first opened: cleared after that round was closed, it finds nothing
    to do. A round that missed its quorum is resumed under the same plan while that plan's roster can still
    reach the quorum, so that updates already trained are sent again and nothing is spent twice; otherwise
    it is planned anew.

    Raises:
        ConsiliumError: E506, fewer than `min_sites` hospitals are there to train; E401, E402, E407, E423,
            E425, hospital-level privacy could not be kept.
    """
    head = load_head(home, study)
    if head.status not in ("registered", "running"):
        return OpenedRound(plan=None, reason=f"study {study} is {head.status}")
    if head.runs.get(run_id, head.round) < head.round:
        return OpenedRound(plan=None, reason=str(ConsiliumError("E508", f"round {head.runs[run_id]}")))
    protocol = load_protocol(home, study)
    eligible, absent = eligible_sites(home, protocol, present)
    runs = {**head.runs, run_id: head.round}
    attempt = 1
    if head.plan is not None:
        plan = load_plan(home, study, head.plan)
        reachable = ({entry.site for entry in plan.roster} & set(eligible)) - refused_before(home, head)
        current = CODE_VERSION in plan.code_versions
        if (current and len(reachable) >= protocol.min_sites) or head.refusals == 0:
            advance(home, head, runs=runs, status="running")
            roster = sorted(reachable) if len(reachable) >= protocol.min_sites else roster_of(plan)
            return OpenedRound(plan_text(home, study, head.plan), roster, f"round {head.round} resumed")
        attempt = plan.attempt + 1
    if len(eligible) < protocol.min_sites:
        reason = waiting(protocol, head.round, sorted(eligible), absent)
        advance(home, head, reason=reason[:500])
        raise ConsiliumError("E506", reason)
    if isinstance(protocol.privacy, HospitalPrivacy):
        try:
            federation_ledger.check_before_round(home, protocol, head.round, len(eligible))
        except ConsiliumError as error:
            advance(home, head, reason=str(error)[:500])
            raise
    if head.model is None and head.round == 1:
        head = advance(home, head, model=initial_model(home, protocol))
    kind: Literal["statistics", "training", "histogram"] = "statistics" if head.round == 0 else "training"
    if head.round > protocol.rounds:
        kind = "histogram"
    plan = make_plan(home, protocol, head, kind, eligible, attempt=attempt)
    digest = save_plan(home, plan)
    save_record(home, study, str(head.round), opening_record(home, head, plan, digest, absent))
    record_event(home, study, "round_opened", digest, round=head.round, kind=kind, sites=list(eligible))
    advance(home, head, runs=runs, status="running", plan=digest, reason=None)
    return OpenedRound(plan_text(home, study, digest), roster_of(plan), f"round {head.round} opened")


def refused_before(home: CoordinatorHome, head: Head) -> set[str]:
    """Sites that refused the open plan when its round was last closed: they would refuse it again."""
    if head.refusals == 0:
        return set()
    return set(load_record(home, head.study, str(head.round)).get("refused", {}))


def roster_of(plan: RoundPlan) -> list[str]:
    """Names of the sites on a plan's roster, sorted."""
    return sorted(entry.site for entry in plan.roster)


def waiting(protocol: StudyProtocol, round_number: int, eligible: list[str], absent: dict[str, str]) -> str:
    """Say why a round cannot open."""
    why = "; ".join(f"{site}: {reason}" for site, reason in sorted(absent.items()))
    return f"round {round_number}: {len(eligible)} of at least {protocol.min_sites} sites ({why})"


def initial_model(home: CoordinatorHome, protocol: StudyProtocol) -> str:
    """Store the first global model of a study without federated statistics."""
    from models.registry import initial_state  # torch: only here, so that every other round starts fast

    return put_tensors(home, initial_state(protocol))


def opening_record(
    home: CoordinatorHome, head: Head, plan: RoundPlan, digest: str, absent: dict[str, str]
) -> dict[str, Any]:
    """The record of a round when it opens; earlier attempts at the same round are kept in it."""
    attempts = []
    if plan.attempt > 1:
        earlier = load_record(home, plan.study, str(head.round))
        attempts = [*earlier.pop("attempts", []), earlier]
    return {
        "study": plan.study,
        "protocol_hash": plan.protocol_hash,
        "round": plan.round,
        "kind": plan.kind,
        "attempt": plan.attempt,
        "attempts": attempts,
        "plan": digest,
        "status": "open",
        "opened": plan.created,
        "base_model": plan.base_model,
        "base_optimiser": head.optimiser,
        "noise_multiplier": plan.noise_multiplier,
        "expected": roster_of(plan),
        "absent": absent,
    }


def close_round(
    home: CoordinatorHome, study: str, run_id: str, results: dict[str, str | None]
) -> ClosedRound:
    """Admit the answers, aggregate, account, store, and advance the head.

    Args:
        results: each site's signed string (update or refusal), or None for silence.

    Returns:
        what to ring; `next` is None when this run's round was closed before.

    Raises:
        ConsiliumError: E506, fewer than `min_sites` updates were admitted: the round is refused, its record
            says who delivered, who refused and why, and who was silent; E427, the training histogram cannot
            decide the threshold: the study ends without a release; E401, E402, E407, E410, E423, E424,
            hospital-level privacy could not be kept.
    """
    load_head(home, study)  # an unknown study gets no folder
    with locked(home.study(study) / ".close.lock"):
        return _close(home, study, run_id, results)


def _close(home: CoordinatorHome, study: str, run_id: str, results: dict[str, str | None]) -> ClosedRound:
    head = load_head(home, study)
    if head.status == "finished" and head.runs.get(run_id) == head.round and head.evaluation is None:
        return ClosedRound(next="finished", record={})  # this run closed the last round: the bell may be lost
    if head.plan is None or head.runs.get(run_id) != head.round or head.status != "running":
        return ClosedRound(next=None, record={})
    protocol = load_protocol(home, study)
    plan = load_plan(home, study, head.plan)
    stored = load_record(home, study, str(head.round))
    if stored["status"] == "closed" and stored["plan"] == head.plan:
        # A crash came between the record and the head. The record is the round: nothing is computed anew.
        return _advanced(home, protocol, head, run_id, stored)
    answers = gather(home, plan, results, UpdateEnvelope)
    trained = list(answers.documents)
    # Before anything else is asked of it: what a hospital signed that it has spent, it has spent.
    shown = {site: (e.ledger_length, e.ledger_head) for site, e in answers.documents.items()}
    note_ledger_heads(home, {s: (n, head) for s, (n, head) in shown.items() if n is not None and head})
    admit(home, protocol, plan, head.plan, answers)
    record = {
        **stored,
        "closed": now(),
        "trained": trained,
        "admitted": list(answers.documents),
        "refused": answers.reasons(),
        "silent": answers.silent,
    }
    if len(answers.documents) < protocol.min_sites:
        reason = (
            f"round {head.round}: {len(answers.documents)} updates, at least {protocol.min_sites} needed; "
            f"{answers.summary()}"
        )
        save_record(home, study, str(head.round), {**record, "status": "refused", "reason": reason})
        record_event(home, study, "round_refused", f"{head.plan} {head.refusals}", reason=reason[:500])
        advance(home, head, refusals=head.refusals + 1, reason=reason[:500])
        raise ConsiliumError("E506", reason)
    for site, text in answers.texts.items():
        if site in answers.documents:
            save_answer(home, study, head.plan, site, text)
    weights = {
        e.site: weight_of(protocol, e.declared_size) for e in plan.roster if e.site in answers.documents
    }
    updates = list(answers.documents.values())
    if isinstance(protocol.privacy, HospitalPrivacy):
        federation_ledger.reserve(home, protocol, plan, head.plan)
    base = Base(plan.base_model, head.optimiser)
    if plan.kind == "histogram":
        decided, result = decide_threshold(home, protocol, updates, plan.noise_multiplier), base
        record |= decided.record(protocol)
    else:
        result = aggregate(home, protocol, plan, head.plan, base, updates, weights)
    record.pop("reason", None)  # of an attempt that missed the quorum
    record |= {
        "status": "closed",
        "model": result.model,
        "optimiser": result.optimiser,
        "updates": [update_line(e, answers.digests[e.site], weights[e.site]) for e in updates],
        "epsilon": epsilon_of(protocol, updates),
        "seconds": seconds_since(plan.created),
    }
    if isinstance(protocol.privacy, HospitalPrivacy):
        record |= federation_ledger.round_account(home, protocol, plan, head.optimiser, record["updates"])
    save_record(home, study, str(head.round), record)
    return _advanced(home, protocol, head, run_id, record)


def _advanced(
    home: CoordinatorHome, protocol: StudyProtocol, head: Head, run_id: str, record: dict[str, Any]
) -> ClosedRound:
    """Move the head behind the round whose record is stored."""
    admitted = {line["site"]: line["envelope"] for line in record["updates"]}
    digests = {"model": record["model"], "updates": admitted}
    record_event(home, protocol.study, "round_closed", record["plan"], round=head.round, **digests)
    if isinstance(protocol.privacy, HospitalPrivacy):
        federation_ledger.commit(home, record["plan"])
    finished = head.round >= protocol.last_round
    threshold = record.get("threshold", {})
    undecided = ConsiliumError("E427", threshold["undecided"]) if "undecided" in threshold else None
    advance(
        home,
        head,
        round=head.round if finished else head.round + 1,
        status="rejected" if undecided else "finished" if finished else "running",
        plan=None,
        refusals=0,
        reason=str(undecided)[:500] if undecided else None,
        threshold=threshold.get("value"),
        model=record["model"],
        optimiser=record["optimiser"],
        # Bound to a round that no longer is the head's: a cleared run of the last round finds nothing to do.
        runs={**head.runs, run_id: head.round},
    )
    if undecided:
        raise undecided
    return ClosedRound(next="finished" if finished else "round", record=record)


def admit(
    home: CoordinatorHome,
    protocol: StudyProtocol,
    plan: RoundPlan,
    plan_digest: str,
    answers: Answers[UpdateEnvelope],
) -> None:
    """Check every delivered update and move those that fail to the refused, with their number."""
    exchange = DirectoryExchange(home.exchange)
    account = Account(home, protocol, plan)
    for site, envelope in list(answers.documents.items()):
        entry = plan.entry(site)
        assert entry is not None
        try:
            check_envelope(envelope, plan, plan_digest, site)
            account.check(envelope)
            check_tensors(exchange, envelope, expectation(home, protocol, plan, entry.declared_size))
        except ConsiliumError as error:
            answers.refuse(site, error)


def update_line(envelope: UpdateEnvelope, digest: str, weight: float) -> dict[str, Any]:
    """What a round's record says of one admitted update."""
    line = envelope.model_dump(mode="json", exclude_none=True)
    names = ("site", "tensors", "data_sheet", "cohort", "policy", "code_version", "ledger_head")
    private = ("ledger_length", "epsilon_study", "epsilon_lineage", "epsilon_left")
    shown = {name: line[name] for name in (*names, *private) if name in line}
    return {**shown, "envelope": digest, "weight": weight}


class Account:
    """The coordinator's own account of a study: what the plans that a site answered must have cost it."""

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


def seconds_since(timestamp: str) -> float:
    """Seconds from a contract timestamp until now."""
    return time.time() - datetime.strptime(timestamp, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()


def idle_studies(home: CoordinatorHome) -> dict[str, Literal["round", "finished"]]:
    """Studies that should be moving and are not, and which of their bells the watchdog rings.

    A study with a cron cadence waits for its cron. One short of sites is rung only once enough are there, and
    one whose hospitals refuse is asked less and less often: what they refuse for may take a person to change.
    A study whose files are damaged keeps no other from being rung.
    """
    idle: dict[str, Literal["round", "finished"]] = {}
    present = present_sites(home)
    for study in registered_studies(home):
        try:
            head, protocol = load_head(home, study), load_protocol(home, study)
            eligible, _ = eligible_sites(home, protocol, present)
        except ConsiliumError:
            continue
        waited = seconds_since(head.updated)
        if len(eligible) < protocol.min_sites:
            continue
        if head.status == "running" and protocol.cadence != "cron":
            open_since = head.plan is not None and head.refusals == 0
            patience = IDLE_SECONDS * 2.0 ** min(head.refusals, LONGEST_DOUBLINGS)
            if waited > patience + (protocol.deadline_seconds if open_since else 0):
                idle[study] = "round"
        elif head.status == "finished" and head.evaluation is None and waited > IDLE_SECONDS:
            idle[study] = "finished"
    return idle
