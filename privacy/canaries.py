"""Runs the real mechanism on a cohort with gradient canaries, for the audit alone (privacy/audit.py).

The adversary of the DP-SGD proof is assumed in full: they know every patient but the canaries' coins, choose
the model that each step starts from, and see every noisy mean. A gradient canary is a patient whose gradient
lies along one coordinate that nobody else has and is far longer than the clip norm: no patient can show up
more. The model stays where it is (learning rate 0), so that every step is attacked at the same place.

What is attacked is the code that trains at a hospital: `PatientBatches` draws the batches from a noise
stream, `patient_loader` reads them, and `make_private_patient` clips, adds, noises and divides. A fault, when
one is asked for, is put around that code and exists only here.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from contracts.version import CODE_VERSION
from privacy.accountant import Spend
from privacy.audit import LOUDNESS, NOISE_FACTOR, Bools, Fault, Floats
from privacy.dpsgd import (
    PatientBatches,
    PatientOptimizer,
    Patients,
    make_private_patient,
    patient_loader,
    patient_loss,
)
from privacy.stream import NoiseStream, derive_stream

ORDINARY_PATIENTS, ORDINARY_FEATURES = 200, 16


@dataclass(frozen=True)
class Observation:
    """What the adversary saw, and the coins they are to guess.

    Attributes:
        scores: float64 [canaries], in clip norms: the canary's coordinate of the noisy sum, added over steps.
        included: bool [canaries].
    """

    scores: Floats
    included: Bools


def canary_input(max_grad_norm: float) -> float:
    """Return the network input K of a canary on its own coordinate.

    At weights zero its gradient is sigmoid(0) K = K / 2 there and 1 / 2 on the intercept: at least `LOUDNESS`
    clip norms, and so large that clipping leaves practically all of the clip norm on the coordinate.
    """
    return 2.0 * LOUDNESS * max(max_grad_norm, 1.0)


def attack(
    model: nn.Module,
    weight: torch.Tensor,
    spend: Spend,
    *,
    max_grad_norm: float,
    canaries: int,
    make: Callable[..., PatientOptimizer] = PatientOptimizer,
    fault: Fault = "none",
    coins: np.random.Generator | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Observation:
    """Run every step of a study once, with canaries, and return their scores.

    Args:
        model: maps float32 [B, 1, canaries + ORDINARY_FEATURES] to logits [B, 1]; a 1 on a canary's feature
            must reach the network as `canary_input`, a 0 as 0. All its parameters are set to zero.
        weight: the parameter [1, canaries + ...] of that model which has one coordinate for every feature.
        spend: sample rate, noise multiplier and all steps of the study.
        make: the study's way of clipping.
        coins: who is included, and the ordinary patients. The auditor's own: no privacy rests on them.
        progress: called after every step.
    """
    coins = coins or np.random.default_rng()
    included = coins.random(canaries) < 0.5
    cohort = _cohort(included, coins)
    sampling, noise = _streams(fault)
    rate = 1.0 if fault == "sampling-off" else spend.sample_rate
    expected_batch_size = spend.sample_rate * (ORDINARY_PATIENTS + canaries / 2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    private, optimizer = make_private_patient(
        model,
        torch.optim.SGD(model.parameters(), lr=0.0),
        noise_multiplier=spend.noise_multiplier,
        max_grad_norm=max_grad_norm,
        expected_batch_size=expected_batch_size,
        stream=noise,
        make=make,
    )
    if fault == "clip-off":
        optimizer.clip_factors = torch.ones_like  # type: ignore[method-assign, assignment]
    seen = torch.zeros(canaries, dtype=torch.float64)
    loader = patient_loader(cohort, PatientBatches(len(cohort), rate, spend.steps, sampling))
    with one_thread():
        for x, mask, y in loader:
            optimizer.zero_grad()
            patient_loss(private(x), y, mask).backward()  # type: ignore[no-untyped-call]
            unit = optimizer.clip_norm() / expected_batch_size  # public, and moving with adaptive clipping
            optimizer.step()
            assert weight.grad is not None
            seen += weight.grad.detach()[0, :canaries].to(torch.float64) / unit
            progress()
    return Observation(seen.numpy(), included)


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: a step is short, and threads that wait for each other make it far longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _cohort(included: Bools, coins: np.random.Generator) -> Patients:
    """The included canaries and the ordinary patients, one record each, none of them with the event."""
    canaries, present = len(included), np.flatnonzero(included)
    x = np.zeros((len(present) + ORDINARY_PATIENTS, 1, canaries + ORDINARY_FEATURES), dtype=np.float32)
    x[np.arange(len(present)), 0, present] = 1.0
    x[len(present) :, 0, canaries:] = coins.uniform(-1.0, 1.0, (ORDINARY_PATIENTS, ORDINARY_FEATURES))
    mask, y = np.ones(x.shape[:2], dtype=bool), np.zeros(x.shape[:2], dtype=np.float32)
    return Patients(*(torch.from_numpy(part) for part in (x, mask, y)))


def _streams(fault: Fault) -> tuple[NoiseStream, NoiseStream]:
    """Streams for sampling and noise under a key that nobody keeps, the latter faulty if asked for."""
    key = secrets.token_bytes(32)

    def stream(purpose: str) -> NoiseStream:
        return derive_stream(key, plan="0" * 64, cohort="0" * 64, code_version=CODE_VERSION, purpose=purpose)

    noise = stream("noise")
    if fault in NOISE_FACTOR:
        noise = _Quieter(noise, NOISE_FACTOR[fault])
    return stream("sampling"), noise


class _Quieter(NoiseStream):
    """A stream whose normal draws are too small by a factor. A fault: for the audit alone."""

    def __init__(self, stream: NoiseStream, factor: float) -> None:
        self._stream, self._factor = stream, factor

    def uniform(self, n: int) -> NDArray[np.uint64]:
        """As the stream it stands for."""
        return self._stream.uniform(n)

    def normal(self, shape: int | tuple[int, ...]) -> Floats:
        """The draws of the stream it stands for, times the factor."""
        return np.asarray(self._factor * self._stream.normal(shape))
