"""Local training: Lightning runs the steps on the hospital's own hardware, our stream makes them private."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytorch_lightning as lightning
import torch
from torch import Tensor, nn

from contracts.plan import RoundPlan
from contracts.privacy import PatientPrivacy
from contracts.study import StudyProtocol
from models.interface import ClinicalModel
from models.registry import build_model, load_state, state_of, trained_names
from privacy.dpsgd import (
    AdaptiveOptimizer,
    PatientBatches,
    PatientOptimizer,
    Patients,
    PerLayerOptimizer,
    ShuffledBatches,
    make_private_patient,
    patient_loader,
    patient_loss,
)
from privacy.gradients import PatientGradients
from privacy.stream import NoiseStream
from site_runtime.cohort import CohortArrays
from site_runtime.config import Compute
from strategies.interface import Tensors
from strategies.normalisation import class_weights


class AllLabels(nn.Module):
    """A model as training sees it: logits of all labels, float32 [..., L]."""

    def __init__(self, model: ClinicalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the label and, after it, of the auxiliary ones."""
        return self.model.all_logits(x)


class PatientTraining(lightning.LightningModule):
    """One round at one site: the sum of the patients' losses over a public batch size."""

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        divisor: float,
        class_weights: tuple[float, float] | None,
    ) -> None:
        super().__init__()
        self.network = network
        self._optimizer, self._divisor, self._class_weights = optimizer, divisor, class_weights

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], index: int) -> Tensor:
        """Return the loss of one batch: x [B, R, F], mask [B, R], y [B, R, L]; B may be 0."""
        x, mask, y = batch
        return patient_loss(self.network(x), y, mask, self._class_weights) / self._divisor

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer made beforehand, private or plain."""
        return self._optimizer


@dataclass
class SiteTrainer:
    """The `LocalTraining` that strategies call.

    Args:
        sampling: stream of the plan, purpose `sampling`; used once.
        noise: stream of the plan, purpose `noise`; used once, and only with differential privacy.
        steps: of the optimiser: those of one round, or for a local model of all.
        clip: with adaptive clipping where the clip norm stands; training moves it, and the next round starts
            from there.
    """

    protocol: StudyProtocol
    plan: RoundPlan
    cohort: CohortArrays
    declared_size: int
    compute: Compute
    sampling: NoiseStream
    noise: NoiseStream
    steps: int
    clip: float | None = None

    def __call__(self, start: Tensors) -> Tensors:
        """Train from `start` for so many steps; return the parameters reached."""
        settings, privacy = self.protocol.training, self.protocol.privacy
        model = build_model(self.protocol)
        load_state(model, start)
        plain: torch.optim.Optimizer = torch.optim.SGD(
            model.parameters(),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        network, weights, loader = AllLabels(model), class_weights(start), self._loader()
        if not isinstance(privacy, PatientPrivacy):
            fit(PatientTraining(network, plain, self._batch_size(), weights), loader, self.compute)
        else:
            private, optimizer = self._private(network, plain, privacy)
            # The private optimizer divides, after clipping.
            fit(PatientTraining(private, optimizer, 1.0, weights), loader, self.compute)
            private.detach_hooks()
            if isinstance(optimizer, AdaptiveOptimizer):
                self.clip = optimizer.clip
        reached = state_of(model.cpu())
        return {name: reached[name] for name in trained_names(model)}

    def _batch_size(self) -> float:
        """The public expected batch size, or (only without privacy) that of the cohort."""
        settings = self.protocol.training
        size = self.cohort.patients if settings.normaliser == "cohort" else self.declared_size
        return settings.sample_rate * size

    def _loader(self) -> torch.utils.data.DataLoader:
        settings, cohort = self.protocol.training, self.cohort
        labels = np.concatenate([cohort.y[..., None], cohort.auxiliary], axis=-1)
        arrays = (torch.from_numpy(np.ascontiguousarray(a)) for a in (cohort.x, cohort.mask, labels))
        sampler = PatientBatches if settings.sampling == "poisson" else ShuffledBatches
        batches = sampler(cohort.patients, settings.sample_rate, self.steps, self.sampling)
        return patient_loader(Patients(*arrays), batches)

    def _private(
        self, network: nn.Module, plain: torch.optim.Optimizer, privacy: PatientPrivacy
    ) -> tuple[PatientGradients, PatientOptimizer]:
        make: Callable[..., PatientOptimizer] = PatientOptimizer
        if privacy.clipping == "per-layer":
            make = PerLayerOptimizer
        elif privacy.clipping == "adaptive":
            start = privacy.max_grad_norm if self.clip is None else self.clip
            make = partial(AdaptiveOptimizer, quantile=privacy.quantile, start=start)
        assert self.plan.noise_multiplier is not None
        return make_private_patient(
            network,
            plain,
            noise_multiplier=self.plan.noise_multiplier,
            max_grad_norm=privacy.max_grad_norm,
            expected_batch_size=self.declared_size * self.protocol.training.sample_rate,
            stream=self.noise,
            make=make,
        )


def fit(module: lightning.LightningModule, loader: torch.utils.data.DataLoader, compute: Compute) -> None:
    """Run one pass over the loader. No logger, no checkpoint, no progress bar: nothing may tell a value."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # Libraries warn about their own deprecations, hundreds of times.
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            accelerator=compute.accelerator,
            devices=compute.devices,
            precision=compute.precision,
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            num_sanity_val_steps=0,
        )
        trainer.fit(module, loader)
