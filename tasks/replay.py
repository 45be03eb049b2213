"""Recomputing a study from its stored updates: every round must give the digest that its record says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from contracts.errors import ConsiliumError
from contracts.update import UpdateEnvelope
from tasks.admission import check_envelope, check_tensors
from tasks.aggregate import Base, aggregate, expectation
from tasks.answers import open_answer
from tasks.exchange import DirectoryExchange
from tasks.federation import load_federation
from tasks.head import load_head, load_protocol
from tasks.home import CoordinatorHome
from tasks.store import load_answer, load_plan, load_record
from tasks.threshold import decide_threshold


@dataclass(frozen=True)
class Replayed:
    """One round as recorded and as recomputed: the global model, or the histogram with its threshold."""

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
    before, so an altered round shows in every later one.

    Raises:
        ConsiliumError: E803, E5xx: a stored document or update no longer passes.
    """
    protocol, head = load_protocol(home, study), load_head(home, study)
    federation, exchange = load_federation(home), DirectoryExchange(home.exchange)
    last = head.round if head.status in ("finished", "released", "rejected") else head.round - 1
    base: Base | None = None
    for number in range(protocol.first_round, last + 1):
        record = load_record(home, study, str(number))
        plan = load_plan(home, study, record["plan"])
        if base is None:
            base = Base(record.get("base_model"), record.get("base_optimiser"))
        if plan.base_model != base.model:
            raise ConsiliumError("E510", f"round {number} starts from {plan.base_model}, not {base.model}")
        updates = []
        for line in record["updates"]:
            site = line["site"]
            text = load_answer(home, study, record["plan"], site)
            envelope, _ = open_answer(federation, site, text, UpdateEnvelope, plan)
            check_envelope(envelope, plan, record["plan"], site)
            size = federation.member(site).declared_size
            check_tensors(exchange, envelope, expectation(home, protocol, plan, size))
            updates.append(envelope)
        if plan.kind == "histogram":
            decided = decide_threshold(home, protocol, updates, plan.noise_multiplier)
            yield Replayed(round=number, recorded=record["histogram"], recomputed=decided.digest)
            continue
        weights = {line["site"]: float(line["weight"]) for line in record["updates"]}
        base = aggregate(home, protocol, plan, record["plan"], base, updates, weights)
        assert base.model is not None
        yield Replayed(round=number, recorded=record["model"], recomputed=base.model)
