"""DP-SGD with the patient as the unit: Opacus' per-sample gradients, our clipping, sampling and noise.

A step (Abadi et al. 2016, arXiv:1607.00133, algorithm 1):

    every patient enters the batch with probability `rate`, independently;
    g_i = gradient of the mean loss over the records of patient i, over all parameters;
    update = (sum_i g_i min(1, C / |g_i|) + sigma C z) / (rate x declared size),    z ~ N(0, I)

The divisor is public: neither the size of the batch nor that of the cohort appears anywhere. An empty batch
takes a step of noise alone. A gradient that is not finite counts as zero, so that one patient can neither
break the sum nor be recognised by breaking it.

Opacus 1.6 works here without its PrivacyEngine, which derives rate and batch size from `len(dataset)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer import _check_processed_flag, _mark_as_processed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, Sampler

from contracts.errors import ConsiliumError
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


def patient_loader(cohort: Patients, batches: PatientBatches) -> DataLoader[Batch]:
    """Return the loader of a plan's batches. Its own generator keeps it away from torch's global one."""
    return DataLoader(cohort, batch_sampler=batches, collate_fn=_as_is, generator=torch.Generator())


def _as_is(batch: Any) -> Any:
    return batch  # `Patients.__getitems__` made a batch already


def patient_loss(logits: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Sum over patients of the mean binary cross-entropy over a patient's present records.

    Args:
        logits: float32 [B, R].
        y: float32 [B, R], 0 or 1.
        mask: bool [B, R], True where there is a record.

    A sum, because the divisor is not the batch's to choose; 0 for an empty batch.
    """
    present = torch.where(mask, logits, 0.0)
    loss = nn.functional.binary_cross_entropy_with_logits(
        present, torch.where(mask, y, 0.0), weight=mask.to(logits.dtype), reduction="none"
    )
    return (loss.sum(dim=1) / mask.sum(dim=1).clamp(min=1)).sum()


class PatientOptimizer(DPOptimizer):
    """Opacus' optimizer with clipping in float64 and noise from a `NoiseStream` alone.

    Noise is drawn for one parameter after the other, in the optimizer's order. Sum and noise are added in
    float64 and rounded once to the parameter's type.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        noise_multiplier: float,
        max_grad_norm: float,
        expected_batch_size: float,
        stream: NoiseStream,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=expected_batch_size,
            loss_reduction="mean",
        )
        self._stream = stream

    def clip_and_accumulate(self) -> None:
        """Set `p.summed_grad` (float64) to the sum of the patients' clipped gradients."""
        samples = []
        for p in self.params:
            _check_processed_flag(p.grad_sample)
            samples.append(self._get_flat_grad_sample(p).to(torch.float64))
        norm = torch.stack([g.flatten(1).square().sum(dim=1) for g in samples]).sum(dim=0).sqrt()
        finite = torch.isfinite(norm)
        factor = torch.where(finite, (self.max_grad_norm / norm).clamp(max=1.0), 0.0)
        for p, g in zip(self.params, samples, strict=True):
            clean = torch.where(finite.view(-1, *[1] * (g.dim() - 1)), g, 0.0)
            clipped = torch.einsum("i,i...->...", factor, clean)
            p.summed_grad = clipped if p.summed_grad is None else p.summed_grad + clipped
            _mark_as_processed(p.grad_sample)

    def add_noise(self) -> None:
        """Set `p.grad` to (clipped sum + noise) / expected batch size."""
        scale = self.noise_multiplier * self.max_grad_norm
        for p in self.params:
            _check_processed_flag(p.summed_grad)
            noise = torch.from_numpy(scale * self._stream.normal(tuple(p.shape))).to(p.device)
            p.grad = ((p.summed_grad.view_as(p) + noise) / self.expected_batch_size).to(p.dtype)
            _mark_as_processed(p.summed_grad)

    def scale_grad(self) -> None:
        """Nothing is left to do: `add_noise` divides before it rounds."""


def make_private_patient(
    module: nn.Module,
    optimizer: Optimizer,
    *,
    noise_multiplier: float,
    max_grad_norm: float,
    expected_batch_size: float,
    stream: NoiseStream,
) -> tuple[GradSampleModule, PatientOptimizer]:
    """Make a module and its optimizer private; patients are the first dimension of the module's input.

    The loss to call `backward` on is `patient_loss` of the returned module's output. The module goes into
    training mode by itself no more than before; `module.to_standard_module()` gives the plain module back.

    Args:
        noise_multiplier: sigma, from the plan.
        max_grad_norm: C, from the protocol.
        expected_batch_size: sample rate x declared size. Never anything computed from the cohort.
        stream: of the plan at hand, purpose `noise`.

    Raises:
        ConsiliumError: E404, a layer couples patients or keeps statistics of them.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) or (
            isinstance(layer, _NormBase) and layer.track_running_stats
        ):
            kind = type(layer).__name__
            raise ConsiliumError("E404", f"layer {name or 'module'!r} is {kind}, expected GroupNorm or none")
    try:
        private = GradSampleModule(module, batch_first=True, loss_reduction="sum", strict=True)
    except NotImplementedError as error:
        raise ConsiliumError("E404", str(error)) from error
    private.forbid_grad_accumulation()
    return private, PatientOptimizer(
        optimizer,
        noise_multiplier=noise_multiplier,
        max_grad_norm=max_grad_norm,
        expected_batch_size=expected_batch_size,
        stream=stream,
    )
