"""The model as a CycloneDX 1.6 component with its model card, and each hospital's data as a component.

Facts fill the parameters and the measured performance. Considerations are a person's: what nobody wrote is
left out of the card, and stands as open in conformance.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from contracts.study import CategoricalFeature, StudyProtocol
from release.facts import ReleaseFacts

# Family and architecture of each entry of the model registry, as words of the field.
FAMILIES = {
    "logistic": ("generalised linear model", "logistic regression"),
    "mlp": ("neural network", "multilayer perceptron"),
    "lstm": ("recurrent neural network", "LSTM"),
    "multitask": ("neural network", "multilayer perceptron with one head for each outcome"),
    "cnn": ("convolutional neural network", "CNN"),
}


def model_reference(facts: ReleaseFacts) -> str:
    """Return the reference of the model within the bill of materials."""
    return f"model/{facts.release_id}"


def data_reference(site: str) -> str:
    """Return the reference of a hospital's data."""
    return f"data/{site}"


def model_component(facts: ReleaseFacts, model_sha256: str) -> dict[str, Any]:
    """Return the component `machine-learning-model`.

    Args:
        model_sha256: of model.onnx.
    """
    return {
        "type": "machine-learning-model",
        "bom-ref": model_reference(facts),
        "name": facts.product,
        "version": facts.version,
        "description": facts.protocol.title,
        "scope": "required",
        "hashes": [{"alg": "SHA-256", "content": model_sha256}],
        "modelCard": model_card(facts),
    }


def model_card(facts: ReleaseFacts) -> dict[str, Any]:
    """Return the model card: parameters, measured performance, considerations."""
    measured = list(_performance(facts.metrics))
    card: dict[str, Any] = {
        "bom-ref": f"model-card/{facts.release_id}",
        "modelParameters": _parameters(facts),
        "quantitativeAnalysis": {"performanceMetrics": measured} if measured else None,
        "considerations": _considerations(facts),
    }
    return _written(card)


def data_components(facts: ReleaseFacts) -> list[dict[str, Any]]:
    """Return one component of type `data` for each hospital: digests and custody, and no count."""
    known = {data.site: data for data in facts.lineage.data}
    found = []
    for site in sorted({*facts.sites, *known}):
        data = known.get(site)
        digests = {
            "data_sheet": data.data_sheet if data else None,
            "cohort": data.cohort if data else None,
            "data_version": data.data_version if data else None,
            "policy": data.policy if data else None,
        }
        dataset = {
            "type": "dataset",
            "name": f"cohort of {site} for study {facts.protocol.study}",
            "classification": "confidential",
            "sensitiveData": ["Health records of single patients; they stay at the hospital."],
            "description": facts.protocol.cohort.description or None,
            "governance": {"custodians": [{"organization": {"name": site}}]},
        }
        part = {
            "type": "data",
            "bom-ref": data_reference(site),
            "name": f"{facts.protocol.study}/{site}",
            "data": [_written(dataset)],
            "properties": properties(digests),
        }
        found.append(_written(part))
    return found


def properties(values: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return CycloneDX properties of this project's namespace; None is left out."""
    return [
        {"name": f"consilium:{name}", "value": f"{value:.10g}" if isinstance(value, float) else str(value)}
        for name, value in sorted(values.items())
        if value is not None
    ]


def _parameters(facts: ReleaseFacts) -> dict[str, Any]:
    protocol = facts.protocol
    family, architecture = FAMILIES.get(protocol.model.name, (protocol.model.name, protocol.model.name))
    if protocol.model.hidden:
        architecture += f", hidden layers {protocol.model.hidden}"
    return {
        "approach": {"type": "supervised"},
        "task": "binary classification",
        "architectureFamily": family,
        "modelArchitecture": f"{architecture}, trained by {protocol.strategy.name} over hospitals",
        "datasets": [{"ref": part["bom-ref"]} for part in data_components(facts)],
        "inputs": [{"format": text} for text in _inputs(protocol)],
        "outputs": [
            {"format": f"probability: float32 [patients], risk of {protocol.label.name} from 0 to 1"},
            {"format": "out_of_range: bool [patients], true where training saw no such patient"},
        ],
    }


def _inputs(protocol: StudyProtocol) -> Iterator[str]:
    yield f"features: float32 [patients, {len(protocol.features)}], NaN where missing, columns as follows"
    for feature in protocol.features:
        if isinstance(feature, CategoricalFeature):
            kind = f"one of {', '.join(f'{level:g}' for level in feature.levels)}"
        else:
            kind = f"{feature.range[0]:g} to {feature.range[1]:g}"
        yield f"{feature.name}: {kind}, in {feature.unit}"


def _performance(metrics: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name in sorted(metrics, key=lambda n: (n != "pooled", n)):
        where = "pooled over hospitals" if name == "pooled" else f"hospital {name}"
        yield from _measured(metrics[name], where)
        for subgroup, groups in sorted(metrics[name].get("subgroups", {}).items()):
            for group, found in sorted(groups.items()):
                yield from _measured(found, f"{where}, {subgroup} {group}")


def _measured(tree: Mapping[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """Every estimate of a tree; counts, curves and what the minimum cell withholds are none."""
    for metric, found in sorted(tree.items()):
        if not isinstance(found, Mapping) or not isinstance(found.get("value"), (int, float)):
            continue
        entry: dict[str, Any] = {"type": metric, "value": f"{found['value']:.6g}", "slice": where}
        if found.get("lower") is not None and found.get("upper") is not None:
            bounds = {"lowerBound": f"{found['lower']:.6g}", "upperBound": f"{found['upper']:.6g}"}
            entry["confidenceInterval"] = bounds
        yield entry


def _considerations(facts: ReleaseFacts) -> dict[str, Any]:
    protocol, dossier = facts.protocol, facts.protocol.dossier
    out_of_scope = [f"Out of scope: {dossier.out_of_scope}"] if _said(dossier.out_of_scope) else []
    considerations = {
        "users": [dossier.users] if _said(dossier.users) else [],
        "useCases": [text for text in (protocol.intended_use, dossier.use_of_output) if _said(text)],
        "technicalLimitations": [*(text for text in dossier.limitations if _said(text)), *out_of_scope],
        "performanceTradeoffs": list(_tradeoffs(facts)),
        "ethicalConsiderations": list(_ethics(protocol)),
        "fairnessAssessments": list(_fairness(protocol)),
    }
    return _written(considerations)


def _tradeoffs(facts: ReleaseFacts) -> Iterator[str]:
    """What the numbers say; whether the trade is a good one is for people."""
    pooled = facts.metrics.get("pooled", {})
    shown = [
        f"{name} {pooled[name]['value']:.3f}"
        for name in ("sensitivity", "specificity", "ppv", "npv", "alert_rate")
        if pooled.get(name)
    ]
    if shown:
        yield f"At the decision threshold {facts.decision_threshold:g}, pooled: {', '.join(shown)}."
    if facts.epsilon is not None:
        yield (
            f"Trained with noise for differential privacy (epsilon {facts.epsilon:.3f} at delta "
            f"{facts.delta:g}); less noise would have cost more privacy."
        )


def _ethics(protocol: StudyProtocol) -> Iterator[dict[str, str]]:
    if _said(protocol.dossier.ethics):
        yield {"name": f"Ethics review: {protocol.dossier.ethics}"}
    for risk in protocol.dossier.risks:
        entry = {"name": f"{risk.id}: {risk.hazard} Harm: {risk.harm}"}
        if risk.controls:
            entry["mitigationStrategy"] = " ".join(control.description for control in risk.controls)
        yield entry


def _fairness(protocol: StudyProtocol) -> Iterator[dict[str, str]]:
    groups = ", ".join(subgroup.name for subgroup in protocol.subgroups)
    if _said(protocol.dossier.bias):
        about = {"groupAtRisk": f"groups of {groups}"} if groups else {}
        yield about | {"mitigationStrategy": str(protocol.dossier.bias)}
    for gate in protocol.gates:
        if gate.subgroup is not None:
            fixed = f"Acceptance gate, fixed before training: {gate.title}"
            yield {"groupAtRisk": f"groups of {gate.subgroup}", "mitigationStrategy": fixed}


def _said(text: str | None) -> bool:
    return bool(text and text.strip())


def _written(value: dict[str, Any]) -> dict[str, Any]:
    """The fields that hold something."""
    return {key: found for key, found in value.items() if found not in (None, [], {}, "")}
