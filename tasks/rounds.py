"""One exchange of a study at the coordinator: open it and close it.

A round of training, the statistics before it, the histogram after it, the local models and every round of a
fold are opened and closed alike; `contracts.schedule` says which one a number is. Every function acts on the
head and on signed documents, never on the event that called it, so that a cleared, repeated or hand-started
run does no harm (design section 3).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from contracts.errors import ConsiliumError
from contracts.plan import RoundPlan
from contracts.privacy import HospitalPrivacy
from contracts.schedule import Slot, last_exchange, most_folds
from contracts.strategy import MAX_SECURE_SITES
from contracts.study import StudyProtocol
from contracts.update import UpdateEnvelope
from contracts.version import CODE_VERSION
from durable.files import locked
from strategies.bounds import weight_of
from strategies.secure import is_masked
from tasks import federation_ledger
from tasks.account import epsilon_of
from tasks.admission import admit
from tasks.aggregate import Base, aggregate
from tasks.answers import gather
from tasks.events import record_event
from tasks.folds import base_of, invited, left_out, made_of, minimum_sites, quorum, slot_of
from tasks.head import Head, advance, load_head, load_protocol, now
from tasks.home import CoordinatorHome
from tasks.influence import influence_of
from tasks.mask_keys import with_mask_keys
from tasks.masked_round import NEEDED, close_masked, update_line
from tasks.own_documents import OTHER_KEY
from tasks.roster import eligible_sites, make_plan, note_ledger_heads
from tasks.store import load_plan, load_record, plan_text, save_answer, save_plan, save_record
from tasks.threshold import decide_threshold


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
    it is planned anew. Under masks there is one plan for an exchange (`tasks.masked_round`).

    Raises:
        ConsiliumError: E506, fewer than `min_sites` hospitals (in a fold one fewer) are there to train; E520,
            fewer than robust aggregation can compare; E512, more than can be summed under masks; E607, more
            than leave-one-site-out was planned for; E401, E402, E407, E423, E425, hospital-level privacy
            could not be kept.
    """
    head = load_head(home, study)
    if head.status not in ("registered", "running"):
        return OpenedRound(plan=None, reason=f"study {study} is {head.status}")
    if head.runs.get(run_id, head.round) < head.round:
        return OpenedRound(plan=None, reason=str(ConsiliumError("E508", f"round {head.runs[run_id]}")))
    protocol = load_protocol(home, study)
    slot = slot_of(protocol, head.round)
    needed = quorum(protocol, slot)
    everybody, absent = eligible_sites(home, protocol, present)
    asked = invited(slot, head.fold_sites, set(everybody))
    ready, masks, without = with_mask_keys(home, protocol, slot, {site: everybody[site] for site in asked})
    eligible, absent = ready, {**absent, **without}
    runs = {**head.runs, run_id: head.round}
    attempt = 1
    if head.plan is not None:
        plan = load_plan(home, study, head.plan)
        if is_masked(protocol, plan.kind):
            # One plan for an exchange, ever: who masked a vector for its roster masks none for another.
            advance(home, head, runs=runs, status="running")
            return OpenedRound(
                plan_text(home, study, head.plan), roster_of(plan), f"round {head.round} resumed"
            )
        reachable = ({entry.site for entry in plan.roster} & set(eligible)) - refused_before(home, head)
        current = CODE_VERSION in plan.code_versions
        if (current and len(reachable) >= needed) or head.refusals == 0:
            advance(home, head, runs=runs, status="running")
            roster = sorted(reachable) if len(reachable) >= needed else roster_of(plan)
            return OpenedRound(plan_text(home, study, head.plan), roster, f"round {head.round} resumed")
        attempt = plan.attempt + 1
    try:
        check_number(protocol, slot, sorted(eligible), absent)
        if isinstance(protocol.privacy, HospitalPrivacy):
            federation_ledger.check_before_round(home, protocol, head.round, len(eligible))
    except ConsiliumError as error:
        advance(home, head, reason=(error.detail if error.number == "E506" else str(error))[:500])
        raise
    base, fold = base_of(home, protocol, head, slot), left_out(slot, head.fold_sites)
    plan = make_plan(
        home,
        protocol,
        head,
        slot.kind,
        eligible,
        attempt=attempt,
        base_model=base.model,
        fold=fold,
        masks=masks,
    )
    digest = save_plan(home, plan)
    save_record(home, study, str(head.round), opening_record(home, base, plan, digest, absent))
    record_event(home, study, "round_opened", digest, round=head.round, kind=slot.kind, sites=roster_of(plan))
    advance(home, head, runs=runs, status="running", plan=digest, reason=None)
    return OpenedRound(plan_text(home, study, digest), roster_of(plan), f"round {head.round} opened")


def check_number(protocol: StudyProtocol, slot: Slot, eligible: list[str], absent: dict[str, str]) -> None:
    """Check that enough hospitals are there for an exchange, and no more than the study was planned for.

    Raises:
        ConsiliumError: E506; E512, more than can be summed under masks; E520, the aggregation needs more;
            E607, up to the last round of training, which decides who is left out.
    """
    most = most_folds(protocol)
    if most and slot.number <= protocol.rounds and len(eligible) > most:
        raise ConsiliumError("E607", f"{len(eligible)} hospitals, at most {most}: {', '.join(eligible)}")
    if is_masked(protocol, slot.kind) and len(eligible) > MAX_SECURE_SITES:
        raise ConsiliumError("E512", f"{len(eligible)} hospitals, at most {MAX_SECURE_SITES} under masks")
    needed = quorum(protocol, slot)
    if len(eligible) < minimum_sites(protocol, slot):
        raise ConsiliumError("E506", waiting(protocol, slot.number, eligible, absent, needed))
    if len(eligible) < needed:
        method = f"strategy.aggregation {protocol.strategy.aggregation.method}"
        raise ConsiliumError("E520", f"{method}: {waiting(protocol, slot.number, eligible, absent, needed)}")


def refused_before(home: CoordinatorHome, head: Head) -> set[str]:
    """Sites that refused the open plan when its round was last closed: they would refuse it again.

    Not those that knew another key of the coordinator: signed by the key in force it is another matter.
    """
    if head.refusals == 0:
        return set()
    refused = load_record(home, head.study, str(head.round)).get("refused", {})
    return {site for site, refusal in refused.items() if refusal["number"] != OTHER_KEY}


def roster_of(plan: RoundPlan) -> list[str]:
    """Names of the sites on a plan's roster, sorted."""
    return sorted(entry.site for entry in plan.roster)


def waiting(
    protocol: StudyProtocol,
    round_number: int,
    eligible: list[str],
    absent: dict[str, str],
    needed: int | None = None,
) -> str:
    """Say why a round cannot open."""
    why = "; ".join(f"{site}: {reason}" for site, reason in sorted(absent.items()))
    return f"round {round_number}: {len(eligible)} of at least {needed or protocol.min_sites} sites ({why})"


def opening_record(
    home: CoordinatorHome, base: Base, plan: RoundPlan, digest: str, absent: dict[str, str]
) -> dict[str, Any]:
    """The record of a round when it opens; earlier attempts at the same round are kept in it."""
    attempts = []
    if plan.attempt > 1:
        earlier = load_record(home, plan.study, str(plan.round))
        attempts = [*earlier.pop("attempts", []), earlier]
    return {
        "study": plan.study,
        "protocol_hash": plan.protocol_hash,
        "round": plan.round,
        "kind": plan.kind,
        **({} if plan.fold is None else {"fold": plan.fold}),
        "attempt": plan.attempt,
        "attempts": attempts,
        "plan": digest,
        "status": "open",
        "opened": plan.created,
        "base_model": plan.base_model,
        "base_optimiser": base.optimiser,
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
            decide the threshold, or E516, an exchange under masks was lost that the study needs: it ends
            without a release; E401, E402, E407, E410, E423, E424,
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
    if stored["status"] in ("closed", "lost") and stored["plan"] == head.plan:
        # A crash came between the record and the head. The record is the round: nothing is computed anew.
        return _advanced(home, protocol, head, run_id, stored)
    if is_masked(protocol, plan.kind):
        record = close_masked(home, protocol, plan, head.plan, stored, run_id, results)
        if record["status"] == "refused":
            raise _missed(home, head, record)
        record["seconds"] = seconds_since(plan.created)
        save_record(home, study, str(head.round), record)
        return _advanced(home, protocol, head, run_id, record)
    answers = gather(home, plan, results, UpdateEnvelope)
    trained = list(answers.documents)
    note_shown_ledgers(home, answers.documents)
    admit(home, protocol, plan, head.plan, answers)
    record = {
        **stored,
        "closed": now(),
        "trained": trained,
        "admitted": list(answers.documents),
        "refused": answers.reasons(),
        "silent": answers.silent,
    }
    needed = quorum(protocol, slot_of(protocol, head.round))
    if len(answers.documents) < needed:
        reason = (
            f"round {head.round}: {len(answers.documents)} updates, at least {needed} needed; "
            f"{answers.summary()}"
        )
        raise _missed(home, head, {**record, "status": "refused", "reason": reason})
    for site, text in answers.texts.items():
        if site in answers.documents:
            save_answer(home, study, head.plan, site, text)
    weights = {
        e.site: weight_of(protocol, e.declared_size) for e in plan.roster if e.site in answers.documents
    }
    updates = list(answers.documents.values())
    if isinstance(protocol.privacy, HospitalPrivacy):
        federation_ledger.reserve(home, protocol, plan, head.plan)
    result = base = Base(plan.base_model, stored["base_optimiser"])
    if plan.kind == "histogram":
        record |= decide_threshold(home, protocol, updates, plan.noise_multiplier).record(protocol)
    elif plan.kind != "local":
        result = aggregate(home, protocol, plan, head.plan, base, updates, weights)
        influence = influence_of(home, protocol, plan, updates, weights)
        record |= {} if influence is None else {"influence": influence}
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


def _missed(home: CoordinatorHome, head: Head, record: dict[str, Any]) -> ConsiliumError:
    """Note that a round has missed its quorum and stays open; returns the refusal to raise."""
    reason = record["reason"]
    save_record(home, head.study, str(head.round), record)
    record_event(home, head.study, "round_refused", f"{head.plan} {head.refusals}", reason=reason[:500])
    advance(home, head, refusals=head.refusals + 1, reason=reason[:500])
    return ConsiliumError("E506", reason)


def note_shown_ledgers(home: CoordinatorHome, envelopes: Mapping[str, UpdateEnvelope]) -> None:
    """Before anything else is asked of it: what a hospital signed that it has spent, it has spent."""
    shown = {site: (e.ledger_length, e.ledger_head) for site, e in envelopes.items()}
    note_ledger_heads(home, {s: (n, head) for s, (n, head) in shown.items() if n is not None and head})


def _advanced(
    home: CoordinatorHome, protocol: StudyProtocol, head: Head, run_id: str, record: dict[str, Any]
) -> ClosedRound:
    """Move the head behind the round whose record is stored."""
    admitted = {line["site"]: line["envelope"] for line in record["updates"]}
    digests = {"model": record["model"], "updates": admitted}
    lost = record["status"] == "lost"
    if lost:
        reason = record["reason"][:500]
        record_event(home, protocol.study, "round_lost", record["plan"], round=head.round, reason=reason)
    else:
        record_event(home, protocol.study, "round_closed", record["plan"], round=head.round, **digests)
    if isinstance(protocol.privacy, HospitalPrivacy):
        federation_ledger.commit(home, record["plan"])
    slot, threshold = slot_of(protocol, head.round), record.get("threshold", {})
    undecided = ConsiliumError("E427", threshold["undecided"]) if "undecided" in threshold else None
    if lost and record["kind"] in NEEDED:
        undecided = ConsiliumError("E516", record["reason"])
    result = made_of(protocol, head, slot, record)
    finished = slot.number >= last_exchange(protocol, len(result.get("fold_sites", head.fold_sites)))
    advance(
        home,
        head,
        round=head.round if finished or undecided else head.round + 1,
        status="rejected" if undecided else "finished" if finished else "running",
        plan=None,
        refusals=0,
        reason=str(undecided)[:500] if undecided else None,
        # Bound to a round that no longer is the head's: a cleared run of the last round finds nothing to do.
        runs={**head.runs, run_id: head.round},
        **result,
    )
    if undecided:
        raise undecided
    return ClosedRound(next="finished" if finished else "round", record=record)


def seconds_since(timestamp: str) -> float:
    """Seconds from a contract timestamp until now."""
    return time.time() - datetime.strptime(timestamp, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
