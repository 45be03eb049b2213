"""An LSTM layer whose gate gradients can be seen: what per-patient gradients need, without a hook per step.

`nn.LSTM` hides them inside one fused operation, and Opacus' DPLSTM runs a hooked linear layer per time step.
Here the input is projected for all steps at once and only the recurrence is a loop, whose backward pass
returns the gradient of every gate before its non-linearity, and none of the weights.

With gates in torch's order (input, forget, cell, output), a_t = W_x x_t + W_h h_{t-1} + b:

    c_t = f_t c_{t-1} + i_t g_t,    h_t = o_t tanh(c_t)          (Hochreiter & Schmidhuber 1997)

The gradient of every weight is a sum over time of a gate gradient times the weight's input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def refusal(layer: nn.LSTM) -> str | None:
    """Say why this layer's recurrence cannot be run here; None when it can."""
    if layer.bidirectional or layer.proj_size:
        return "bidirectional or projected LSTM"
    if not layer.batch_first:
        return "LSTM with batch_first=False"
    if layer.dropout:
        return "LSTM with dropout, which draws from torch's generator"
    return None


class Recurrence(torch.autograd.Function):
    """Hidden states of one layer from its projected input; backward gives gate gradients alone.

    Shapes: gates float [N, T, 4 H], weight float [4 H, H] -> h float [N, T, H].
    """

    @staticmethod
    def forward(ctx: Any, gates: Tensor, weight: Tensor) -> Tensor:
        """Run the recurrence from zero states."""
        n, steps, width = gates.shape
        size = width // 4
        by_time = gates.transpose(0, 1).contiguous()
        transposed = weight.t().contiguous()
        active = torch.empty_like(by_time)
        hidden, cells = by_time.new_empty(steps, n, size), by_time.new_empty(steps, n, size)
        h = c = by_time.new_zeros(n, size)
        for t in range(steps):
            a = torch.addmm(by_time[t], h, transposed, out=active[t])
            a[:, : 2 * size].sigmoid_()
            a[:, 2 * size : 3 * size].tanh_()
            a[:, 3 * size :].sigmoid_()
            i, f, g, o = torch.split(a, size, dim=1)
            c = torch.mul(f, c, out=cells[t]).addcmul_(i, g)
            h = torch.tanh(c, out=hidden[t]).mul_(o)
        ctx.save_for_backward(active, cells, weight)
        return hidden.transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the gates' inputs; `weight` gets none."""
        active, cells, weight = ctx.saved_tensors
        steps, n, width = active.shape
        size = width // 4
        i, f, g, o = torch.split(active, size, dim=2)
        squashed = torch.tanh(cells)
        before = torch.cat([cells.new_zeros(1, n, size), cells[:-1]])
        # What multiplies the gradient of c_t for the first three gates, for all steps at once.
        through_cell = torch.stack([g * i * (1 - i), before * f * (1 - f), i * (1 - g * g)], dim=2)
        through_output = squashed * o * (1 - o)
        into_cell = o * (1 - squashed * squashed)
        result = torch.empty_like(active)
        d_h = d_c = cells.new_zeros(n, size)
        outside = grads[0].transpose(0, 1)
        for t in range(steps - 1, -1, -1):
            d_h = d_h + outside[t]
            d_c = torch.addcmul(d_c, d_h, into_cell[t])
            here = result[t]
            here[:, : 3 * size].copy_((through_cell[t] * d_c.unsqueeze(1)).view(n, 3 * size))
            torch.mul(d_h, through_output[t], out=here[:, 3 * size :])
            d_h = here @ weight
            d_c = d_c * f[t]
        return result.transpose(0, 1), None


def previous(hidden: Tensor) -> Tensor:
    """Hidden states one step earlier, zero at first: [N, T, H] -> [N, T, H]."""
    return torch.cat([hidden.new_zeros(hidden.shape[0], 1, hidden.shape[2]), hidden[:, :-1]], dim=1)
