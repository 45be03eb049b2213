"""What a layer keeps of one pass: rows of its input and output gradient, from which norms and sums follow.

`privacy.gradients` says why these are enough, and that norms are upper bounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Sums = dict[nn.Parameter, Tensor]

_ROUNDING = 2.0**-24  # of one float32 operation


@dataclass
class MatrixRows:
    """A layer of the form b a^T for the batch at hand.

    Attributes:
        a: float32 [B, n, I], inputs; n rows of each patient.
        b: float32 [B, n, O], gradients at the output; None until the backward pass came by.
        weights: parameters and their columns of I, in order.
        biases: parameters whose gradient is the sum of b.
    """

    a: Tensor
    weights: list[tuple[nn.Parameter, int]]
    biases: list[nn.Parameter]
    b: Tensor | None = None
    _whole: Tensor | None = None  # float64 [B, O, I], where holding it is less than n x n inner products
    _bias: Tensor | None = None  # float64 [B, O], beside it

    def of_first(self, patients: int) -> MatrixRows:
        """The same for the first patients only."""
        b = None if self.b is None else self.b[:patients]
        return MatrixRows(self.a[:patients], self.weights, self.biases, b)

    def squared_norms(self) -> Tensor:
        """Upper bounds of |G_i|^2, float64 [B]."""
        assert self.b is not None
        a, b, constants = self.a, self.b, float(len(self.biases))
        rows, width, height = a.shape[1], a.shape[2], b.shape[2]
        if rows == 1:
            return (_squared(a[:, 0]) + constants) * _squared(b[:, 0])
        if rows * (width + height) > width * height:
            self._whole = torch.bmm(b.transpose(1, 2), a).double()
            self._bias = b.sum(dim=1).double()
            return _squared(self._whole.flatten(1)) + _squared(self._bias) * constants
        if a.is_cuda:
            a, b = a.double(), b.double()  # a GPU may multiply float32 in less (TF32)
        if self.biases:  # a bias is the weight of an input that is always one
            a = torch.cat([a, torch.full_like(a[:, :, :1], math.sqrt(constants))], dim=2)
        # Each patient's rows are brought to a largest value of one: no product then underflows or overflows.
        (a, scale_a), (b, scale_b) = _scaled(a), _scaled(b)
        inner = torch.bmm(a, a.transpose(1, 2)).mul_(torch.bmm(b, b.transpose(1, 2)))
        lengths = a.square().sum(dim=2).sqrt() * b.square().sum(dim=2).sqrt()
        lost = 2.0 * _ROUNDING * (width + height + 24) * lengths.sum(dim=1, dtype=torch.float64).square()
        found = inner.sum(dim=(1, 2), dtype=torch.float64).clamp(min=0.0) + lost
        return found * (scale_a * scale_b).square()

    def weighted_sums(self, factors: Tensor) -> Sums:
        """Sum over patients of factor x gradient: float64, in the parameters' shapes; factors float64 [B]."""
        assert self.b is not None
        # A patient with factor 0 may hold infinities, which would make 0 x inf.
        used = None if bool((factors > 0.0).all()) else factors > 0.0
        factor = factors if used is None else factors[used]
        if self._whole is not None and self._bias is not None:
            product = _combined(factor, self._whole if used is None else self._whole[used])
            total = factor @ (self._bias if used is None else self._bias[used])
        else:
            a, b = (self.a, self.b) if used is None else (self.a[used], self.b[used])
            scaled = b.double().mul_(factor.view(-1, 1, 1)).flatten(0, 1)
            product, total = scaled.t() @ a.flatten(0, 1).double(), scaled.sum(dim=0)
        found: Sums = {}
        start = 0
        for parameter, columns in self.weights:
            found[parameter] = product[:, start : start + columns].reshape(parameter.shape)
            start += columns
        return found | {parameter: total for parameter in self.biases}


@dataclass
class SampledRows:
    """A layer whose gradients come from Opacus, summed over a patient's rows: float32 [B, *shape] each."""

    samples: dict[nn.Parameter, Tensor]

    def of_first(self, patients: int) -> SampledRows:
        """The same for the first patients only."""
        return SampledRows({p: g[:patients] for p, g in self.samples.items()})

    def squared_norms(self) -> Tensor:
        """|G_i|^2 over the layer's parameters, float64 [B]."""
        return torch.stack([_squared(g.flatten(1)) for g in self.samples.values()]).sum(dim=0)

    def weighted_sums(self, factors: Tensor) -> Sums:
        """Sum over patients of factor x gradient, float64; factors float64 [B]."""
        used = factors > 0.0
        return {p: _combined(factors[used], g[used]) for p, g in self.samples.items()}


def _scaled(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Divide each patient's rows [B, n, I] by their largest absolute value; also return it, float64 [B]."""
    largest = rows.abs().amax(dim=(1, 2))
    # Zero rows stay zero. With a value that is not finite the norm is NaN, and the patient counts as zero.
    safe = torch.where(largest == 0, 1.0, largest)
    # In two steps: the reciprocal of a denormal number would be infinite.
    root = safe.double().sqrt()
    return (rows / root.to(rows.dtype).view(-1, 1, 1)) / (safe.double() / root).to(rows.dtype).view(
        -1, 1, 1
    ), safe.double()


def _squared(values: Tensor) -> Tensor:
    """Squared length of each row, float64 [B]."""
    length: Tensor = torch.linalg.vector_norm(values, dim=1, dtype=torch.float64)
    return length.square()


def _combined(factors: Tensor, gradients: Tensor) -> Tensor:
    """Sum of factor x gradient over the first dimension, in float64."""
    return (factors @ gradients.flatten(1).double()).view(gradients.shape[1:])
