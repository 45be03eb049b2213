"""Samples per second of DP-SGD: ours against plain Lightning, Opacus' hooks and Opacus' ghost clipping.

Run: .venv/bin/python benchmarks/dpsgd.py [--batch 256] [--rounds 5] [--threads 1]

Every side trains the same network on the same batches through `lightning.Trainer`, with one optimiser step a
batch; the sides take turns. The reference is Opacus' hooks (`grad_sample_mode="hooks"`, DPLSTM for the LSTM),
whose ratio is 1. Goal: at least 1 for every model, and more than 1 for the LSTM.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import pytorch_lightning as lightning
import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.layers import DPLSTM
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import Tensor, nn

from privacy.dpsgd import make_private_patient
from privacy.stream import NoiseStream

SIGMA, CLIP, RATE = 1.0, 1.0, 0.1


class Recurrent(nn.Module):
    """48 hours of 40 measurements, hidden size 64, the last state's logit."""

    def __init__(self, layer: type[nn.Module]) -> None:
        super().__init__()
        self.lstm, self.head = layer(40, 64, batch_first=True), nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 1] of x [B, 48, 40]."""
        logits: Tensor = self.head(self.lstm(x)[0][:, -1])
        return logits


def mlp() -> nn.Module:
    """40-128-64-1."""
    return nn.Sequential(nn.Linear(40, 128), nn.Tanh(), nn.Linear(128, 64), nn.Tanh(), nn.Linear(64, 1))


def cnn() -> nn.Module:
    """28 x 28, two convolutions with GroupNorm."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.GroupNorm(4, 16), nn.Tanh()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.GroupNorm(4, 32), nn.Tanh()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 1)),
    )


MODELS: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    # name: shape of a sample, the plain network, the network that Opacus can take
    "mlp 40-128-64-1": ((40,), mlp, mlp),
    "lstm 48 x 40, hidden 64": ((48, 40), lambda: Recurrent(nn.LSTM), lambda: Recurrent(DPLSTM)),
    "cnn 28 x 28, GroupNorm": ((1, 28, 28), cnn, cnn),
}


class Steps(lightning.LightningModule):
    """One side: what it does with a batch, and nothing else."""

    def __init__(self, step: Callable[[Tensor, Tensor], None], module: nn.Module) -> None:
        super().__init__()
        self.module, self._step = module, step
        self.automatic_optimization = False  # ghost clipping has a backward pass of its own

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """One optimiser step."""
        self._step(*batch)

    def configure_optimizers(self) -> None:
        """The step has its own."""


def loss_of(logits: Tensor, y: Tensor, reduction: str = "sum") -> Tensor:
    """Binary cross-entropy of logits [B, 1]."""
    return nn.functional.binary_cross_entropy_with_logits(logits.squeeze(-1), y, reduction=reduction)


def plain(network: nn.Module, batch: int) -> tuple[Callable[[Tensor, Tensor], None], nn.Module]:
    """SGD without privacy."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        loss_of(network(x), y, "mean").backward()
        optimizer.step()

    return step, network


def ours(network: nn.Module, batch: int) -> tuple[Callable[[Tensor, Tensor], None], nn.Module]:
    """Per-patient gradients by book-keeping, noise from ChaCha20."""
    private, optimizer = make_private_patient(
        network,
        torch.optim.SGD(network.parameters(), lr=0.01),
        noise_multiplier=SIGMA,
        max_grad_norm=CLIP,
        expected_batch_size=batch,
        stream=NoiseStream(bytes(32)),
    )

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        loss_of(private(x), y).backward()
        optimizer.step()

    return step, private


def hooks(network: nn.Module, batch: int) -> tuple[Callable[[Tensor, Tensor], None], nn.Module]:
    """Opacus' default: a gradient per sample, held in memory."""
    private = GradSampleModule(network, loss_reduction="sum")
    optimizer = DPOptimizer(
        torch.optim.SGD(network.parameters(), lr=0.01),
        noise_multiplier=SIGMA,
        max_grad_norm=CLIP,
        expected_batch_size=batch,
    )

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        loss_of(private(x), y).backward()
        optimizer.step()

    return step, private


def ghost(network: nn.Module, batch: int) -> tuple[Callable[[Tensor, Tensor], None], nn.Module]:
    """Opacus' ghost clipping: norms in a first backward pass, the clipped sum in a second."""
    private = GradSampleModuleFastGradientClipping(
        network, loss_reduction="sum", max_grad_norm=CLIP, use_ghost_clipping=True
    )
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD(network.parameters(), lr=0.01),
        noise_multiplier=SIGMA,
        max_grad_norm=CLIP,
        expected_batch_size=batch,
        loss_reduction="sum",
    )
    criterion = DPLossFastGradientClipping(
        private, optimizer, nn.BCEWithLogitsLoss(reduction="sum"), loss_reduction="sum"
    )

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        criterion(private(x), y[:, None]).backward()
        optimizer.step()

    return step, private


SIDES = {"plain Lightning": plain, "Opacus hooks": hooks, "Opacus ghost": ghost, "ours": ours}


def seconds(side: str, model: str, batch: int, steps: int) -> float:
    """Seconds of `steps` steps in a Lightning fit, its start and the first steps left out."""
    shape, network, for_opacus = MODELS[model]
    made = for_opacus() if side.startswith("Opacus") else network()
    step, module = SIDES[side](made, batch)
    draw = np.random.default_rng(0)
    x = torch.from_numpy(draw.standard_normal((batch, *shape), dtype=np.float32))
    y = torch.from_numpy((draw.random(batch) < 0.5).astype(np.float32))
    ends: list[float] = []

    def timed(x: Tensor, y: Tensor) -> None:
        step(x, y)
        ends.append(time.perf_counter())

    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Steps(timed, module), torch.utils.data.DataLoader([(x, y)] * (steps + 3), batch_size=None))
    return ends[-1] - ends[2]


def main() -> None:
    """Compare all sides, model by model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    print(f"batch {given.batch}, {given.threads} threads, load {os.getloadavg()[0]:.1f}")
    for model in MODELS:
        times: dict[str, list[float]] = {side: [] for side in SIDES}
        for _ in range(given.rounds):
            for side in SIDES:
                with warnings.catch_warnings(), contextlib.suppress(NotImplementedError):
                    warnings.simplefilter("ignore")
                    times[side].append(seconds(side, model, given.batch, given.steps))
        reference = statistics.median(times["Opacus hooks"])
        print(model)
        for side, found in times.items():
            if not found:
                print(f"  {side:16} not possible")
                continue
            median = statistics.median(found)
            rate = given.batch * given.steps / median
            print(f"  {side:16} {rate:12,.0f} samples/s   ratio to hooks {reference / median:5.2f}")


if __name__ == "__main__":
    main()
