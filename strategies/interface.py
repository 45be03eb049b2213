"""What a federated algorithm is: two pure halves and a statement about privacy (design section 8)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from contracts.study import StudyProtocol

Tensors = dict[str, np.ndarray]


class LocalTraining(Protocol):
    """The site's trainer as a strategy sees it: optimiser steps on the site's cohort, private or not."""

    def __call__(
        self, start: Tensors, *, proximal: float = 0.0, correction: Tensors | None = None
    ) -> Tensors:
        """Train from `start` for the protocol's steps and return the parameters reached.

        Args:
            start: global state (parameters and buffers).
            proximal: weight mu of the proximal term (FedProx).
            correction: added to the gradient after privacy is applied (SCAFFOLD).
        """


@dataclass(frozen=True)
class SiteUpdate:
    """What the site's half returns: what is sent, and what stays for the next round."""

    sent: Tensors
    kept: Tensors = field(default_factory=dict)


@dataclass(frozen=True)
class Admitted:
    """One admitted update at the coordinator: blocks of its tensors can be read any number of times."""

    site: str
    weight: float
    tensors: UpdateReader


class UpdateReader(Protocol):
    """Reads an update's tensors in blocks, so that memory does not grow with the update."""

    def blocks(self, name: str) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (range in the flattened tensor, float32 values), in order."""

    def whole(self, name: str) -> np.ndarray:
        """Read one tensor."""


@dataclass(frozen=True)
class Global:
    """The global state after a round: the model, and what the coordinator's optimiser keeps."""

    model: Tensors
    optimiser: Tensors = field(default_factory=dict)


class FederatedStrategy(Protocol):
    """A federated algorithm. Both halves are pure: the same arguments give the same bytes."""

    name: str
    dp: Literal["patient", "none"]

    def site(
        self, protocol: StudyProtocol, model: Tensors, kept: Tensors, train: LocalTraining
    ) -> SiteUpdate:
        """The site's half: from the global model and the site's kept state to an update."""

    def coordinator(self, protocol: StudyProtocol, state: Global, updates: Iterable[Admitted]) -> Global:
        """The coordinator's half: from the global state and the admitted updates, in their fixed order."""

    def expected(self, protocol: StudyProtocol, model: Tensors) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the float32 tensors that an update must hold."""


def weighted_mean(updates: Iterable[Admitted], shapes: dict[str, tuple[int, ...]]) -> Tensors:
    """Average updates in the given order, block by block, in float64.

    Memory is one float64 copy of the model plus one block, however many sites there are.
    """
    total = {
        name: np.zeros(int(np.prod(shape, dtype=np.int64)), np.float64) for name, shape in shapes.items()
    }
    weight = 0.0
    for update in updates:
        weight += update.weight
        for name, accumulator in total.items():
            for span, values in update.tensors.blocks(name):
                accumulator[span] += np.multiply(values, update.weight, dtype=np.float64)
    for accumulator in total.values():
        accumulator /= weight
    return {name: accumulator.reshape(shapes[name]) for name, accumulator in total.items()}
