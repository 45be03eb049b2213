"""Who takes part in an exchange, from which state it starts, and what it changes in the head: of the released
model's rounds, of local models, and of the folds of leave-one-site-out.

The hospitals of the folds are those admitted in the last round of training, frozen in the head when it
closes. A fold is trained as the model was, by all of them but one. It starts from the same initial model;
normalisation statistics are summed anew from the updates of round 0 without the hospital's own, which is
post-processing of what had left and costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from contracts.schedule import Slot, last_exchange, most_folds, slot_at
from contracts.study import StudyProtocol
from strategies.interface import Admitted
from strategies.normalisation import normalised_start
from strategies.robust import fewest_updates
from strategies.secure import is_masked, least_sites
from tasks.aggregate import Base
from tasks.exchange import DirectoryExchange
from tasks.head import Head, load_head
from tasks.home import CoordinatorHome
from tasks.store import load_record, put_tensors
from tasks.tensors import TensorFile


def slot_of(protocol: StudyProtocol, number: int) -> Slot:
    """Return the exchange of a number that the head has reached."""
    slot = slot_at(protocol, number)
    assert slot is not None, f"exchange {number} is not in the schedule"
    return slot


def frozen_sites(protocol: StudyProtocol, admitted: Sequence[str]) -> list[str]:
    """Return who is left out in turn, given who was admitted in the last round of training.

    Nobody where the protocol plans no folds, or where without one hospital nobody would be left.
    """
    return sorted(admitted) if most_folds(protocol) and len(admitted) > 1 else []


def left_out(slot: Slot, fold_sites: Sequence[str]) -> str | None:
    """Return the hospital that has no part in an exchange; None when it is no fold."""
    return None if slot.fold is None else fold_sites[slot.fold]


def invited(slot: Slot, fold_sites: Sequence[str], sites: set[str]) -> set[str]:
    """Return who of these sites an exchange asks: in a fold the frozen hospitals but one, else everybody."""
    fold = left_out(slot, fold_sites)
    return sites if fold is None else (sites & set(fold_sites)) - {fold}


def minimum_sites(protocol: StudyProtocol, slot: Slot) -> int:
    """How many hospitals the protocol asks for: in a fold one fewer than elsewhere, and at least one."""
    if is_masked(protocol, slot.kind):
        return least_sites(protocol, slot.fold is not None)
    return protocol.min_sites if slot.fold is None else max(protocol.min_sites - 1, 1)


def comparable(protocol: StudyProtocol, slot: Slot) -> int:
    """How many hospitals robust aggregation needs; in round 0 as well, or what that spends would be lost."""
    trains = slot.purpose in ("statistics", "training", "fold")
    return fewest_updates(protocol.strategy.aggregation) if trains else 1


def quorum(protocol: StudyProtocol, slot: Slot) -> int:
    """How many hospitals an exchange needs."""
    return max(minimum_sites(protocol, slot), comparable(protocol, slot))


def base_of(home: CoordinatorHome, protocol: StudyProtocol, head: Head, slot: Slot) -> Base:
    """Return what an exchange starts from.

    A local model starts where the first round of training did, the first round of a fold from the state
    without its hospital, and every later one from the round before.
    """
    if slot.purpose == "local":
        return Base(load_record(home, protocol.study, "1")["base_model"], None)
    fold = left_out(slot, head.fold_sites)
    if fold is None:
        first = head.model is None and slot.number == 1
        return Base(initial_model(home, protocol) if first else head.model, head.optimiser)
    if slot.round == 1:
        return Base(fold_start(home, protocol, fold), None)
    before = load_record(home, protocol.study, str(slot.number - 1))
    return Base(before["model"], before["optimiser"])


def initial_model(home: CoordinatorHome, protocol: StudyProtocol) -> str:
    """Store the first global model of a study without federated statistics."""
    from models.registry import initial_state  # torch: only here, so that every other exchange starts fast

    return put_tensors(home, initial_state(protocol))


def exchange_records(home: CoordinatorHome, protocol: StudyProtocol) -> list[dict[str, Any]]:
    """Return the records of all exchanges of a study whose training is finished, folds and all, in order."""
    last = last_exchange(protocol, len(load_head(home, protocol.study).fold_sites))
    return [load_record(home, protocol.study, str(n)) for n in range(protocol.first_round, last + 1)]


def fold_start(home: CoordinatorHome, protocol: StudyProtocol, fold: str) -> str:
    """Store the state that the model without hospital `fold` starts from, and return its digest.

    Deterministic: a function of the protocol and of the updates of round 0.
    """
    from models.registry import initial_state

    state = initial_state(protocol)
    if protocol.first_round == 0:
        record, exchange = load_record(home, protocol.study, "0"), DirectoryExchange(home.exchange)
        others = [
            Admitted(line["site"], 1.0, TensorFile(exchange.path_of(line["tensors"])))
            for line in sorted(record["updates"], key=lambda line: line["site"])
            if line["site"] != fold
        ]
        state = normalised_start(protocol, state, others, record["noise_multiplier"])
    return put_tensors(home, state)


def made_of(protocol: StudyProtocol, head: Head, slot: Slot, record: dict[str, Any]) -> dict[str, Any]:
    """What a closed exchange changes in the head beside its number.

    The model, its optimiser and its threshold are those of the main training: local models are the
    hospitals', and a fold gives its last model alone.
    """
    if slot.purpose == "fold":
        fold = left_out(slot, head.fold_sites)
        return {"folds": {**head.folds, fold: record["model"]}} if slot.round == protocol.rounds else {}
    if slot.purpose == "local":
        return {}
    if slot.purpose == "histogram":
        return {"threshold": record.get("threshold", {}).get("value")}
    result = {"model": record["model"], "optimiser": record["optimiser"]}
    if slot.number == protocol.rounds:
        # A lost round has admitted nobody: then those that it expected.
        result["fold_sites"] = frozen_sites(protocol, record["admitted"] or record["expected"])
    return result
