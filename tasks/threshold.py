"""Closing the histogram exchange: the decision threshold is found, recorded and locked in the head."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from contracts.errors import ConsiliumError
from contracts.study import StudyProtocol
from contracts.update import UpdateEnvelope
from privacy.histogram import Threshold
from strategies.threshold import HISTOGRAM, summed_histogram, threshold_from
from tasks.aggregate import admitted_file
from tasks.exchange import DirectoryExchange
from tasks.home import CoordinatorHome
from tasks.store import put_tensors


@dataclass(frozen=True)
class Decided:
    """What a histogram exchange gave.

    Attributes:
        digest: of the sum and the threshold, in the exchange: what a replay must find.
        threshold: None when the histogram could not decide it.
        undecided: why it could not (detail of E427).
    """

    digest: str
    threshold: Threshold | None
    undecided: str | None = None

    def record(self, protocol: StudyProtocol) -> dict[str, Any]:
        """What the round's record says of it."""
        rule = protocol.threshold_rule
        assert rule is not None
        found = asdict(self.threshold) if self.threshold else {"undecided": self.undecided}
        return {"histogram": self.digest, "threshold": {"rule": rule.model_dump(exclude_none=True)} | found}


def decide_threshold(
    home: CoordinatorHome,
    protocol: StudyProtocol,
    updates: list[UpdateEnvelope],
    noise_multiplier: float | None,
) -> Decided:
    """Sum the admitted histograms and read the threshold off; the same updates give the same bytes."""
    exchange = DirectoryExchange(home.exchange)
    admitted = [admitted_file(exchange, e, 1.0) for e in sorted(updates, key=lambda e: e.site)]
    return decide_from(home, protocol, summed_histogram(admitted), noise_multiplier, len(admitted))


def decide_from(
    home: CoordinatorHome,
    protocol: StudyProtocol,
    total: np.ndarray,
    noise_multiplier: float | None,
    sites: int,
) -> Decided:
    """Read the threshold off the sum of so many hospitals' histograms."""
    rule = protocol.threshold_rule
    assert rule is not None
    threshold, undecided = None, None
    try:
        threshold = threshold_from(total, rule, noise_multiplier, sites)
    except ConsiliumError as error:
        undecided = error.detail
    value = np.array([] if threshold is None else [threshold.value], dtype=np.float64)
    digest = put_tensors(home, {HISTOGRAM: total, "threshold": value})
    return Decided(digest, threshold, undecided)
