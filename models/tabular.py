"""Models over one vector of features: logistic regression and the multilayer perceptron."""

from __future__ import annotations

from torch import nn

from contracts.study import StudyProtocol
from models.interface import ClinicalModel
from models.preprocessing import TabularPreprocessing


def logistic(protocol: StudyProtocol) -> ClinicalModel:
    """Logistic regression (`hidden` must be empty)."""
    if protocol.model.hidden:
        raise ValueError("model logistic takes no hidden layers")
    preprocessing = TabularPreprocessing(protocol)
    return ClinicalModel(preprocessing, nn.Linear(preprocessing.width, 1))


def mlp(protocol: StudyProtocol) -> ClinicalModel:
    """Multilayer perceptron with tanh activations (`hidden`: one of 32 when not given)."""
    preprocessing = TabularPreprocessing(protocol)
    layers, width = tanh_layers(preprocessing.width, protocol.model.hidden or [32])
    return ClinicalModel(preprocessing, nn.Sequential(*layers, nn.Linear(width, 1)))


def tanh_layers(width: int, hidden: list[int]) -> tuple[list[nn.Module], int]:
    """Linear layers from `width` inputs, each followed by tanh; also how many outputs the last has.

    Tanh bounds the gradients that DP-SGD clips (Papernot et al. 2021, Tempered sigmoid activations for deep
    learning with differential privacy).
    """
    layers: list[nn.Module] = []
    for units in hidden:
        layers += [nn.Linear(width, units), nn.Tanh()]
        width = units
    return layers, width
