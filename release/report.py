"""The validation report: `validation.json`, and one HTML page that a clinician can read, print and keep."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

from contracts.study import StudyProtocol
from release.facts import ReleaseFacts
from release.figures import Row, calibration_plot, forest_plot
from release.page import PAGE

_COLUMNS = (
    ("auroc", "AUROC"),
    ("accuracy", "Accuracy"),
    ("brier", "Brier"),
    ("calibration_slope", "Calibration slope"),
    ("calibration_intercept", "Calibration intercept"),
)


def validation_document(facts: ReleaseFacts) -> dict[str, Any]:
    """Return `validation.json`: `pooled` and every hospital's name at the top, as in `consilium simulate`.

    What is not a hospital's stands under keys with a leading underscore, which no hospital's name can have.
    """
    return {
        **facts.metrics,
        "_study": {
            "study": facts.protocol.study,
            "version": facts.version,
            "protocol_hash": facts.protocol.hash,
            "model": facts.model,
            "decision_threshold": facts.decision_threshold,
            "decision_threshold_source": facts.threshold_source,
            "created": facts.created,
        },
        "_gates": [gate.model_dump() for gate in facts.gates],
        "_parity": {r.site: r.parity.model_dump() for r in facts.verification if r.parity},
        "_achievable_auroc": dict(facts.achievable_auroc),
    }


def validation_page(facts: ReleaseFacts) -> str:
    """Return `validation.html`: self-contained, no script, no request to anywhere."""
    import jinja2

    pooled = facts.metrics["pooled"]
    sites = {name: tree for name, tree in facts.metrics.items() if name != "pooled"}
    curves = {name: tree["calibration"] for name, tree in sites.items() if tree.get("calibration")}
    groups = list(_group_rows(facts.metrics))
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"number": _number, "interval": _interval}
    return environment.from_string(PAGE).render(
        facts=facts,
        protocol=facts.protocol,
        decided=_decided(facts),
        columns=_COLUMNS,
        pooled=pooled,
        sites=sites,
        suppressed=[name for name, tree in sites.items() if tree.get("suppressed")],
        cell=facts.protocol.cohort.minimum_cell,
        parity=[(r.site, r.parity) for r in facts.verification if r.parity],
        forest=_data_uri(forest_plot(_forest_rows(facts.metrics), "AUROC with 95 % interval")),
        calibration=_data_uri(calibration_plot(curves)) if curves else None,
        subgroups=_data_uri(forest_plot(groups, "pooled AUROC with 95 % interval")) if groups else None,
        codes=_codes(facts.protocol),
    )


def _forest_rows(metrics: Mapping[str, Any]) -> list[Row]:
    largest = max([tree.get("n") or 0 for tree in metrics.values()], default=1) or 1
    rows = []
    for name, tree in metrics.items():
        n = tree.get("n")
        rows.append(
            Row(
                name=f"{name}  (n = {n})" if n else name,
                metric=tree.get("auroc"),
                reason="withheld (minimum cell)" if tree.get("suppressed") else "not estimable",
                weight=(n or 0) / largest,
                pooled=name == "pooled",
            )
        )
    return sorted(rows, key=lambda row: row.pooled)  # the pooled diamond comes last


def _group_rows(metrics: Mapping[str, Any]) -> Iterator[Row]:
    for subgroup, groups in metrics["pooled"].get("subgroups", {}).items():
        for group, tree in groups.items():
            yield Row(f"{subgroup}  {group}".replace(">=", "≥"), tree.get("auroc"), "withheld (minimum cell)")


def _decided(facts: ReleaseFacts) -> str:
    """The verdict at the top of the page."""
    if any(gate.passed is False for gate in facts.gates):
        return "failed"
    return "untestable" if any(gate.passed is None for gate in facts.gates) else "passed"


def _number(metric: Mapping[str, float] | None) -> str:
    """`0.812`, or a dash."""
    return f"{metric['value']:.3f}" if metric else "–"


def _interval(metric: Mapping[str, float] | None) -> str:
    """`0.780 to 0.841`, or nothing."""
    if not metric or "lower" not in metric or "upper" not in metric:
        return ""
    return f"{metric['lower']:.3f} to {metric['upper']:.3f}"


def _codes(protocol: StudyProtocol) -> list[str]:
    """What the levels of a subgroup mean, where the protocol says it."""
    return [
        f"{subgroup.name}: {feature.description}"
        for subgroup in protocol.subgroups
        for feature in protocol.features
        if feature.name == subgroup.feature and feature.kind == "categorical" and feature.description
    ]


def _data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
