"""What a federated algorithm is: two pure halves and a statement about privacy (design section 8)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from contracts.study import StudyProtocol

Tensors = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]

BLOCK = 1 << 17  # values that aggregation reads at once: float32 and float64 copies fit a cache


class LocalTraining(Protocol):
    """The site's trainer as a strategy sees it: optimiser steps on the site's cohort, private or not."""

    def __call__(self, start: Tensors) -> Tensors:
        """Train from the global state `start` for the protocol's steps; return the parameters reached."""


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
    """Reads an update's tensors piece by piece, so that memory does not grow with update or sites."""

    def read(self, name: str, span: slice) -> np.ndarray:
        """Read a range of the flattened tensor as float32."""

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

    def coordinator(self, protocol: StudyProtocol, state: Global, updates: Sequence[Admitted]) -> Global:
        """The coordinator's half: from the global state and the admitted updates, in their fixed order."""

    def expected(self, protocol: StudyProtocol, model: Shapes) -> Shapes:
        """Names and shapes of the float32 tensors that an update must hold, for a model of these shapes."""


def shapes_of(tensors: Tensors) -> Shapes:
    """Names and shapes of some tensors."""
    return {name: array.shape for name, array in tensors.items()}


def weighted_mean(updates: Sequence[Admitted], shapes: Shapes) -> Tensors:
    """Average updates in the given order, summing in float64, and return float32.

    It goes through all updates block by block: memory is one model plus one block, however many sites
    there are.
    """
    total_weight = sum(update.weight for update in updates)
    mean = {}
    for name, shape in shapes.items():
        flat = np.empty(math.prod(shape), dtype=np.float32)
        for start in range(0, flat.size, BLOCK):
            span = slice(start, min(start + BLOCK, flat.size))
            total = np.zeros(span.stop - span.start, dtype=np.float64)
            for update in updates:
                total += np.multiply(update.tensors.read(name, span), update.weight, dtype=np.float64)
            flat[span] = total / total_weight
        mean[name] = flat.reshape(shape)
    return mean
