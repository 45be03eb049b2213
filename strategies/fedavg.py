"""Federated averaging: McMahan et al. 2017, Communication-efficient learning of deep networks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np

from contracts.study import StudyProtocol
from strategies.interface import (
    Admitted,
    Global,
    LocalTraining,
    SiteUpdate,
    Tensors,
    weighted_mean,
)


class FedAvg:
    """Sites send the change of the parameters; the coordinator adds `server_learning_rate` x its mean.

    With a server learning rate of 1 this is algorithm 1 of the paper. The weights are the protocol's:
    declared sizes or equal, never a count of patients.
    """

    name = "fedavg"
    dp: Literal["patient", "none"] = "patient"

    def site(
        self, protocol: StudyProtocol, model: Tensors, kept: Tensors, train: LocalTraining
    ) -> SiteUpdate:
        """Train from the global model and send the difference."""
        reached = train(model)
        return SiteUpdate(sent={name: reached[name] - model[name] for name in reached})

    def coordinator(self, protocol: StudyProtocol, state: Global, updates: Iterable[Admitted]) -> Global:
        """Add the weighted mean of the differences."""
        mean = weighted_mean(updates, self.expected(protocol, state.model))
        rate = protocol.strategy.server_learning_rate
        model = dict(state.model)
        for name, change in mean.items():
            model[name] = (state.model[name] + rate * change).astype(np.float32)
        return Global(model=model)

    def expected(self, protocol: StudyProtocol, model: Tensors) -> dict[str, tuple[int, ...]]:
        """One tensor for each parameter of the network."""
        return {name: array.shape for name, array in model.items() if name.startswith("network.")}
