"""FedAdam: Reddi et al. 2021, Adaptive federated optimization, algorithm 2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from contracts.study import StudyProtocol
from strategies.fedavg import FedAvg
from strategies.interface import Admitted, Global, Tensors, shapes_of
from strategies.robust import combine


class FedAdam(FedAvg):
    """The site's half of FedAvg; at the coordinator their average is Adam's pseudo-gradient.

    The first and second moments are the coordinator's kept state, stored with every round. As in the
    paper there is no bias correction, and `tau` bounds the step of a parameter that hardly moves.
    """

    name = "fedadam"

    def coordinator(self, protocol: StudyProtocol, state: Global, updates: Sequence[Admitted]) -> Global:
        """One Adam step along the average of the differences that the protocol asks for."""
        settings = protocol.strategy
        mean = combine(protocol, updates, self.expected(protocol, shapes_of(state.model)))
        model, optimiser = dict(state.model), {}
        for name, change in mean.items():
            first: np.ndarray = state.optimiser.get(f"first.{name}", np.zeros_like(change))
            second: np.ndarray = state.optimiser.get(f"second.{name}", np.full_like(change, settings.tau**2))
            first = settings.beta1 * first + (1 - settings.beta1) * change
            second = settings.beta2 * second + (1 - settings.beta2) * change**2
            step = settings.server_learning_rate * first / (np.sqrt(second) + settings.tau)
            model[name] = (state.model[name] + step).astype(np.float32)
            optimiser[f"first.{name}"], optimiser[f"second.{name}"] = first, second
        return Global(model=model, optimiser=_rounded(optimiser))


def _rounded(tensors: Tensors) -> Tensors:
    """Store moments as float32, as the model is."""
    return {name: array.astype(np.float32) for name, array in tensors.items()}
