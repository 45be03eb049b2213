"""What the alerts at one threshold are worth: rates of the two-by-two table with Wilson's intervals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from contracts.evaluation import Estimate
from validation.proportion import wilson


def operating_point(
    probability: NDArray[np.float64], label: NDArray[np.int64], threshold: float
) -> dict[str, Estimate]:
    """Return sensitivity, specificity, ppv, npv and alert_rate; an alert is probability >= threshold.

    Each is a proportion with Wilson's 95 % interval (JASA 22, 1927; Altman et al., Statistics with
    Confidence, 2nd ed. 2000, ch. 10). One whose denominator is zero is absent: no ppv without an alert, no
    npv without a patient below the threshold, no sensitivity without an event, no specificity without a
    non-event. ppv and npv hold at the prevalence of these patients only.

    Args:
        probability: float64 [patients].
        label: int64 [patients], 0 or 1.
        threshold: of the protocol, on the scale of `probability`.
    """
    alert, event = probability >= threshold, label == 1
    true_alerts, alerts = int((alert & event).sum()), int(alert.sum())
    events, n = int(event.sum()), len(label)
    true_silent = n - alerts - (events - true_alerts)
    counts = {
        "sensitivity": (true_alerts, events),
        "specificity": (true_silent, n - events),
        "ppv": (true_alerts, alerts),
        "npv": (true_silent, n - alerts),
        "alert_rate": (alerts, n),
    }
    return {name: wilson(hits, of) for name, (hits, of) in counts.items() if of > 0}
