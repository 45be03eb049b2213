"""`dossier/monitoring.json`: how the deployed model is watched, and the numbers it is compared with."""

from __future__ import annotations

from typing import Any

from contracts.dossier import Monitoring
from release.dossier.pointers import open_value
from release.dossier.writing import AUTHOR, json_bytes, listed, stated
from release.facts import ReleaseFacts

FILE = "dossier/monitoring.json"

_BASELINE = ("auroc", "accuracy", "brier", "calibration_slope", "calibration_intercept", "alert_rate")
_BY_DESIGN = (
    "Count rows with out_of_range true: a rising share means patients or units that training did not see.",
    "Run the golden rows (golden.json) after every update of the machine or the runtime.",
    "Watch the share of alerts at the threshold; it needs no outcome and moves first.",
)


def monitoring(facts: ReleaseFacts) -> bytes:
    """Return the monitoring plan (Regulation (EU) 2024/1689 article 72; ISO 14971:2019 clause 10)."""
    plan = facts.protocol.dossier.monitoring or Monitoring()
    interval = plan.interval_days
    pooled = facts.metrics.get("pooled", {})
    baseline: dict[str, Any] = {name: pooled[name] for name in _BASELINE if name in pooled}
    where = f"{AUTHOR}: `dossier.monitoring.interval_days`"
    return json_bytes(
        {
            "source": "Regulation (EU) 2024/1689 article 72; ISO 14971:2019 clause 10",
            "responsible": stated(
                plan.responsible, "dossier.monitoring.responsible", "Who watches the model."
            ),
            "interval_days": interval or open_value("How often the model is looked at, in days.", where),
            "measures": listed(plan.measures, "dossier.monitoring.measures", "What is measured."),
            "triggers": listed(
                plan.triggers, "dossier.monitoring.triggers", "What leads to investigation or withdrawal."
            ),
            "reporting": stated(
                plan.reporting, "dossier.monitoring.reporting", "To whom incidents are reported."
            ),
            "baseline_at_release": baseline
            or open_value("Pooled performance.", "the hospitals, which withheld it under the minimum cell"),
            "decision_threshold": facts.decision_threshold,
            "what_the_release_offers": list(_BY_DESIGN),
        }
    )
