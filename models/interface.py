"""What every model of the registry is: preprocessing, then a network, then the logit of the label."""

from __future__ import annotations

from torch import Tensor, nn

from models.preprocessing import TabularPreprocessing


class ClinicalModel(nn.Module):
    """Preprocessing followed by a network with one logit.

    What is trained lies under `network.`, the statistics of round 0 under `preprocessing.`.

    Shapes: x float32 [..., features] in raw units, NaN = missing -> logits float32 [...].
    """

    def __init__(self, preprocessing: TabularPreprocessing, network: nn.Module) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return the logit of the label's positive class: what is evaluated and exported."""
        logits: Tensor = self.network(self.preprocessing(x))
        return logits.squeeze(-1)

    def all_logits(self, x: Tensor) -> Tensor:
        """Return what is trained: float32 [..., labels], the label first, then the auxiliary ones."""
        logits: Tensor = self(x)
        return logits.unsqueeze(-1)
