"""Updates in memory, as a strategy's coordinator half reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from strategies.interface import Admitted, Shapes, Tensors

SHAPES: Shapes = {"a": (3, 4), "b": (5,)}
SIZE = 17
NAMES = ("ash", "birch", "cedar", "elm", "hazel", "oak", "rowan")


class Held:
    """Reads values [size] as the tensors of some shapes."""

    def __init__(self, values: np.ndarray, shapes: Shapes) -> None:
        ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
        self.tensors = dict(zip(shapes, np.split(values.astype(np.float32), ends[:-1]), strict=True))

    def read(self, name: str, span: slice) -> np.ndarray:
        return self.tensors[name][span]

    def whole(self, name: str) -> np.ndarray:
        return self.tensors[name]


def admitted(
    values: np.ndarray,
    weights: Sequence[float] | None = None,
    bounds: Sequence[float] | None = None,
    shapes: Shapes = SHAPES,
) -> list[Admitted]:
    """One update for each row of values [sites, size]."""
    n = len(values)
    rows = zip(NAMES[:n], weights or [1.0] * n, values, bounds or [1.0] * n, strict=True)
    return [Admitted(site, weight, Held(row, shapes), bound) for site, weight, row, bound in rows]


def flat(tensors: Tensors) -> np.ndarray:
    """All values of some tensors in their order."""
    return np.concatenate([array.reshape(-1) for array in tensors.values()])
