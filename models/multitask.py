"""Models with several labels: what one label teaches about the patients helps the others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from contracts.study import StudyProtocol
from models.interface import ClinicalModel
from models.preprocessing import TabularPreprocessing
from models.tabular import tanh_layers


class MultitaskNetwork(nn.Module):
    """A trunk of tanh layers that all labels share, and one linear head for each (Caruana 1997).

    Shapes: float32 [..., width] -> float32 [..., 1], of the first label.
    """

    def __init__(self, width: int, hidden: list[int], labels: int) -> None:
        super().__init__()
        layers, width = tanh_layers(width, hidden)
        self.trunk = nn.Sequential(*layers)
        self.heads = nn.ModuleList(nn.Linear(width, 1) for _ in range(labels))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the first label's logit; the other heads are not computed and not exported."""
        logits: Tensor = self.heads[0](self.trunk(inputs))
        return logits

    def all_logits(self, inputs: Tensor) -> Tensor:
        """Return the logits of all labels, float32 [..., labels]."""
        shared = self.trunk(inputs)
        return torch.cat([head(shared) for head in self.heads], dim=-1)


class MultitaskModel(ClinicalModel):
    """A clinical model that is trained on the auxiliary labels as well."""

    network: MultitaskNetwork

    def all_logits(self, x: Tensor) -> Tensor:
        """Return float32 [..., labels], the label first, then the auxiliary ones in the study's order."""
        return self.network.all_logits(self.preprocessing(x))


def multitask(protocol: StudyProtocol) -> MultitaskModel:
    """Multilayer perceptron with a head per label (`hidden` of the trunk: one of 32 when not given)."""
    if not protocol.auxiliary_labels:
        raise ValueError("model multitask needs auxiliary_labels, the study has none")
    preprocessing = TabularPreprocessing(protocol)
    labels = 1 + len(protocol.auxiliary_labels)
    network = MultitaskNetwork(preprocessing.width, protocol.model.hidden or [32], labels)
    return MultitaskModel(preprocessing, network)
