"""Closing an exchange under masks: the sum is opened, or the exchange is lost and the study goes on.

A lost round of training changes nothing: the model stays, what the hospitals reserved of their privacy stays
spent, and the next round trains anew under a plan, masks and keys of its own. It is never planned a second
time, since a hospital masks one vector in an exchange, ever. Statistics and histogram cannot be left out, so
there silence and refusals that may pass are waited for, under the same plan and the same request; only when
too few hospitals are left who could still answer is the exchange lost, and the study with it (E516). Any
exchange waits for hospitals that have yet to learn the coordinator's new key: the next round would find them
no further.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from contracts.errors import SENTENCES, ConsiliumError
from contracts.plan import RoundPlan
from contracts.study import StudyProtocol
from contracts.update import UpdateEnvelope
from privacy.mask_recovery import SharesMissing
from strategies.secure import context_of, least_alive
from tasks.account import epsilon_of
from tasks.aggregate import Base, next_state
from tasks.head import now
from tasks.home import CoordinatorHome
from tasks.own_documents import OTHER_KEY
from tasks.secure import Sum, keep_shares, open_sum, stored_request
from tasks.threshold import decide_from

NEEDED = ("statistics", "histogram")  # a study cannot go on without these
# Refusals after which a hospital never answers this plan or request, which stay as they are. Whatever else it
# says may pass: it is paused, not connected, outside its hours, its disk is full, a key is not taken yet.
WENT = ("E303", "E808")  # withdrew, or was revoked
UNFIT = ("E306", "E324", "E325", "E511", "E512", "E513", "E514", "E515", "E517", "E807")  # plan or request
COSTLY = ("E401", "E410", "E411")  # what the plan costs in privacy
SPOILS = ("E430", "E431", "E432", "E433", "E505", "E519")  # a vector or shares, which are made once
FINAL = frozenset((*WENT, *UNFIT, *COSTLY, *SPOILS))
SPOILT = ("E434", "E518")  # the sum is not opened, or is no plausible one

Record = dict[str, Any]


def close_masked(
    home: CoordinatorHome,
    protocol: StudyProtocol,
    plan: RoundPlan,
    plan_digest: str,
    stored: Record,
    run_id: str,
    results: Mapping[str, str | None],
) -> Record:
    """Return the record of an exchange after the answers to its request: closed, lost or refused.

    Args:
        stored: the record as `open_unmasking` left it.
        results: each alive site's signed answer, or None for silence.
    """
    context, base = context_of(protocol, plan, plan_digest), Base(plan.base_model, stored["base_optimiser"])
    record = {**stored, "closed": now(), "admitted": [], "updates": []}
    record.pop("reason", None)
    if stored.get("secure", {}).get("run") != run_id:  # the task between the hops failed
        return record | {"status": "refused", "reason": f"round {plan.round}: nobody was asked to unmask"}
    found = stored_request(home, plan.study, plan_digest)
    if found is None:
        needed, delivered = least_alive(protocol, plan), len(stored["secure"]["delivered"])
        refused = {site: r["number"] for site, r in stored["refused"].items()}
        why = f"{delivered} masked updates, at least {needed} needed"
        return _short(
            plan, record, why, context.roster, stored["secure"]["delivered"], refused, delivered, needed
        )
    request, request_digest, _ = found
    answered, refused = keep_shares(home, plan, request, request_digest, results)
    record["secure"] = stored["secure"] | {"answered": sorted(answered), "refused": sentences(refused)}
    if len(answered) < context.threshold:
        why = f"{len(answered)} hospitals answered the request to unmask, at least {context.threshold} needed"
        return _short(plan, record, why, request.alive, answered, refused, len(answered), context.threshold)
    try:
        found_sum = open_sum(home, protocol, plan, plan_digest)
    except SharesMissing as error:
        # At least one good answer is missing, whoever lied: a further one may open the sum.
        good = min(len(set(answered) - set(error.wrong)), context.threshold - 1)
        why = f"the masks were not opened (E434): {error.detail}"
        return _short(plan, record, why, request.alive, answered, refused, good, context.threshold)
    except ConsiliumError as error:
        if error.number not in SPOILT:
            raise
        return _lost(plan, record, str(error))
    record["secure"] |= {"liars": found_sum.liars}
    result, more = opened(home, protocol, plan, base, found_sum)
    return record | {
        **more,
        "status": "closed",
        "admitted": [e.site for e in found_sum.envelopes],
        "model": result.model,
        "optimiser": result.optimiser,
        "updates": [
            update_line(e, found_sum.digests[e.site], found_sum.weights[e.site]) for e in found_sum.envelopes
        ],
        "epsilon": epsilon_of(protocol, found_sum.envelopes),
    }


def opened(
    home: CoordinatorHome, protocol: StudyProtocol, plan: RoundPlan, base: Base, found: Sum
) -> tuple[Base, Record]:
    """What follows from an opened sum: the next global state, and what the record says of a histogram."""
    sites = len(found.envelopes)
    if plan.kind == "histogram":
        total = found.update.tensors.whole("histogram")
        decided = decide_from(home, protocol, total, plan.noise_multiplier, sites)
        return base, decided.record(protocol)
    return next_state(home, protocol, plan, base, [found.update], sites), {}


def update_line(envelope: UpdateEnvelope, digest: str, weight: float) -> Record:
    """What a round's record says of one admitted update."""
    line = envelope.model_dump(mode="json", exclude_none=True)
    names = ("site", "tensors", "data_sheet", "cohort", "policy", "code_version", "ledger_head")
    private = ("ledger_length", "epsilon_study", "epsilon_lineage", "epsilon_left")
    shown = {name: line[name] for name in (*names, *private) if name in line}
    return {**shown, "envelope": digest, "weight": weight}


def masks_line(record: Record) -> str | None:
    """Say of an exchange under masks whose sum was opened, and who was missing; None of any other."""
    masks = record.get("secure")
    if masks is None or record["status"] not in ("closed", "lost"):
        return None
    if record["status"] == "lost":
        return f"round {record['round']} is lost: {record['reason']}"
    asked = len(masks["alive"]) + len(masks["dead"])
    parts = [f"sum of {len(masks['alive'])} of {asked} under masks, {masks['threshold']} had to answer"]
    named = (("missing", masks["dead"]), ("late", masks["late"]), ("wrong shares", masks["liars"]))
    return "; ".join([*parts, *(f"{name}: {', '.join(sites)}" for name, sites in named if sites)])


def sentences(refused: Mapping[str, str]) -> Record:
    """Refusals as records show them."""
    return {
        site: {"number": number, "name": SENTENCES[number][0], "sentence": SENTENCES[number][1]}
        for site, number in sorted(refused.items())
    }


def _short(
    plan: RoundPlan,
    record: Record,
    why: str,
    asked: Collection[str],
    answered: Collection[str],
    refused: Mapping[str, str],
    good: int,
    needed: int,
) -> Record:
    """Too few answers: waited for where the study needs them, or only a key is missing; otherwise lost.

    Args:
        asked: who was to answer.
        answered: who has.
        refused: the numbers of those who refused.
        good: how many of the answers are of use, as far as is known.
    """
    said = "; ".join(f"{site}: {number}" for site, number in sorted(refused.items()))
    reason = f"round {plan.round}: {why}" + (f" (refused: {said})" if said else "")
    missing = [refused.get(site) for site in asked if site not in answered]
    if plan.kind in NEEDED:
        can_come = sum(number not in FINAL for number in missing)
    else:
        can_come = missing.count(OTHER_KEY)
    if good + can_come >= needed:
        return record | {"status": "refused", "reason": reason}
    return _lost(plan, record, reason)


def _lost(plan: RoundPlan, record: Record, reason: str) -> Record:
    return record | {
        "status": "lost",
        "reason": reason,
        "model": plan.base_model,
        "optimiser": record["base_optimiser"],
        "epsilon": record["secure"]["epsilon"],
    }
