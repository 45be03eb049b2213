"""Which strategies there are."""

from __future__ import annotations

from contracts.errors import ConsiliumError
from contracts.study import StudyProtocol
from strategies.fedadam import FedAdam
from strategies.fedavg import FedAvg
from strategies.interface import FederatedStrategy

STRATEGIES: dict[str, FederatedStrategy] = {s.name: s for s in (FedAvg(), FedAdam())}


def strategy_of(protocol: StudyProtocol) -> FederatedStrategy:
    """Return the protocol's strategy.

    Raises:
        ConsiliumError: E101, unknown; E406, it cannot keep the privacy the protocol states.
    """
    name = protocol.strategy.name
    if name not in STRATEGIES:
        raise ConsiliumError("E101", f"field 'strategy.name': {name!r}, expected one of {sorted(STRATEGIES)}")
    strategy = STRATEGIES[name]
    if protocol.privacy.mode != "none" and strategy.dp == "none":
        raise ConsiliumError("E406", f"field 'strategy.name': {name!r} is marked dp: none")
    return strategy
