"""Models over one vector of features: logistic regression and the multilayer perceptron."""

from __future__ import annotations

from torch import Tensor, nn

from contracts.study import StudyProtocol
from models.preprocessing import TabularPreprocessing


class TabularModel(nn.Module):
    """Preprocessing followed by a network with one logit.

    Shapes: x float32 [..., features] in raw units, NaN = missing -> logits float32 [...].
    """

    def __init__(self, protocol: StudyProtocol, network: nn.Module, preprocessing: nn.Module) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return the logit of the label's positive class."""
        logits: Tensor = self.network(self.preprocessing(x))
        return logits.squeeze(-1)


def logistic(protocol: StudyProtocol) -> TabularModel:
    """Logistic regression (`hidden` must be empty)."""
    if protocol.model.hidden:
        raise ValueError("model logistic takes no hidden layers")
    preprocessing = TabularPreprocessing(protocol)
    return TabularModel(protocol, nn.Linear(preprocessing.width, 1), preprocessing)


def mlp(protocol: StudyProtocol) -> TabularModel:
    """Multilayer perceptron with tanh activations, which bound the gradients that DP-SGD clips
    (Papernot et al. 2021, Tempered sigmoid activations for deep learning with differential privacy)."""
    preprocessing = TabularPreprocessing(protocol)
    layers: list[nn.Module] = []
    width = preprocessing.width
    for hidden in protocol.model.hidden or [32]:
        layers += [nn.Linear(width, hidden), nn.Tanh()]
        width = hidden
    return TabularModel(protocol, nn.Sequential(*layers, nn.Linear(width, 1)), preprocessing)
