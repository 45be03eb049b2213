"""DP-SGD with the patient as the unit: our gradients, clipping, sampling and noise around Opacus' optimizer.

A step (Abadi et al. 2016, arXiv:1607.00133, algorithm 1):

    every patient enters the batch with probability `rate`, independently;
    g_i = gradient of the mean loss over the records of patient i, over all parameters;
    update = (sum_i g_i min(1, C / |g_i|) + sigma C z) / (rate x declared size),    z ~ N(0, I)

The divisor is public: neither the size of the batch nor that of the cohort appears anywhere. An empty batch
takes a step of noise alone. A gradient that is not finite counts as zero, so that one patient can neither
break the sum nor be recognised by breaking it.

Opacus 1.6's PrivacyEngine is not used: it derives rate and batch size from `len(dataset)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, Sampler

from contracts.privacy import Quantile
from privacy.gradients import PatientGradients
from privacy.quantile import followed, split_noise
from privacy.stream import NoiseStream

Batch = tuple[Tensor, Tensor, Tensor]


class PatientBatches(Sampler[list[int]]):
    """Poisson batches of patient indices, one per step; some may be empty. To be passed over once.

    Args:
        n_patients: patients of the cohort.
        rate: probability of a patient to be in a batch, from the protocol.
        steps: number of batches, from the protocol.
        stream: of the plan at hand, purpose `sampling`.
    """

    def __init__(self, n_patients: int, rate: float, steps: int, stream: NoiseStream) -> None:
        self._n_patients, self._rate, self._steps = n_patients, rate, steps
        self._stream: NoiseStream | None = stream

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[list[int]]:
        stream, self._stream = self._stream, None
        if stream is None:
            raise RuntimeError("the batches of a plan are drawn once: one plan, one noise stream")
        for _ in range(self._steps):
            yield np.flatnonzero(stream.bernoulli(self._n_patients, self._rate)).tolist()


class Patients(Dataset[Batch]):
    """A cohort as tensors: x float32 [P, R, F], mask bool [P, R], y float32 [P, R]."""

    def __init__(self, x: Tensor, mask: Tensor, y: Tensor) -> None:
        self._parts = (x, mask, y)

    def __len__(self) -> int:
        return len(self._parts[0])

    def __getitem__(self, patient: int) -> Batch:
        return self.__getitems__([patient])

    def __getitems__(self, patients: list[int]) -> Batch:
        """Return x [B, R, F], mask [B, R], y [B, R] of the listed patients; B may be 0."""
        index = torch.tensor(patients, dtype=torch.long)
        x, mask, y = self._parts
        return x[index], mask[index], y[index]


def patient_loader(cohort: Patients, batches: Sampler[list[int]]) -> DataLoader[Batch]:
    """Return the loader of a plan's batches. Its own generator keeps it away from torch's global one."""
    return DataLoader(cohort, batch_sampler=batches, collate_fn=_as_is, generator=torch.Generator())


def _as_is(batch: Any) -> Any:
    return batch  # `Patients.__getitems__` made a batch already


def patient_loss(
    logits: Tensor, y: Tensor, mask: Tensor, class_weights: tuple[float, float] | None = None
) -> Tensor:
    """Sum over patients of the mean binary cross-entropy over a patient's present records.

    Args:
        logits: float32 [B, R], or [B, R, L] for L labels.
        y: float32 of the same shape, 0 or 1; NaN where a label is unknown, which then costs nothing.
        mask: bool [B, R], True where there is a record.
        class_weights: public weights of the classes 0 and 1.

    A sum, because the divisor is not the batch's to choose; 0 for an empty batch. Of several labels the mean
    counts, over all L whether known or not.
    """
    present = mask.view(*mask.shape, *[1] * (logits.dim() - mask.dim())) & ~torch.isnan(y)
    target = torch.where(present, y, 0.0)
    weight = present.to(logits.dtype)
    if class_weights is not None:
        weight = weight * torch.where(target > 0.5, class_weights[1], class_weights[0])
    loss = nn.functional.binary_cross_entropy_with_logits(
        torch.where(present, logits, 0.0), target, weight=weight, reduction="none"
    )
    records = loss.flatten(mask.dim()).mean(dim=-1) if logits.dim() > mask.dim() else loss
    return (records.sum(dim=1) / mask.sum(dim=1).clamp(min=1)).sum()


class PatientOptimizer(DPOptimizer):
    """Opacus' optimizer with clipping in float64 and noise from a `NoiseStream` alone.

    Noise is drawn for one parameter after the other, in the model's order. Sum and noise are added in float64
    and rounded once to the parameter's type.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        gradients: PatientGradients,
        *,
        noise_multiplier: float,
        max_grad_norm: float,
        expected_batch_size: float,
        stream: NoiseStream,
    ) -> None:
        self.gradients = gradients
        self._sums: dict[nn.Parameter, Tensor] = {}
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=expected_batch_size,
            loss_reduction="mean",
        )
        self._stream = stream

    @property
    def params(self) -> list[nn.Parameter]:
        """The trained parameters, which ask for no gradient of their own (see `PatientGradients`)."""
        return self.gradients.trained

    def clip_factors(self, norms: Tensor) -> Tensor:
        """Return min(1, C / norm), and 0 for a norm that is not finite; float64 [B] -> float64 [B]."""
        factors = (self.clip_norm() / norms.clamp(min=1e-300)).clamp(max=1.0)
        return torch.where(torch.isfinite(norms), factors, 0.0)

    def clip_norm(self) -> float:
        """C of the step at hand."""
        return float(self.max_grad_norm)

    def clip_and_accumulate(self) -> None:
        """Sum the patients' clipped gradients, in float64."""
        self._sums = {}
        layers = self.gradients.layers()
        if layers:
            squares = torch.stack([layer.squared_norms() for layer in layers])
            for layer, factors in zip(layers, self.layer_factors(squares), strict=True):
                self._sums |= layer.weighted_sums(factors)
        self.gradients.clear()

    def layer_factors(self, squares: Tensor) -> list[Tensor]:
        """Clip factors of each layer from the squared norms of its gradients, float64 [layers, B]."""
        return [self.clip_factors(squares.sum(dim=0).sqrt())] * len(squares)

    def add_noise(self) -> None:
        """Set `p.grad` to (clipped sum + noise) / expected batch size."""
        scale = self.noise_scale()
        for p in self.params:
            noisy = torch.from_numpy(scale * self._stream.normal(tuple(p.shape))).to(p.device)
            if p in self._sums:
                noisy += self._sums[p]
            p.grad = noisy.div_(self.expected_batch_size).to(p.dtype)

    def noise_scale(self) -> float:
        """Standard deviation of the noise on each entry of the sum."""
        return float(self.noise_multiplier) * self.clip_norm()

    def pre_step(self, closure: Callable[[], float] | None = None) -> bool:
        """Turn what the backward pass kept into the noisy mean. An empty batch is a step like any other."""
        self.clip_and_accumulate()
        self.add_noise()
        return True

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the last step's gradients."""
        for p in self.params:
            p.grad = None


class PerLayerOptimizer(PatientOptimizer):
    """Clips the gradient of each of k layers to C / sqrt(k): together they are within C again.

    (McMahan et al. 2018, arXiv:1710.06963, section 3.2.)
    """

    def layer_factors(self, squares: Tensor) -> list[Tensor]:
        """Each layer's own factors; a patient with any norm that is not finite counts as zero everywhere."""
        finite = torch.isfinite(squares.sum(dim=0))
        parts = math.sqrt(self.gradients.layer_count)
        return [torch.where(finite, self.clip_factors(layer.sqrt() * parts), 0.0) for layer in squares]


class AdaptiveOptimizer(PatientOptimizer):
    """Lets C follow a quantile of the patients' gradient norms (see `contracts.privacy.Quantile`).

    Sum and count of one step are one Gaussian release of the plan's noise (see `privacy.quantile`).
    The count is divided by the public expected batch size.

    Args:
        start: C of the first step: what the round before ended with, or the protocol's clip norm.
    """

    def __init__(self, *arguments: Any, quantile: Quantile, start: float, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._quantile = quantile
        self.clip = min(start, float(self.max_grad_norm))
        self._within = 0.0

    def clip_norm(self) -> float:
        """C of the step at hand."""
        return self.clip

    def layer_factors(self, squares: Tensor) -> list[Tensor]:
        """Count who is within C before clipping."""
        norms = squares.sum(dim=0).sqrt()
        self._within = float(torch.where(norms <= self.clip, 0.5, -0.5).sum())
        return super().layer_factors(squares)

    def noise_scale(self) -> float:
        """The sum's share of the noise."""
        return split_noise(float(self.noise_multiplier), self._quantile.share)[0] * self.clip

    def add_noise(self) -> None:
        """Noise the sum, then the count, and move C for the next step."""
        super().add_noise()
        _, noise = split_noise(float(self.noise_multiplier), self._quantile.share)
        noisy = self._within + noise * float(self._stream.normal(1)[0])
        self._within = 0.0  # an empty batch counts nobody
        within = 0.5 + noisy / float(self.expected_batch_size)
        self.clip = followed(self.clip, within, self._quantile, float(self.max_grad_norm))


class ShuffledBatches(Sampler[list[int]]):
    """Batches of equal size by random reshuffling, for training without differential privacy only.

    Args: as `PatientBatches`; a batch holds rate x n patients, at least one.
    """

    def __init__(self, n_patients: int, rate: float, steps: int, stream: NoiseStream) -> None:
        self._n_patients, self._steps, self._stream = n_patients, steps, stream
        self._size = max(1, round(rate * n_patients))

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[list[int]]:
        waiting: list[int] = []
        for _ in range(self._steps):
            while len(waiting) < self._size:
                waiting += np.argsort(self._stream.uniform(self._n_patients)).tolist()
            yield waiting[: self._size]
            del waiting[: self._size]


def make_private_patient(
    module: nn.Module,
    optimizer: Optimizer,
    *,
    noise_multiplier: float,
    max_grad_norm: float,
    expected_batch_size: float,
    stream: NoiseStream,
    make: Callable[..., PatientOptimizer] = PatientOptimizer,
) -> tuple[PatientGradients, PatientOptimizer]:
    """Make a module and its optimizer private; patients are the first dimension of the module's input.

    The loss to call `backward` on is `patient_loss` of the returned module's output; `detach_hooks()` of that
    module gives the plain one back.

    Args:
        noise_multiplier: sigma, from the plan.
        max_grad_norm: C, from the protocol.
        expected_batch_size: sample rate x declared size. Never anything computed from the cohort.
        stream: of the plan at hand, purpose `noise`.
        make: which way of clipping.

    Raises:
        ConsiliumError: E404, a layer couples patients, keeps statistics of them, or has no known gradient.
    """
    private = PatientGradients(module)
    return private, make(
        optimizer,
        private,
        noise_multiplier=noise_multiplier,
        max_grad_norm=max_grad_norm,
        expected_batch_size=expected_batch_size,
        stream=stream,
    )
