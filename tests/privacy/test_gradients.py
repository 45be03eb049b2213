"""Per-patient gradients of every registered model: what autograd says one by one, bounded, and complete."""

from __future__ import annotations

import copy
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from contracts.errors import ConsiliumError
from contracts.privacy import Quantile
from contracts.study import StudyProtocol
from models.registry import build_model, initial_state, load_state, without_batchnorm
from privacy.dpsgd import (
    AdaptiveOptimizer,
    PatientOptimizer,
    PerLayerOptimizer,
    make_private_patient,
    patient_loss,
)
from privacy.gradients import PatientGradients, check_layers
from privacy.recurrence import Recurrence
from privacy.rows import MatrixRows
from privacy.stream import NoiseStream
from site_runtime.trainer import AllLabels
from tests.model_zoo import batch, zoo

CLIP = 0.7
ZOO = zoo()
EVERY = pytest.mark.parametrize("name", sorted(ZOO))


def model_of(protocol: StudyProtocol, scale: float = 1.0) -> nn.Module:
    """The registered model with random weights, as training sees it."""
    model = build_model(protocol)
    draw = np.random.default_rng(3)
    state = {
        key: value if key.startswith("preprocessing") else value + scale * draw.normal(0, 0.3, value.shape)
        for key, value in initial_state(protocol).items()
    }
    load_state(model, {key: value.astype(np.float32) for key, value in state.items()})
    return AllLabels(model)


def patients_of(protocol: StudyProtocol, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Patients with their labels as [B, R, L]."""
    x, mask, y = (torch.from_numpy(part) for part in batch(protocol, count, 1))
    return x, mask, y if y.dim() == 3 else y[..., None]


def private_of(model: nn.Module, make: type[PatientOptimizer] = PatientOptimizer, **settings: object):
    """The private model and its optimizer."""
    return make_private_patient(
        model,
        torch.optim.SGD(model.parameters(), lr=1.0),
        noise_multiplier=1.0,
        max_grad_norm=CLIP,
        expected_batch_size=1.0,
        stream=NoiseStream(bytes(32)),
        make=lambda *a, **k: make(*a, **k, **settings),
    )


def gradient_of_each(model: nn.Module, x: Tensor, mask: Tensor, y: Tensor) -> list[Tensor]:
    """Each patient's gradient by autograd, alone in a batch of one: float64 [parameters]."""
    found = []
    for i in range(len(x)):
        model.zero_grad()
        patient_loss(model(x[i : i + 1]), y[i : i + 1], mask[i : i + 1]).backward()
        found.append(torch.cat([p.grad.double().flatten() for p in model.parameters()]))
    return found


def clipped_sum(model: nn.Module, data: tuple[Tensor, ...], make: type = PatientOptimizer, **kw) -> Tensor:
    """The sum before noise, as one vector."""
    private, optimizer = private_of(copy.deepcopy(model), make, **kw)
    x, mask, y = data
    patient_loss(private(x), y, mask).backward()
    optimizer.clip_and_accumulate()
    zero = {p: torch.zeros(p.shape, dtype=torch.float64) for p in optimizer.params}
    return torch.cat([(zero | optimizer._sums)[p].flatten() for p in optimizer.params])


@EVERY
@pytest.mark.parametrize("count", [1, 9])
def test_the_sum_is_that_of_gradients_clipped_one_by_one(name: str, count: int) -> None:
    model, data = model_of(ZOO[name]), patients_of(ZOO[name], count)
    each = gradient_of_each(copy.deepcopy(model), *data)
    assert any(g.norm() > CLIP for g in each) or count == 1
    expected = torch.stack([g * min(1.0, CLIP / float(g.norm())) for g in each]).sum(dim=0)
    found = clipped_sum(model, data)
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-4)
    # Norms may only be over-estimated, and hardly.
    assert float(found.norm()) <= count * CLIP * (1 + 1e-6)


@EVERY
@settings(max_examples=12, deadline=None)
@given(
    removed=st.integers(0, 5),
    scale=st.sampled_from([1e-2, 1.0, 30.0]),
    value=st.sampled_from([0.0, 1.0, 1e6, 1e30, float("inf"), float("nan")]),
    records=st.integers(0, 2),
    make=st.sampled_from([PatientOptimizer, PerLayerOptimizer]),
)
def test_removing_a_patient_moves_the_clipped_sum_by_at_most_the_clip_norm(
    name: str, removed: int, scale: float, value: float, records: int, make: type
) -> None:
    model = model_of(ZOO[name], scale)
    x, mask, y = (part.clone() for part in patients_of(ZOO[name], 6))
    x[removed] *= value
    mask[removed] = torch.arange(mask.shape[1]) < records
    kept = torch.arange(6) != removed
    whole = clipped_sum(model, (x, mask, y), make)
    assert torch.isfinite(whole).all()
    moved = whole - clipped_sum(model, (x[kept], mask[kept], y[kept]), make)
    # The others' gradients may round differently in a smaller batch, by less than 1e-4 of the clip norm.
    assert float(moved.norm()) <= CLIP * (1 + 1e-4)


@EVERY
def test_a_patient_whose_gradient_is_not_finite_counts_as_zero(name: str) -> None:
    model = model_of(ZOO[name])
    for p in model.parameters():
        p.data.fill_(float("inf"))
    data = patients_of(ZOO[name], 4)
    assert (clipped_sum(model, data) == 0).all()


@EVERY
def test_an_empty_batch_is_a_step_of_noise(name: str) -> None:
    model, data = model_of(ZOO[name]), [part[:0] for part in patients_of(ZOO[name], 1)]
    private, optimizer = private_of(model)
    loss = patient_loss(private(data[0]), data[2], data[1])
    loss.backward()
    optimizer.step()
    noise = NoiseStream(bytes(32))
    for p in optimizer.params:
        np.testing.assert_array_equal(p.grad, (CLIP * noise.normal(tuple(p.shape))).astype(np.float32))


@EVERY
def test_per_layer_clipping_bounds_every_layer_and_so_the_whole(name: str) -> None:
    model, data = model_of(ZOO[name]), patients_of(ZOO[name], 1)
    private, _ = private_of(copy.deepcopy(model))
    layers = private.layer_count
    found = clipped_sum(model, data, PerLayerOptimizer)
    assert float(found.norm()) <= CLIP * (1 + 1e-6)
    start = 0
    for _, module in model.named_modules():
        size = sum(p.numel() for p in module.parameters(recurse=False))
        part = found[start : start + size]
        assert float(part.norm()) <= CLIP / math.sqrt(layers) * (1 + 1e-6)
        start += size
    assert start == len(found)


@EVERY
def test_the_plain_model_comes_back(name: str) -> None:
    model, data = model_of(ZOO[name]), patients_of(ZOO[name], 3)
    before = model(data[0]).detach()
    private, _ = private_of(model)
    torch.testing.assert_close(private(data[0]).detach(), before, rtol=1e-5, atol=1e-5)
    plain = private.detach_hooks()
    assert plain is model and all(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(model(data[0]).detach(), before, rtol=0, atol=0)


class Frequencies(AdaptiveOptimizer):
    """Adaptive clipping on gradient norms that a test sets."""

    def observe(self, norms: Tensor) -> None:
        """One step on these norms."""
        self.layer_factors(norms.square()[None])
        self.add_noise()


@pytest.mark.parametrize(("start", "target"), [(10.0, 0.5), (0.02, 0.5), (10.0, 0.8), (0.02, 0.2)])
def test_adaptive_clipping_reaches_its_quantile_from_above_and_below(start: float, target: float) -> None:
    model = nn.Linear(3, 1)
    norms = torch.from_numpy(np.random.default_rng(2).lognormal(0, 0.5, 400))
    _, optimizer = make_private_patient(
        model,
        torch.optim.SGD(model.parameters(), lr=0.0),
        noise_multiplier=1.0,
        max_grad_norm=20.0,
        expected_batch_size=400,
        stream=NoiseStream(bytes(32)),
        make=lambda *a, **k: Frequencies(*a, quantile=Quantile(target=target), start=start, **k),
    )
    assert isinstance(optimizer, Frequencies)
    for _ in range(200):
        optimizer.observe(norms)
    assert abs(float((norms <= optimizer.clip).double().mean()) - target) < 0.06
    for _ in range(2000):
        optimizer.observe(norms * 1e6)
    assert optimizer.clip == 20.0  # never above the protocol's clip norm


def test_sum_and_count_of_adaptive_clipping_are_one_gaussian_of_the_plans_noise() -> None:
    """Measured in their own noise, a patient moves the sum by C and the count by 1/2."""
    for sigma, share in ((0.8, 0.05), (3.0, 0.5)):
        model = nn.Linear(1, 1)
        _, optimizer = make_private_patient(
            model,
            torch.optim.SGD(model.parameters(), lr=0.0),
            noise_multiplier=sigma,
            max_grad_norm=2.0,
            expected_batch_size=1e9,
            stream=NoiseStream(bytes(32)),
            make=lambda *a, share=share, **k: AdaptiveOptimizer(
                *a, quantile=Quantile(share=share), start=2.0, **k
            ),
        )
        assert isinstance(optimizer, AdaptiveOptimizer)
        count_noise = sigma / (2 * math.sqrt(share))
        moved = (2.0 / optimizer.noise_scale()) ** 2 + (0.5 / count_noise) ** 2
        assert moved == pytest.approx(1 / sigma**2)
        # The count's noise is that large: read off how far C moves, many times.
        draws = []
        optimizer.expected_batch_size = 1000.0
        for _ in range(2000):
            optimizer.clip = 0.5
            optimizer.layer_factors(torch.full((1, 0), 0.0, dtype=torch.float64))
            optimizer.add_noise()
            draws.append((0.5 - math.log(0.5 / optimizer.clip) / 0.2 - 0.5) * 1000.0)
        assert np.std(draws) == pytest.approx(count_noise, rel=0.06)


def test_a_layer_used_twice_counts_once_for_each_use() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.layer(torch.tanh(self.layer(x)))).sum(dim=-1, keepdim=True)

    x, mask = torch.randn(5, 3, 4), torch.ones(5, 3, dtype=torch.bool)
    y = (torch.rand(5, 3, 1) > 0.5).float()
    model = Twice()
    each = gradient_of_each(copy.deepcopy(model), x, mask, y)
    expected = torch.stack([g * min(1.0, CLIP / float(g.norm())) for g in each]).sum(dim=0)
    torch.testing.assert_close(clipped_sum(model, (x, mask, y)), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("layers", [1, 2])
def test_our_recurrence_is_torchs(layers: int) -> None:
    lstm = nn.LSTM(3, 5, num_layers=layers, batch_first=True)
    x = torch.randn(4, 7, 3, requires_grad=True)
    gates = nn.functional.linear(x, lstm.weight_ih_l0, lstm.bias_ih_l0 + lstm.bias_hh_l0)
    if layers == 1:
        ours = Recurrence.apply(gates, lstm.weight_hh_l0.detach())
        torch.testing.assert_close(ours, lstm(x)[0], rtol=1e-5, atol=1e-6)
        expected = torch.autograd.grad(lstm(x)[0].square().sum(), x)[0]
        torch.testing.assert_close(torch.autograd.grad(ours.square().sum(), x)[0], expected)
    stacked = nn.ModuleDict({"lstm": lstm, "head": nn.Linear(5, 1)})

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = stacked

        def forward(self, x: Tensor) -> Tensor:
            return self.parts["head"](self.parts["lstm"](x)[1][0][-1])

    data = torch.randn(6, 7, 3), torch.ones(6, 1, dtype=torch.bool), torch.zeros(6, 1)
    each = gradient_of_each(copy.deepcopy(Model()), *data)
    expected = torch.stack([g * min(1.0, CLIP / float(g.norm())) for g in each]).sum(dim=0)
    torch.testing.assert_close(clipped_sum(Model(), data), expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(
    "layer",
    [
        nn.LSTM(4, 3, bidirectional=True, batch_first=True),
        nn.LSTM(4, 3),
        nn.GRU(4, 3),
        nn.Dropout(0.5),
        nn.Bilinear(2, 2, 1),
    ],
)
def test_a_layer_without_known_gradients_or_with_draws_of_its_own_is_refused(layer: nn.Module) -> None:
    with pytest.raises(ConsiliumError, match="E404"):
        PatientGradients(nn.Sequential(layer, nn.Linear(4, 1)))


def test_a_model_with_batchnorm_is_refused_and_its_replacement_taken() -> None:
    fields = {"name": "cnn", "image": [8, 8], "hidden": [4, 6], "norm": "batch"}
    protocol = ZOO["cnn"].model_copy(update={"model": ZOO["cnn"].model.model_validate(fields)})
    model = build_model(protocol)
    with pytest.raises(ConsiliumError, match=r"E404.*without_batchnorm"):
        check_layers(model)
    check_layers(without_batchnorm(model))


@EVERY
def test_an_unknown_auxiliary_label_costs_nothing_and_classes_weigh_as_told(name: str) -> None:
    model, (x, mask, y) = model_of(ZOO[name]), patients_of(ZOO[name], 5)
    logits = model(x).detach()
    unknown = y.clone()
    unknown[..., 1:] = float("nan")
    first = patient_loss(logits[..., :1], y[..., :1], mask)
    assert float(patient_loss(logits, unknown, mask)) == pytest.approx(float(first) / y.shape[-1], rel=1e-5)
    positive = patient_loss(logits, torch.where(y == 1, y, float("nan")), mask)
    negative = patient_loss(logits, torch.where(y == 0, y, float("nan")), mask)
    weighted = patient_loss(logits, y, mask, (0.5, 3.0))
    assert float(weighted) == pytest.approx(0.5 * float(negative) + 3.0 * float(positive), rel=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("a", [1e18, 1e-20, 1e-42, 0.0])
@pytest.mark.parametrize("b", [1e19, 1e-23, 1e-42])
def test_a_norm_is_never_under_estimated_by_what_float32_cannot_hold(a: float, b: float, bias: bool) -> None:
    """Inner products of rows that under- or overflow: a coordinator could choose a model that makes them."""
    draw = np.random.default_rng(4)
    inputs = torch.from_numpy(a * draw.normal(size=(3, 6, 40))).float()
    outputs = torch.from_numpy(b * draw.normal(size=(3, 6, 50))).float()
    weight, offset = nn.Parameter(torch.zeros(50, 40)), nn.Parameter(torch.zeros(50))
    rows = MatrixRows(inputs, [(weight, 40)], [offset] if bias else [], outputs)
    assert 6 * (40 + 50) <= 40 * 50  # the branch that works with inner products
    found = rows.squared_norms().sqrt()
    exact = torch.einsum("bro,bri->boi", outputs.double(), inputs.double()).flatten(1).square().sum(dim=1)
    if bias:
        exact += outputs.double().sum(dim=1).square().sum(dim=1)
    assert (found >= exact.sqrt() * (1 - 1e-12)).all() and (found <= exact.sqrt() * 1.01 + 1e-300).all()


@EVERY
def test_a_patients_gradient_is_the_same_to_the_last_bit_whoever_else_is_in_the_batch(name: str) -> None:
    model = model_of(ZOO[name], scale=1e3)
    x, mask, y = patients_of(ZOO[name], 40)

    def books(kept: Tensor) -> list[tuple[Tensor, ...]]:
        private, _ = private_of(copy.deepcopy(model))
        patient_loss(private(x[kept]), y[kept], mask[kept]).backward()
        found: list[tuple[Tensor, ...]] = []
        for layer in private.layers():
            found.append((layer.a, layer.b) if isinstance(layer, MatrixRows) else (*layer.samples.values(),))
        return found

    for count in (1, 2, 3, 7, 11, 31, 32, 33, 40):
        whole = torch.arange(count)
        for removed in {0, count // 2, count - 1}:
            left = torch.cat([whole[:removed], whole[removed + 1 :]])
            if not len(left):
                continue
            for one, other in zip(books(whole), books(left), strict=True):
                for all_rows, fewer in zip(one, other, strict=True):
                    assert torch.equal(all_rows[left], fewer)
