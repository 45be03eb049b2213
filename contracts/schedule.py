"""Which exchange of a study is which: the one place that says what number N is.

In order: `statistics` (number 0, where normalisation is federated), `training` 1 .. rounds, `histogram`
(where a rule finds the decision threshold), `local` (where each hospital trains a model of its own), and for
leave-one-site-out every round of training again for each hospital that is left out, one hospital after the
other in the order of their names. Coordinator and hospitals count alike; only the coordinator's head knows
who the hospitals of the folds are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from contracts.study import StudyProtocol

Kind = Literal["statistics", "training", "histogram", "local"]
Purpose = Literal["statistics", "training", "histogram", "local", "fold"]

SITE_RETRIES = 1  # of a hospital's task, after its worker died
INTAKE_SECONDS = 600  # reading the source and its quality checks take their time, whatever the rounds take


@dataclass(frozen=True)
class Slot:
    """One planned exchange.

    Attributes:
        number: of the exchange over the whole study: what its plan calls `round`.
        purpose: what it is for; `fold` is a training round of leave-one-site-out.
        round: rounds of training that its own model has when it is closed.
        fold: which of the folds, from 0; None for every other exchange.
    """

    number: int
    purpose: Purpose
    round: int
    fold: int | None = None

    @property
    def kind(self) -> Kind:
        """The kind of its plan."""
        return "training" if self.purpose == "fold" else self.purpose


def last_before_folds(protocol: StudyProtocol) -> int:
    """Number of the last exchange that every hospital takes part in."""
    return protocol.rounds + (protocol.threshold_rule is not None) + protocol.validation.local_model


def last_exchange(protocol: StudyProtocol, folds: int) -> int:
    """Number of the study's last exchange with so many folds."""
    return last_before_folds(protocol) + folds * protocol.rounds


def most_folds(protocol: StudyProtocol) -> int:
    """How many hospitals may be left out at most, which is also how many may take part; 0 without folds."""
    return protocol.validation.leave_one_site_out or 0


def most_exchanges(protocol: StudyProtocol) -> int:
    """How many exchanges a study has at most."""
    return last_exchange(protocol, most_folds(protocol)) + 1 - protocol.first_round


def slot_at(protocol: StudyProtocol, number: int) -> Slot | None:
    """Return the exchange of this number; None when the protocol plans none."""
    rounds, before_folds = protocol.rounds, last_before_folds(protocol)
    if not protocol.first_round <= number <= last_exchange(protocol, most_folds(protocol)):
        return None
    if number == 0:
        return Slot(0, "statistics", 0)
    if number <= rounds:
        return Slot(number, "training", number)
    if number > before_folds:
        fold, done = divmod(number - before_folds - 1, rounds)
        return Slot(number, "fold", done + 1, fold)
    histogram = number == rounds + 1 and protocol.threshold_rule is not None
    return Slot(number, "histogram" if histogram else "local", rounds)


def slots(protocol: StudyProtocol, folds: int) -> Iterator[Slot]:
    """Yield every exchange of a study with so many folds, in order."""
    for number in range(protocol.first_round, last_exchange(protocol, folds) + 1):
        slot = slot_at(protocol, number)
        assert slot is not None
        yield slot


def title_of(protocol: StudyProtocol, number: int, left_out: Sequence[str] = ()) -> str:
    """Name an exchange for people.

    Args:
        left_out: the hospitals of the folds, in order, as the head has frozen them.
    """
    slot = slot_at(protocol, number)
    if slot is None or slot.purpose in ("statistics", "training"):
        return f"round {number} of {protocol.rounds}"
    if slot.fold is None:
        return "decision threshold" if slot.purpose == "histogram" else "local models"
    name = left_out[slot.fold] if slot.fold < len(left_out) else "a hospital"
    return f"without {name}: round {slot.round} of {protocol.rounds}"


def deadline_of(protocol: StudyProtocol, purpose: str) -> int:
    """Seconds that one hospital's task has; the local model takes as long as all rounds together."""
    return protocol.deadline_seconds * (protocol.rounds if purpose == "local" else 1)


def longest_deadline(protocol: StudyProtocol) -> int:
    """Seconds that a hospital's task for an exchange may take at most, whichever it is."""
    return deadline_of(protocol, "local" if protocol.validation.local_model else "training")


def task_seconds(protocol: StudyProtocol, task: str) -> int:
    """Seconds that a hospital's task called `task` (`intake`, `train`, `evaluate`, ...) may take at most."""
    if task == "intake":
        return max(protocol.deadline_seconds, INTAKE_SECONDS)
    return longest_deadline(protocol) if task == "train" else protocol.deadline_seconds
