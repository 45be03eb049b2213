"""Runs the real mechanism on a cohort with gradient canaries, for the audit alone (privacy/audit.py).

The adversary of the DP-SGD proof is assumed in full: they know every patient but the canaries' coins, choose
the model that each step starts from, and see every noisy mean. A gradient canary is a patient whose gradient
lies along a direction of the first layer that nobody else has, and is far longer than the clip norm: no
patient can show up more. The model stays where it is (learning rate 0), so that every step is attacked at the
same place.

What is attacked is code that trains at a hospital: `PatientBatches` draws the batches from a noise stream,
`patient_loader` reads them, and `make_private_patient` clips, adds, noises and divides. A fault, when one is
asked for, is put around that code and exists only here.
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
from privacy.audit import NOISE_FACTOR, AttackPath, Bools, Fault, Floats
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
        scores: float64 [canaries], in clip norms: the noisy sum along the canary's own direction, added over
            steps. What canaries share (the layers behind) is left out: it is the same for all of them.
        included: bool [canaries].
    """

    scores: Floats
    included: Bools


@dataclass(frozen=True)
class Target:
    """A model that keeps canaries apart in one layer, made ready to be attacked.

    Canary i is a patient all of whose records have a 1 as feature i and 0 elsewhere. It moves column
    i // kinds of the layer in the way of its kind, i % kinds, and no other patient moves what it moves.

    Attributes:
        path: its name.
        model: maps float32 [B, records, canaries + ORDINARY_FEATURES] to logits [B, records].
        name, weight: of the layer's parameter [outputs, columns, ...]; 0 everywhere, so that what a canary
            does to the model does not depend on how loud it is.
        directions: float64 [kinds, outputs, taps], the canaries' own gradients there, each of length 1.
        canaries: how many features are canaries'; the rest is the ordinary patients'.
        records: of every patient.
        layers: of the model that have parameters: into so many parts per-layer clipping divides.
    """

    path: AttackPath
    model: nn.Module
    name: str
    weight: nn.Parameter
    directions: torch.Tensor
    canaries: int
    records: int
    layers: int


def own_gradients(
    model: nn.Module, weight: nn.Parameter, *, features: int, records: int, kinds: int
) -> torch.Tensor:
    """Gradients of one canary of each kind at `weight`, float64 [kinds, outputs, taps].

    By plain autograd of the canary alone: nothing of the code under attack decides what is looked for.
    """
    found = []
    for kind in range(kinds):
        x = torch.zeros(1, records, features)
        x[..., kind] = 1.0
        loss = nn.functional.softplus(model(x)).mean()  # cross-entropy of patients without the event
        (gradient,) = torch.autograd.grad(loss, weight)
        found.append(_columns(gradient)[:, 0])
    return torch.stack(found)


def _columns(weight: torch.Tensor) -> torch.Tensor:
    """[outputs, columns, ...] of a layer as float64 [outputs, columns, taps]."""
    return weight.detach().to(torch.float64).reshape(*weight.shape[:2], -1)


def attack(
    target: Target,
    spend: Spend,
    *,
    max_grad_norm: float,
    make: Callable[..., PatientOptimizer] = PatientOptimizer,
    fault: Fault = "none",
    coins: np.random.Generator | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Observation:
    """Run every step of a study once, with canaries, and return their scores.

    Args:
        target: not attacked before: its model is taken over.
        spend: sample rate, noise multiplier and all steps of the study.
        make: the study's way of clipping.
        coins: who is included, and the ordinary patients. The auditor's own: no privacy rests on them.
        progress: called after every step.
    """
    coins = coins or np.random.default_rng()
    included = coins.random(target.canaries) < 0.5
    cohort = _cohort(included, target.records, coins)
    sampling, noise = _streams(fault)
    rate = 1.0 if fault == "sampling-off" else spend.sample_rate
    expected_batch_size = spend.sample_rate * (ORDINARY_PATIENTS + target.canaries / 2)
    private, optimizer = make_private_patient(
        target.model,
        torch.optim.SGD(target.model.parameters(), lr=0.0),
        noise_multiplier=spend.noise_multiplier,
        max_grad_norm=max_grad_norm,
        expected_batch_size=expected_batch_size,
        stream=noise,
        make=make,
    )
    if fault == "clip-off":
        optimizer.clip_factors = torch.ones_like  # type: ignore[method-assign, assignment]
    seen = torch.zeros_like(_columns(target.weight))
    loader = patient_loader(cohort, PatientBatches(len(cohort), rate, spend.steps, sampling))
    with one_thread():
        for x, mask, y in loader:
            optimizer.zero_grad()
            patient_loss(private(x), y, mask).backward()  # type: ignore[no-untyped-call]
            unit = optimizer.clip_norm() / expected_batch_size  # public, and moving with adaptive clipping
            optimizer.step()
            assert target.weight.grad is not None
            seen += _columns(target.weight.grad) / unit
            progress()
    scores = torch.einsum("oct,kot->ck", seen, target.directions).flatten()[: target.canaries]
    return Observation(scores.numpy(), included)


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: a step is short, and threads that wait for each other make it far longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _cohort(included: Bools, records: int, coins: np.random.Generator) -> Patients:
    """The included canaries and the ordinary patients, none of them with the event."""
    canaries, present = len(included), np.flatnonzero(included)
    patients = len(present) + ORDINARY_PATIENTS
    x = np.zeros((patients, records, canaries + ORDINARY_FEATURES), dtype=np.float32)
    x[np.arange(len(present)), :, present] = 1.0
    x[len(present) :, :, canaries:] = coins.uniform(-1, 1, (ORDINARY_PATIENTS, records, ORDINARY_FEATURES))
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
