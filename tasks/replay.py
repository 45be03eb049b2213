"""Recomputing a study from its stored updates: every round must give the digest that its record says.

Rounds of the folds are recomputed as those of the model are. Of local models there is nothing to recompute:
they never left their hospitals.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from contracts.errors import ConsiliumError
from contracts.plan import RoundPlan
from contracts.study import StudyProtocol
from contracts.update import UpdateEnvelope
from strategies.secure import is_masked
from tasks.admission import check_envelope, check_tensors
from tasks.aggregate import Base, aggregate, expectation
from tasks.answers import open_stored
from tasks.exchange import DirectoryExchange
from tasks.federation import load_federation
from tasks.folds import fold_start, left_out, slot_of
from tasks.head import load_head, load_protocol
from tasks.home import CoordinatorHome
from tasks.influence import check_influence, influence_of
from tasks.masked_round import opened
from tasks.secure import open_sum
from tasks.store import load_answer, load_plan, load_record
from tasks.threshold import decide_threshold


@dataclass(frozen=True)
class Replayed:
    """One round as recorded and as recomputed: the global model, or the histogram with its threshold.

    `round` is the number of the exchange over the whole study.
    """

    round: int
    recorded: str
    recomputed: str

    @property
    def matches(self) -> bool:
        """Whether both digests are the same."""
        return self.recorded == self.recomputed


def replay(home: CoordinatorHome, study: str) -> Iterator[Replayed]:
    """Yield each closed round, recomputed from the base model and the stored updates alone.

    Signatures and admission checks are repeated. The base of a round is the recomputed result of the one
    before, so an altered round shows in every later one; a fold begins with normalisation recomputed without
    its hospital.

    Raises:
        ConsiliumError: E803, E5xx: a stored document or update no longer passes; E510, a round started from
            another model, or the head names another as the model of a fold; E521, a record states another
            influence of a hospital.
    """
    protocol, head = load_protocol(home, study), load_head(home, study)
    last = head.round if head.status in ("finished", "released", "rejected") else head.round - 1
    start: Base | None = None  # of the first round of training
    base: Base | None = None
    for number in range(protocol.first_round, last + 1):
        slot, record = slot_of(protocol, number), load_record(home, study, str(number))
        plan = load_plan(home, study, record["plan"])
        fold = left_out(slot, head.fold_sites)
        if base is None:
            base = Base(record.get("base_model"), record.get("base_optimiser"))
        if number == 1:
            start = base
        if fold is not None and slot.round == 1:
            base = Base(fold_start(home, protocol, fold), None)
        if slot.purpose == "local":
            _check_base(number, plan, start)
            continue
        _check_base(number, plan, base)
        if record["status"] == "lost":
            assert base is not None
            yield Replayed(number, str(record["model"]), str(base.model))
            continue
        if is_masked(protocol, plan.kind):
            found = open_sum(home, protocol, plan, record["plan"])
            result, more = opened(home, protocol, plan, base, found)
            if plan.kind == "histogram":
                yield Replayed(number, record["histogram"], more["histogram"])
                continue
            base = result
            yield Replayed(number, record["model"], str(base.model))
            continue
        updates = _stored_updates(home, protocol, plan, record)
        if plan.kind == "histogram":
            decided = decide_threshold(home, protocol, updates, plan.noise_multiplier)
            yield Replayed(round=number, recorded=record["histogram"], recomputed=decided.digest)
            continue
        weights = {line["site"]: float(line["weight"]) for line in record["updates"]}
        base = aggregate(home, protocol, plan, record["plan"], base, updates, weights)
        computed = influence_of(home, protocol, plan, updates, weights)
        check_influence(number, record.get("influence"), computed)
        assert base.model is not None
        if fold is not None and slot.round == protocol.rounds and head.folds.get(fold) != record["model"]:
            raise ConsiliumError("E510", f"the head names {head.folds.get(fold)} as the model without {fold}")
        yield Replayed(round=number, recorded=record["model"], recomputed=base.model)


def _check_base(number: int, plan: RoundPlan, base: Base | None) -> None:
    expected = None if base is None else base.model
    if plan.base_model != expected:
        raise ConsiliumError("E510", f"round {number} starts from {plan.base_model}, not {expected}")


def _stored_updates(
    home: CoordinatorHome, protocol: StudyProtocol, plan: RoundPlan, record: dict[str, Any]
) -> list[UpdateEnvelope]:
    """Read the admitted updates of a round again and admit them again."""
    federation, exchange = load_federation(home), DirectoryExchange(home.exchange)
    updates = []
    for line in record["updates"]:
        site = line["site"]
        text = load_answer(home, plan.study, record["plan"], site)
        envelope, _ = open_stored(federation, site, text, UpdateEnvelope, plan)
        check_envelope(envelope, plan, record["plan"], site)
        entry = plan.entry(site)
        assert entry is not None
        check_tensors(exchange, envelope, expectation(home, protocol, plan, entry.declared_size))
        updates.append(envelope)
    return updates
