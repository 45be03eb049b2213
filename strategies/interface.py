"""What a federated algorithm is: two pure halves and a statement about privacy (design section 8)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from contracts.study import StudyProtocol

Tensors = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]

THREADS = min(4, os.cpu_count() or 1)  # numpy and hashlib leave the interpreter to others while they work
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
    """One admitted update at the coordinator: blocks of its tensors can be read any number of times.

    `bound` is the largest L2 norm that honest training of this hospital can reach, to which its update was
    held at admission. Where updates are not weighed against each other it says nothing.
    """

    site: str
    weight: float
    tensors: UpdateReader
    bound: float = 1.0


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


def spans(size: int, block: int = BLOCK) -> Iterator[slice]:
    """Yield the ranges in which a flattened tensor of so many values is read."""
    for start in range(0, size, block):
        yield slice(start, min(start + block, size))


def weighted_mean(
    updates: Sequence[Admitted], shapes: Shapes, scales: Sequence[float] | None = None
) -> Tensors:
    """Average updates in the given order, summing in float64, and return float32.

    It goes through all updates block by block, each block by itself on any core: memory is one model plus a
    block for each thread, however many sites there are, and the bytes do not depend on the threads.

    Args:
        scales: what each update is multiplied by before it is averaged; its weight stays what it is.
    """
    total_weight = sum(update.weight for update in updates)
    factors = [u.weight * scale for u, scale in zip(updates, scales or [1.0] * len(updates), strict=True)]
    mean = {name: np.empty(math.prod(shape), dtype=np.float32) for name, shape in shapes.items()}

    def average(part: tuple[str, slice]) -> None:
        name, span = part
        total = np.zeros(span.stop - span.start, dtype=np.float64)
        weighted = np.empty_like(total)
        for update, factor in zip(updates, factors, strict=True):
            np.multiply(update.tensors.read(name, span), factor, out=weighted, dtype=np.float64)
            total += weighted
        mean[name][span] = total / total_weight

    parts = [(name, span) for name, flat in mean.items() for span in spans(flat.size)]
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(average, parts))
    return {name: flat.reshape(shapes[name]) for name, flat in mean.items()}
