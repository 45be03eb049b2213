"""Models over a picture: a small convolutional network."""

from __future__ import annotations

import math

from torch import Tensor, nn

from contracts.study import NumericFeature, StudyProtocol
from models.interface import ClinicalModel
from models.preprocessing import TabularPreprocessing


class ImageNetwork(nn.Module):
    """Two convolutions of stride 2 with normalisation and tanh, the mean over the picture, a linear head.

    Args:
        shape: channels, height and width of the input.
        hidden: channels of the two convolutions.
        norm: after each: `group`, `batch` (couples the patients of a batch, so only without differential
            privacy; it averages over unused records as well) or `none`.

    Shapes: float32 [..., channels x height x width], row by row -> float32 [..., 1].
    """

    def __init__(self, shape: tuple[int, int, int], hidden: list[int], norm: str) -> None:
        super().__init__()
        self.shape = shape
        channels, height, width = shape
        layers: list[nn.Module] = []
        for wider in hidden:
            height, width = (height + 1) // 2, (width + 1) // 2
            layers += [nn.Conv2d(channels, wider, kernel_size=3, stride=2, padding=1)]
            layers += [*_norm(norm, wider, height * width), nn.Tanh()]
            channels = wider
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return one logit for every picture."""
        # The leading dimensions become one, patients first.
        logits: Tensor = self.layers(inputs.reshape(-1, *self.shape))
        return logits.reshape(*inputs.shape[:-1], 1)


def cnn(protocol: StudyProtocol) -> ClinicalModel:
    """Convolutional network (`hidden`: channels of its two convolutions, 16 and 32 when not given).

    Missing indicators are further channels of the picture.
    """
    image = protocol.model.image
    if image is None:
        raise ValueError("image is not set: model cnn needs [height, width] or [channels, height, width]")
    if math.prod(image) != len(protocol.features):
        raise ValueError(
            f"image {image}: {math.prod(image)} values, the study has {len(protocol.features)} features"
        )
    coded = [f.name for f in protocol.features if not isinstance(f, NumericFeature)]
    if coded:
        raise ValueError(f"feature {coded[0]!r} is categorical: model cnn takes numeric features only")
    hidden = protocol.model.hidden or [16, 32]
    if len(hidden) != 2:
        raise ValueError(f"hidden {hidden}: model cnn has two convolutions, expected two numbers of channels")
    preprocessing = TabularPreprocessing(protocol)
    height, width = image[-2:]
    channels = preprocessing.width // (height * width)
    network = ImageNetwork((channels, height, width), hidden, protocol.model.norm)
    return ClinicalModel(preprocessing, network)


def norm_groups(channels: int) -> int:
    """Into how many groups a GroupNorm parts `channels`: up to four of equal size, of two channels or more.

    A channel alone has no spread over a picture of one colour, and dividing by it makes rounding errors
    large: measured, 3e-6 between torch and onnxruntime.
    """
    return max(
        groups
        for groups in (1, 2, 3, 4)
        if groups == 1 or (channels % groups == 0 and channels >= 2 * groups)
    )


def _norm(norm: str, channels: int, positions: int) -> list[nn.Module]:
    """The normalisation of `channels` maps with `positions` values each."""
    if norm == "none":
        return []
    groups = norm_groups(channels)
    # Over a single value a norm returns 0 whatever it is given, and torch refuses a batch of one.
    if positions * (1 if norm == "batch" else channels // groups) == 1:
        raise ValueError(f"norm {norm!r}: a map of {positions} value with {channels} channels, expected more")
    return [nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(groups, channels)]
