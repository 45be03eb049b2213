"""Federated averaging: McMahan et al. 2017, Communication-efficient learning of deep networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from contracts.study import StudyProtocol
from strategies.interface import (
    Admitted,
    Global,
    LocalTraining,
    Shapes,
    SiteUpdate,
    Tensors,
    shapes_of,
)
from strategies.robust import combine


class FedAvg:
    """Sites send the change of the parameters; the coordinator adds `server_learning_rate` x its mean.

    With a server learning rate of 1 and aggregation `mean` this is algorithm 1 of the paper; the protocol
    may ask for another average of the changes (`strategies.robust`). The weights are the protocol's:
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

    def coordinator(self, protocol: StudyProtocol, state: Global, updates: Sequence[Admitted]) -> Global:
        """Add the average of the differences that the protocol asks for."""
        model = dict(state.model)
        for name, change in combine(protocol, updates, self.expected(protocol, shapes_of(model))).items():
            change *= np.float32(protocol.strategy.server_learning_rate)
            change += model[name]  # in place: a large model is held twice at most
            model[name] = change
        return Global(model=model)

    def expected(self, protocol: StudyProtocol, model: Shapes) -> Shapes:
        """One tensor for each parameter of the network."""
        return {name: shape for name, shape in model.items() if name.startswith("network.")}
