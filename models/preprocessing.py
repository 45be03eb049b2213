"""Clinical preprocessing as a layer: clamp to the plausible range, impute, standardise, one-hot."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from contracts.study import CategoricalFeature, NumericFeature, StudyProtocol


class TabularPreprocessing(nn.Module):
    """Turns raw features into network inputs; its constants travel in the state dict.

    Numeric features are clamped to the protocol's range, standardised by `center` and `scale` (federated
    statistics, or the middle and a quarter of the range when declared), and a missing one becomes the
    mean, 0. Categorical features are one-hot without their first level; a missing or unknown level is all
    zeros. With `missing_indicators` one column per feature says whether it was missing.

    Shapes: x float32 [..., features], NaN = missing -> float32 [..., width].

    Attributes:
        width: columns of the output.
        sources: for every column of the output, the index of the feature it comes from.
    """

    center: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, protocol: StudyProtocol) -> None:
        super().__init__()
        features = protocol.features
        numeric = [f for f in features if isinstance(f, NumericFeature)]
        categorical = [f for f in features if isinstance(f, CategoricalFeature)]
        self.numeric_columns = [i for i, f in enumerate(features) if isinstance(f, NumericFeature)]
        self.categorical_columns = [i for i, f in enumerate(features) if isinstance(f, CategoricalFeature)]
        self.levels = [list(f.levels[1:]) for f in categorical]
        self.missing_indicators = protocol.model.missing_indicators
        low = torch.tensor([f.range[0] for f in numeric], dtype=torch.float32)
        high = torch.tensor([f.range[1] for f in numeric], dtype=torch.float32)
        # The range is the protocol's and is rebuilt from it; only the statistics are state.
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)
        self.register_buffer("center", (low + high) / 2)
        self.register_buffer("scale", (high - low) / 4)
        coded = zip(self.categorical_columns, self.levels, strict=True)
        self.sources = [*self.numeric_columns, *(column for column, levels in coded for _ in levels)]
        if self.missing_indicators:
            self.sources += range(len(features))
        self.width = len(self.sources)
        if protocol.training.class_weights == "balanced":
            # Share of positive records: weighs the loss, plays no part in `forward`, travels with the rest.
            self.register_buffer("prevalence", torch.tensor([0.5]))

    def forward(self, x: Tensor) -> Tensor:
        """Map raw features [..., features] to network inputs [..., width]."""
        parts = []
        if self.numeric_columns:
            raw = x[..., self.numeric_columns]
            standard = (torch.clamp(raw, self.low, self.high) - self.center) / self.scale
            parts.append(torch.where(torch.isnan(raw), torch.zeros_like(raw), standard))
        for column, levels in zip(self.categorical_columns, self.levels, strict=True):
            value = x[..., column].unsqueeze(-1)
            parts.append((value == torch.tensor(levels, dtype=x.dtype, device=x.device)).to(x.dtype))
        if self.missing_indicators:
            parts.append(torch.isnan(x).to(x.dtype))
        return torch.cat(parts, dim=-1)
