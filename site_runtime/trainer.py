"""Local training: Lightning runs the steps on the hospital's own hardware, our stream makes them private."""

from __future__ import annotations

import logging
import tempfile
import warnings
from dataclasses import dataclass

import numpy as np
import pytorch_lightning as lightning
import torch
from torch import Tensor, nn

from contracts.plan import RoundPlan
from contracts.study import PatientPrivacy, StudyProtocol
from models.registry import build_model, load_state, parameter_names, state_of
from privacy.dpsgd import PatientBatches, Patients, make_private_patient, patient_loader, patient_loss
from privacy.stream import NoiseStream
from site_runtime.cohort import CohortArrays
from site_runtime.config import Compute
from strategies.interface import Tensors


class PatientTraining(lightning.LightningModule):
    """One round at one site: the sum of the patients' losses over a public batch size."""

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, divisor: float) -> None:
        super().__init__()
        self.network = network
        self._optimizer = optimizer
        self._divisor = divisor

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], index: int) -> Tensor:
        """Return the loss of one Poisson batch: x [B, R, F], mask [B, R], y [B, R]; B may be 0."""
        x, mask, y = batch
        return patient_loss(self.network(x), y, mask) / self._divisor

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer made beforehand, private or plain."""
        return self._optimizer


@dataclass(frozen=True)
class SiteTrainer:
    """The `LocalTraining` that strategies call.

    Args:
        sampling: stream of the plan, purpose `sampling`; used once.
        noise: stream of the plan, purpose `noise`; used once, and only with differential privacy.
    """

    protocol: StudyProtocol
    plan: RoundPlan
    cohort: CohortArrays
    declared_size: int
    compute: Compute
    sampling: NoiseStream
    noise: NoiseStream

    def __call__(self, start: Tensors) -> Tensors:
        """Train from `start` for the protocol's steps; return the parameters reached."""
        settings = self.protocol.training
        model = build_model(self.protocol)
        load_state(model, start)
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            model.parameters(),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        expected_batch = settings.sample_rate * self.declared_size
        network, divisor = model, expected_batch
        privacy = self.protocol.privacy
        if isinstance(privacy, PatientPrivacy):
            assert self.plan.noise_multiplier is not None
            network, optimizer = make_private_patient(
                model,
                optimizer,
                noise_multiplier=self.plan.noise_multiplier,
                max_grad_norm=privacy.max_grad_norm,
                expected_batch_size=expected_batch,
                stream=self.noise,
            )
            divisor = 1.0  # the private optimizer divides, after clipping
        arrays = (
            torch.from_numpy(np.ascontiguousarray(a))
            for a in (self.cohort.x, self.cohort.mask, self.cohort.y)
        )
        batches = PatientBatches(self.cohort.patients, settings.sample_rate, settings.steps, self.sampling)
        fit(
            PatientTraining(network, optimizer, divisor),
            patient_loader(Patients(*arrays), batches),
            self.compute,
        )
        reached = state_of(model.cpu())
        return {name: reached[name] for name in parameter_names(model)}


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
