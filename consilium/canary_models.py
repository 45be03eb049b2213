"""The models that `consilium audit` attacks: registered networks, with canaries as features of one layer.

A path is one of them, and one way through the code that clips (privacy/rows.py). The network is the
registered one, small and with its preprocessing, whose scale a round of statistics could have released: it
turns the 1 of a canary's feature into a network input far beyond what the clip norm lets through.

Where a network takes more inputs than there are canaries, a feature is repeated: over the time steps of an
LSTM, and over the picture of a convolution (see `Picture`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from contracts.study import parse_study
from models.image import ImageNetwork
from models.interface import ClinicalModel
from models.preprocessing import TabularPreprocessing
from models.registry import build_model
from models.sequence import SequenceNetwork
from privacy.audit import LOUDNESS, AttackPath
from privacy.canaries import ORDINARY_FEATURES, Target, own_gradients

TIME_STEPS = 4
Norm = Literal["group", "none"]


class Picture(nn.Module):
    """Features as a 4 x 4 picture, four to a channel: each lights the pixels of one parity of row and column.

    A kernel of 3 x 3 with stride 2 and padding 1 meets pixels of different parity with different weights.

    Shapes: float32 [..., features] -> float32 [..., channels x 4 x 4], channels = features / 4, rounded up.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """Repeat each channel's four features over the picture."""
        whole = nn.functional.pad(inputs, (0, -inputs.shape[-1] % 4))
        return whole.reshape(*whole.shape[:-1], -1, 2, 2).tile(2, 2).flatten(-3)


def _logistic(features: int, records: int, norm: Norm) -> tuple[ClinicalModel, str]:
    return _registered(features, {"name": "logistic"}), "network"


def _perceptron(features: int, records: int, norm: Norm) -> tuple[ClinicalModel, str]:
    return _registered(features, {"name": "mlp", "hidden": [records + 1]}), "network.0"


def _recurrent(features: int, records: int, norm: Norm) -> tuple[ClinicalModel, str]:
    # More gates than rows: norms come from inner products of rows.
    network = SequenceNetwork([list(range(features))] * TIME_STEPS, records + 1)
    return ClinicalModel(_preprocessing(features), network), "network.lstm"


def _convolution(features: int, records: int, norm: Norm) -> tuple[ClinicalModel, str]:
    # Again more outputs than rows, the 2 x 2 pixels of each record; and three channels or more to a group:
    # over two a norm gives +-1 whatever it is given, and no gradient.
    network = ImageNetwork((-(-features // 4), 4, 4), [4 * records + 1, 3], norm)
    return ClinicalModel(_preprocessing(features), nn.Sequential(Picture(), network)), "network.1.layers.0"


_BUILD: dict[AttackPath, Callable[[int, int, Norm], tuple[ClinicalModel, str]]] = {
    "logistic": _logistic,
    "records": _logistic,
    "perceptron": _perceptron,
    "recurrent": _recurrent,
    "convolution": _convolution,
}


def canary_target(
    path: AttackPath, canaries: int, max_grad_norm: float, *, records: int, norm: Norm = "group"
) -> Target:
    """Build the model of a path, with fixed weights at which every layer has a gradient, and its canaries.

    A canary's gradient at its layer is `LOUDNESS` clip norms long, and at least `LOUDNESS`: what it has at
    other layers is nothing against that, and clipping leaves practically all of the clip norm to its own.

    Args:
        norm: between the layers of a convolution, as `ImageNetwork` takes it.
    """
    features = canaries + ORDINARY_FEATURES
    model, layer = _BUILD[path](features, records, norm)
    name = f"{layer}.weight_ih_l0" if path == "recurrent" else f"{layer}.weight"
    weight = model.get_parameter(name)
    scale = model.preprocessing.scale
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.arange(1.0, parameter.numel() + 1.0).sin().view_as(parameter))
        weight.zero_()
        scale[:canaries] = 1.0
    kinds = 4 if path == "convolution" else 1
    own = own_gradients(model, weight, features=features, records=records, kinds=kinds)
    lengths = own.flatten(1).norm(dim=1)
    with torch.no_grad():
        # The gradient grows with the input, and nothing else does: the weights there are 0.
        kind = torch.arange(canaries) % kinds
        scale[:canaries] = (lengths[kind] / (LOUDNESS * max(max_grad_norm, 1.0))).float()
    return Target(
        path,
        model,
        name,
        weight,
        own / lengths.view(-1, 1, 1),
        canaries=canaries,
        records=records,
        layers=sum(1 for part in model.modules() if any(True for _ in part.parameters(recurse=False))),
    )


def _preprocessing(features: int) -> TabularPreprocessing:
    return _registered(features, {"name": "logistic"}).preprocessing


def _registered(features: int, model: dict[str, Any]) -> ClinicalModel:
    """Build a model of the registry over numeric features."""
    return build_model(
        parse_study(
            {
                "schema": "consilium/study/1",
                "study": "canaries",
                "title": "Canaries",
                "intended_use": "The audit of a privacy mechanism.",
                "cohort": {},
                "features": [
                    {"name": f"f{i}", "kind": "numeric", "unit": "1", "range": [-1, 1]}
                    for i in range(features)
                ],
                "label": {"name": "event", "positive": "event"},
                "model": model,
                "training": {"steps": 1, "sample_rate": 1, "learning_rate": 1, "normalisation": "declared"},
                "privacy": {"mode": "none"},
                "rounds": 1,
                "min_sites": 1,
            }
        )
    )
