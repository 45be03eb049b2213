"""DP-SGD by patient: the published formula, one patient bounded, all randomness from the stream."""

from __future__ import annotations

import copy
import warnings

import hypothesis.strategies as st
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from torch import nn

from contracts.errors import ConsiliumError
from privacy.dpsgd import PatientBatches, Patients, make_private_patient, patient_loader, patient_loss
from privacy.stream import NoiseStream, derive_stream

KEY = bytes(range(32))
PATIENTS, RECORDS, FEATURES = 60, 3, 4
RATE, DECLARED, STEPS, SIGMA, CLIP, LEARNING_RATE = 0.2, 50, 8, 1.3, 0.7, 0.5


def stream(purpose: str, plan: str = "a" * 64) -> NoiseStream:
    return derive_stream(KEY, plan=plan, cohort="c" * 64, code_version="1", purpose=purpose)


def cohort(patients: int = PATIENTS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(5)
    x = random.normal(size=(patients, RECORDS, FEATURES)).astype(np.float32)
    mask = np.arange(RECORDS) < random.integers(1, RECORDS + 1, size=(patients, 1))
    y = (x.sum(-1) > 0).astype(np.float32)
    return torch.from_numpy(x), torch.from_numpy(mask), torch.from_numpy(y)


def network() -> nn.Module:
    """A two-layer network with fixed weights."""
    layers = nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, 1), nn.Flatten(-2))
    random = np.random.default_rng(1)
    with torch.no_grad():
        for p in layers.parameters():
            p.copy_(torch.from_numpy(random.normal(size=p.shape).astype(np.float32)))
    return layers


class Study(pl.LightningModule):
    """What a trainer needs: automatic optimisation over the private module."""

    def __init__(self, model: nn.Module, sigma: float, plan: str) -> None:
        super().__init__()
        self.private, self.optimizer = make_private_patient(
            model,
            torch.optim.SGD(model.parameters(), lr=LEARNING_RATE),
            noise_multiplier=sigma,
            max_grad_norm=CLIP,
            expected_batch_size=RATE * DECLARED,
            stream=stream("noise", plan),
        )
        self.sizes: list[int] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer

    def training_step(self, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        x, mask, y = batch
        self.sizes.append(len(x))
        return patient_loss(self.private(x), y, mask)


def fit(
    plan: str = "a" * 64, rate: float = RATE, sigma: float = SIGMA, patients: int = PATIENTS
) -> tuple[dict[str, np.ndarray], list[int]]:
    """Train the network for a plan and return its parameters and the batch sizes."""
    model = network()
    study = Study(model, sigma, plan)
    loader = patient_loader(
        Patients(*cohort(patients)), PatientBatches(patients, rate, STEPS, stream("sampling", plan))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pl.Trainer(
            max_steps=STEPS,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(study, loader)
    return {k: v.detach().numpy().copy() for k, v in model.named_parameters()}, study.sizes


def reference(plan: str, rate: float = RATE) -> dict[str, np.ndarray]:
    """DP-SGD written out in numpy: back-propagation, clipping, summing, noise."""
    x, mask, y = (part.numpy() for part in cohort())
    w = [p.detach().numpy().astype(np.float64) for p in network().parameters()]
    sampling, noise = stream("sampling", plan), stream("noise", plan)
    for _ in range(STEPS):
        total = [np.zeros_like(p) for p in w]
        for i in np.flatnonzero(sampling.bernoulli(PATIENTS, rate)):
            present = mask[i]
            hidden = np.tanh(x[i] @ w[0].T + w[1])
            logit = (hidden @ w[2].T + w[3])[:, 0]
            error = np.where(present, 1 / (1 + np.exp(-logit)) - y[i], 0.0) / present.sum()
            back = error[:, None] * w[2] * (1 - hidden**2)
            g = [back.T @ x[i], back.sum(0), error[None] @ hidden, np.array([error.sum()])]
            norm = np.sqrt(sum((p**2).sum() for p in g))
            total = [t + p * min(1.0, CLIP / norm) for t, p in zip(total, g, strict=True)]
        for j, p in enumerate(w):
            noisy = total[j] + SIGMA * CLIP * noise.normal(p.shape)
            w[j] = p - LEARNING_RATE * noisy / (RATE * DECLARED)
    return {k: p for (k, _), p in zip(network().named_parameters(), w, strict=True)}


def test_training_in_lightning_equals_the_formula_written_out_in_numpy() -> None:
    trained, sizes = fit()
    assert len(sizes) == STEPS and len(set(sizes)) > 1
    for name, expected in reference("a" * 64).items():
        np.testing.assert_allclose(trained[name], expected, rtol=2e-4, atol=2e-5)


def test_the_same_plan_gives_the_same_bits_whatever_the_global_generators_hold() -> None:
    torch.default_generator.manual_seed(16)
    first, sizes = fit()
    torch.default_generator.manual_seed(17)
    np.random.seed(17)
    second, again = fit()
    assert sizes == again
    for name in first:
        assert first[name].tobytes() == second[name].tobytes()


def test_another_plan_draws_other_batches_and_other_noise() -> None:
    first, sizes = fit()
    second, others = fit(plan="b" * 64)
    assert sizes != others
    assert all(first[name].tobytes() != second[name].tobytes() for name in first)
    # Same (empty) batches in both, so that only the noise can differ.
    first, sizes = fit(rate=1e-9)
    second, others = fit(plan="b" * 64, rate=1e-9)
    assert sizes == others
    assert all((first[name] != second[name]).all() for name in first)


def test_an_empty_batch_still_takes_a_step_of_noise() -> None:
    trained, sizes = fit(rate=1e-9)
    assert sizes == [0] * STEPS
    noise = stream("noise")
    w = {k: p.detach().numpy().astype(np.float64) for k, p in network().named_parameters()}
    for _ in range(STEPS):
        for name in w:
            w[name] = w[name] - LEARNING_RATE * SIGMA * CLIP * noise.normal(w[name].shape) / (RATE * DECLARED)
    for name in w:
        np.testing.assert_allclose(trained[name], w[name], rtol=1e-5, atol=1e-6)


def clipped_sum(x: torch.Tensor, mask: torch.Tensor, y: torch.Tensor, scale: float) -> np.ndarray:
    """The sum before noise, as one vector, of the network with its weights scaled."""
    model = network()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale)
    private, optimizer = make_private_patient(
        model,
        torch.optim.SGD(model.parameters(), lr=1.0),
        noise_multiplier=1.0,
        max_grad_norm=CLIP,
        expected_batch_size=1.0,
        stream=stream("noise"),
    )
    patient_loss(private(x), y, mask).backward()
    optimizer.clip_and_accumulate()
    return np.concatenate([optimizer._sums[p].numpy().ravel() for p in model.parameters()])


@settings(max_examples=40, deadline=None)
@given(
    removed=st.integers(0, 7),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    value=st.sampled_from([0.0, 1.0, 1e6, 1e30, float("inf"), float("nan")]),
    records=st.integers(1, RECORDS),
)
def test_removing_a_patient_moves_the_clipped_sum_by_at_most_the_clip_norm(
    removed: int, scale: float, value: float, records: int
) -> None:
    x, mask, y = (part.clone() for part in cohort(8))
    x[removed] *= value
    mask[removed] = torch.arange(RECORDS) < records
    kept = torch.arange(8) != removed
    moved = clipped_sum(x, mask, y, scale) - clipped_sum(x[kept], mask[kept], y[kept], scale)
    assert np.linalg.norm(moved) <= CLIP * (1 + 1e-6)


def test_the_divisor_does_not_depend_on_the_size_of_the_cohort() -> None:
    """With no patient in any batch a cohort of 60 and one of 30 end at the same parameters."""
    large, _ = fit(rate=1e-9)
    small, _ = fit(rate=1e-9, patients=30)
    assert all(large[name].tobytes() == small[name].tobytes() for name in large)


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(5),
        nn.BatchNorm1d(5, affine=False),
        nn.SyncBatchNorm(5),
        nn.InstanceNorm1d(5, track_running_stats=True),
    ],
)
def test_layers_that_couple_patients_are_refused(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(FEATURES, 5), layer, nn.Linear(5, 1))
    with pytest.raises(ConsiliumError, match="E404"):
        make_private_patient(
            model,
            torch.optim.SGD(model.parameters(), lr=1.0),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            expected_batch_size=1.0,
            stream=stream("noise"),
        )


def test_batches_of_a_plan_cannot_be_drawn_twice() -> None:
    batches = PatientBatches(10, 0.5, 3, stream("sampling"))
    assert len(list(batches)) == 3
    with pytest.raises(RuntimeError, match="once"):
        next(iter(batches))


def test_gradients_of_two_batches_cannot_be_summed_into_one_step() -> None:
    model = copy.deepcopy(network())
    private, _ = make_private_patient(
        model,
        torch.optim.SGD(model.parameters(), lr=1.0),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=1.0,
        stream=stream("noise"),
    )
    x, mask, y = cohort(4)
    patient_loss(private(x), y, mask).backward()
    with pytest.raises(ValueError, match="accumulation"):
        patient_loss(private(x), y, mask).backward()
