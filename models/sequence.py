"""Models over a series of equal measurements: the long short-term memory network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from contracts.study import CategoricalFeature, Feature, StudyProtocol
from models.interface import ClinicalModel
from models.preprocessing import TabularPreprocessing


class SequenceNetwork(nn.Module):
    """One LSTM layer (Hochreiter and Schmidhuber 1997); its last hidden state gives the logit.

    Args:
        steps: for every time step, oldest first, the columns of the input that belong to it.
        hidden: size of the hidden state.

    Shapes: float32 [..., time steps x width], columns as `TabularPreprocessing` orders them
        -> float32 [..., 1].
    """

    order: Tensor

    def __init__(self, steps: list[list[int]], hidden: int) -> None:
        super().__init__()
        self.shape = (len(steps), len(steps[0]))
        order = torch.tensor([column for step in steps for column in step], dtype=torch.long)
        self.register_buffer("order", order, persistent=False)
        self.lstm = nn.LSTM(self.shape[1], hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return one logit for every series."""
        series = inputs.index_select(-1, self.order).reshape(-1, *self.shape)
        _, (last, _) = self.lstm(series)
        logits: Tensor = self.head(last[-1])
        return logits.reshape(*inputs.shape[:-1], 1)


def lstm(protocol: StudyProtocol) -> ClinicalModel:
    """LSTM over `time_steps` equal blocks of features (`hidden`: one width, 64 when not given)."""
    hidden = protocol.model.hidden or [64]
    if len(hidden) != 1:
        raise ValueError(f"hidden {hidden}: model lstm has one layer, expected one width")
    blocks = _blocks(protocol)
    preprocessing = TabularPreprocessing(protocol)
    length = len(blocks[0])
    steps: list[list[int]] = [[] for _ in blocks]
    for column, feature in enumerate(preprocessing.sources):
        steps[feature // length].append(column)
    return ClinicalModel(preprocessing, SequenceNetwork(steps, hidden[0]))


def _blocks(protocol: StudyProtocol) -> list[list[Feature]]:
    """The features of each time step; every step must measure the same things in the same order."""
    count, features = protocol.model.time_steps, protocol.features
    if count is None:
        raise ValueError("time_steps is not set: model lstm needs the number of time steps")
    if len(features) % count:
        raise ValueError(f"time_steps {count}: expected a divisor of the {len(features)} features")
    length = len(features) // count
    blocks = [features[start : start + length] for start in range(0, len(features), length)]
    for step, block in enumerate(blocks):
        for here, first in zip(block, blocks[0], strict=True):
            if _kind(here) != _kind(first):
                raise ValueError(
                    f"feature {here.name!r} of time step {step + 1} is {_kind(here)}, "
                    f"expected {_kind(first)} as {first.name!r} of the first"
                )
    return blocks


def _kind(feature: Feature) -> str:
    return f"coded {feature.levels}" if isinstance(feature, CategoricalFeature) else "numeric"
