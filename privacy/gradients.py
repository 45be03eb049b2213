"""Per-patient gradients without holding them: book-keeping over layers (Bu et al. 2023, arXiv:2210.00038).

A layer that multiplies by a matrix has, for patient i with rows r (records, time steps, pixels), gradient

    G_i = sum_r b_ir a_ir^T          a: the layer's input, b: gradient of the loss at the layer's output

so one backward pass that keeps a and b is enough. The norm comes from inner products of rows,
|G_i|^2 = sum_rs (a_r . a_s)(b_r . b_s), or from G_i itself where that is smaller; the clipped sum over
patients is one product of matrices, sum_i f_i G_i = (f b)^T a. Linear, Conv2d and LSTM layers work like this;
every other layer that Opacus knows gets its per-row gradients from Opacus' own samplers.

Batches are filled up to a multiple of 32 with patients of zeros, who are left out again. A matrix product may
round a row differently in a batch of another size, and a model with huge weights would make that visible.
Filled up, a patient's gradient is the same to the last bit whoever else is there (measured on the CPU).

Norms are upper bounds: what float32 products may have lost to rounding is added (Higham 2002, section 3.1),
so that a patient's gradient never counts for less than it is. Sums are accumulated in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from opacus.grad_sample.grad_sample_module import GradSampleModule
from torch import Tensor, nn
from torch.nn.functional import linear, unfold
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from contracts.errors import ConsiliumError
from privacy.recurrence import Recurrence, previous, refusal
from privacy.rows import MatrixRows, SampledRows

_TILE = 32  # patients; the smallest multiple with which no row changed, for batches of 2 to 70


@dataclass
class _Layer:
    """A layer with parameters, and what was kept of the pass at hand."""

    name: str
    module: nn.Module
    rows: list[MatrixRows] = field(default_factory=list)
    sampled: list[SampledRows] = field(default_factory=list)

    def gradient(self, patients: int) -> MatrixRows | SampledRows | None:
        """What the layer did in the pass for the first `patients`, as one; None when it took no part."""
        gradient = self._whole_batch()
        return None if gradient is None else gradient.of_first(patients)

    def _whole_batch(self) -> MatrixRows | SampledRows | None:
        finished = [rows for rows in self.rows if rows.b is not None]
        if len(finished) > 1:  # the layer was used several times: more rows of the same patients
            first = finished[0]
            a = torch.cat([rows.a for rows in finished], dim=1)
            b = torch.cat([rows.b for rows in finished if rows.b is not None], dim=1)
            return MatrixRows(a, first.weights, first.biases, b)
        if finished:
            return finished[0]
        if not self.sampled:
            return None
        total = self.sampled[0].samples
        for more in self.sampled[1:]:
            total = {p: g + more.samples[p] for p, g in total.items()}
        return SampledRows(total)


class PatientGradients(nn.Module):
    """A model whose backward pass keeps what per-patient gradients need. Patients come first in its input.

    While it is attached the parameters ask for no gradient of their own; `detach_hooks` gives the plain model
    back.

    Args:
        module: the model; its layers are refused (E404) where they couple patients or are not known.

    Raises:
        ConsiliumError: E404.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        check_layers(module)
        self.module = module
        self.trained = [p for p in module.parameters() if p.requires_grad]
        self.patients = 0  # of the pass at hand, those who fill up the batch included
        self._present = 0
        self._layers: list[_Layer] = []
        self._undo: list[Callable[[], None]] = []
        for name, child in module.named_modules():
            if any(p.requires_grad for p in child.parameters(recurse=False)):
                self._attach(name, child)
        for parameter in self.trained:
            parameter.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Run the model on x [B, ...]; B may be 0.

        Raises:
            ValueError: the gradients of the pass before were not used: two batches would make one step.
        """
        if torch.is_grad_enabled():
            if any(layer.gradient(self.patients) is not None for layer in self._layers):
                raise ValueError("gradient accumulation: a step takes exactly one batch")
            self.clear()
        if len(x) == 0:
            # Not every layer takes an empty batch: ask with one patient, and keep none.
            with torch.no_grad():
                shape = self.module(x.new_zeros(1, *x.shape[1:])).shape
            return x.new_zeros(0, *shape[1:]).requires_grad_()
        fill = -len(x) % _TILE if torch.is_grad_enabled() else 0
        self.patients, self._present = len(x) + fill, len(x)
        found: Tensor = self.module(torch.cat([x, x.new_zeros(fill, *x.shape[1:])]) if fill else x)
        return found[: len(x)]

    def clear(self) -> None:
        """Forget the pass at hand."""
        self.patients = self._present = 0
        for layer in self._layers:
            layer.rows, layer.sampled = [], []

    def layers(self) -> list[MatrixRows | SampledRows]:
        """What each layer that took part kept, in the model's order; empty after an empty batch."""
        found = [layer.gradient(self._present) for layer in self._layers]
        return [gradient for gradient in found if gradient is not None]

    @property
    def layer_count(self) -> int:
        """Number of layers with parameters: of the parts that per-layer clipping bounds."""
        return len(self._layers)

    def detach_hooks(self) -> nn.Module:
        """Take all hooks off and return the model as it was before."""
        for undo in self._undo:
            undo()
        self._undo.clear()
        self.clear()
        for parameter in self.trained:
            parameter.requires_grad_(True)
        return self.module

    def _attach(self, name: str, module: nn.Module) -> None:
        if isinstance(module, nn.LSTM):
            layers = [_Layer(f"{name}.{number}", module) for number in range(module.num_layers)]
            plain = module.forward
            module.forward = _lstm_forward(self, layers, module)  # type: ignore[method-assign]
            self._undo.append(lambda: setattr(module, "forward", plain))
            self._layers += layers
            return
        layer = _Layer(name, module)
        handle = module.register_forward_hook(lambda m, inputs, output: self._keep(layer, inputs[0], output))
        self._undo.append(handle.remove)
        self._layers.append(layer)

    def _keep(self, layer: _Layer, given: Tensor, output: Tensor) -> Tensor:
        """Keep a layer's input, and have the backward pass bring the gradient at its output."""
        if not torch.is_grad_enabled() or self.patients == 0:
            return output
        if not output.requires_grad:
            output.requires_grad_()
        given = given.detach()
        rows = _matrix_rows(layer.module, given, self.patients)
        if rows is None:
            _on_gradient(output, lambda b: self._sample(layer, given, b))
        else:
            layer.rows.append(rows)
            _on_gradient(output, lambda b: _bring(rows, _output_rows(layer.module, b, self.patients)))
        return output

    def _sample(self, layer: _Layer, given: Tensor, b: Tensor) -> None:
        """Have Opacus compute the per-row gradients of a layer, and sum them over each patient's rows."""
        for parameter in layer.module.parameters(recurse=False):
            parameter.requires_grad_(True)  # Opacus leaves out what is frozen
        try:
            found = GradSampleModule.GRAD_SAMPLERS[type(layer.module)](layer.module, [given], b)
        finally:
            for parameter in layer.module.parameters(recurse=False):
                parameter.requires_grad_(False)
        layer.sampled.append(
            SampledRows({p: g.reshape(self.patients, -1, *p.shape).sum(dim=1) for p, g in found.items()})
        )


def check_layers(module: nn.Module) -> None:
    """Refuse layers that couple patients, keep statistics of them, draw at random, or have no known gradient.

    Raises:
        ConsiliumError: E404, naming the layer and what to use instead.
    """
    for name, layer in module.named_modules():
        where = f"layer {name or 'module'!r} is {type(layer).__name__}"
        if isinstance(layer, _BatchNorm) or (isinstance(layer, _NormBase) and layer.track_running_stats):
            raise ConsiliumError(
                "E404", f"{where}, expected GroupNorm or none (models.registry.without_batchnorm replaces it)"
            )
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0:
            raise ConsiliumError("E404", f"{where}, which draws from torch's generator, expected none")
        if not any(p.requires_grad for p in layer.parameters(recurse=False)):
            continue
        if isinstance(layer, nn.LSTM):
            reason = refusal(layer)
            if reason is not None:
                raise ConsiliumError("E404", f"{where}: {reason} has no per-patient gradients here")
        elif type(layer) not in GradSampleModule.GRAD_SAMPLERS:
            raise ConsiliumError("E404", f"{where}, for which no per-patient gradients are known")


def _matrix_rows(module: nn.Module, given: Tensor, patients: int) -> MatrixRows | None:
    """The input of a Linear or Conv2d layer as rows of its patients; None for other layers."""
    if type(module) is nn.Linear:
        a = _precise(given).reshape(patients, -1, module.in_features)
    elif type(module) is nn.Conv2d and module.groups == 1 and not isinstance(module.padding, str):
        columns = unfold(_precise(given), module.kernel_size, module.dilation, module.padding, module.stride)
        a = columns.transpose(1, 2).reshape(patients, -1, columns.shape[1])
    else:
        return None
    parameters = dict(module.named_parameters(recurse=False))
    biases = [parameters["bias"]] if "bias" in parameters else []
    return MatrixRows(a, [(parameters["weight"], a.shape[2])], biases)


def _output_rows(module: nn.Module, b: Tensor, patients: int) -> Tensor:
    b = _precise(b)
    if type(module) is nn.Conv2d:
        return b.flatten(2).transpose(1, 2).reshape(patients, -1, b.shape[1])
    return b.reshape(patients, -1, b.shape[-1])


def _on_gradient(output: Tensor, do: Callable[[Tensor], None]) -> None:
    """Have the backward pass call `do` with the gradient at a layer's output."""
    output.register_hook(lambda b: do(b.detach()))  # type: ignore[no-untyped-call]


def _bring(rows: MatrixRows, b: Tensor) -> None:
    rows.b = b


def _lstm_forward(owner: PatientGradients, layers: list[_Layer], lstm: nn.LSTM) -> Callable[..., Any]:
    """The forward pass of an `nn.LSTM` with zero initial states, through `Recurrence`."""
    plain = lstm.forward

    def forward(x: Tensor, state: Any = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        if not torch.is_grad_enabled() or owner.patients == 0:
            return plain(x, state)
        if state is not None or x.dim() != 3:
            raise ConsiliumError("E404", "an LSTM takes [N, T, features] and no initial state here")
        last, hidden = [], x
        for layer, parameters in zip(layers, _lstm_parameters(lstm), strict=True):
            hidden = _lstm_layer(owner.patients, layer, hidden, *parameters)
            last.append(hidden[:, -1])
        h = torch.stack(last)
        return hidden, (h, torch.full_like(h, float("nan")))  # cell states are not kept

    return forward


def _lstm_parameters(lstm: nn.LSTM) -> Iterator[tuple[nn.Parameter, nn.Parameter, list[nn.Parameter]]]:
    for number in range(lstm.num_layers):
        named = {kind: getattr(lstm, f"{kind}_l{number}", None) for kind in ("bias_ih", "bias_hh")}
        biases = [bias for bias in named.values() if bias is not None]
        yield getattr(lstm, f"weight_ih_l{number}"), getattr(lstm, f"weight_hh_l{number}"), biases


def _lstm_layer(
    patients: int,
    layer: _Layer,
    x: Tensor,
    weight_ih: nn.Parameter,
    weight_hh: nn.Parameter,
    biases: list[nn.Parameter],
) -> Tensor:
    """Run one layer and book its rows: inputs [x_t, h_{t-1}] and, once they are known, gate gradients."""
    bias = torch.stack(list(biases)).sum(dim=0) if biases else None
    gates = _precise(linear(x, weight_ih, bias))
    if not gates.requires_grad:
        gates.requires_grad_()
    hidden: Tensor = Recurrence.apply(gates, _precise(weight_hh))  # type: ignore[no-untyped-call]
    a = torch.cat([x.detach(), previous(hidden.detach())], dim=2)
    weights = [(w, w.shape[1]) for w in (weight_ih, weight_hh)]
    rows = MatrixRows(_precise(a).reshape(patients, -1, a.shape[2]), weights, biases)
    layer.rows.append(rows)
    _on_gradient(gates, lambda b: _bring(rows, _precise(b).reshape(patients, -1, b.shape[-1])))
    return hidden


def _precise(values: Tensor) -> Tensor:
    """At least float32, whatever autocast computed in."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()
