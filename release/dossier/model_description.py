"""`dossier/model_description.md`: the model as it was built, and why, as people wrote it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from contracts.study import CategoricalFeature, Feature, StudyProtocol
from release.dossier.pointers import OPEN_MARK
from release.dossier.statements import field
from release.dossier.writing import document, human_section, section, table
from release.facts import ReleaseFacts

FILE = "dossier/model_description.md"


def model_description(facts: ReleaseFacts, files: Mapping[str, bytes]) -> bytes:
    """Return the description of the model.

    Args:
        files: `model.onnx`, whose stored numbers are counted, and `dp_statement.json` where they exist.
    """
    protocol = facts.protocol
    return document(
        f"Model description of {facts.release_id}",
        [
            section("Version", _version(facts)),
            section("Objectives", _objectives(facts)),
            section("Model", _model(protocol, files)),
            human_section("Rationale", field(protocol.dossier, "model_description")),
            section("Inputs", _inputs(protocol)),
            section("Outcome", _outcome(protocol)),
            section("Preprocessing", _preprocessing(protocol)),
            section("Missing and out-of-range values", _MISSING_VALUES),
            section("Output and decision threshold", _output(facts)),
            section("Data", _data(facts)),
            section("Training", _training(facts)),
            section("Privacy", privacy_sentence(facts, files)),
            section("Evaluation", _evaluation(protocol)),
            section("Interface", _INTERFACE),
            section("Software", _software(facts)),
        ],
    )


def privacy_sentence(facts: ReleaseFacts, files: Mapping[str, bytes]) -> str:
    """Say in one sentence what privacy training had, from `dp_statement.json` where it is there."""
    stated: dict[str, Any] = json.loads(files.get("dp_statement.json", b"{}"))
    mode = stated.get("mode", facts.protocol.privacy.mode)
    if mode == "none":
        return "Trained without differential privacy; no epsilon is stated and none may be claimed."
    epsilon, delta = stated.get("epsilon", facts.epsilon), stated.get("delta", facts.delta)
    unit = "one patient" if mode == "patient" else "one hospital with all its training patients"
    if epsilon is None:
        return f"{OPEN_MARK} Not every hospital stated an epsilon; see dp_statement.md."
    return (
        f"Differential privacy in training with epsilon at most {epsilon:.3f} at delta {delta:g}, where the "
        f"unit is {unit}; holdout patients are protected by suppression, not by epsilon (dp_statement.md)."
    )


def stored_numbers(onnx_file: bytes) -> int:
    """Count the floating-point numbers of an ONNX file: weights, normalisation, limits. Needs onnx."""
    import onnx

    floating = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)
    total = 0
    for tensor in onnx.load_model_from_string(onnx_file).graph.initializer:
        if tensor.data_type in floating:
            size = 1
            for length in tensor.dims:
                size *= length
            total += size
    return total


def _version(facts: ReleaseFacts) -> str:
    change = facts.change
    since = f"after {change.since} ({change.level}: {', '.join(change.changed) or 'nothing named'})"
    relation = "the product's first release" if change.level == "first" else since
    return (
        f"Release {facts.version} of {facts.product}, {relation}, by study {facts.protocol.study} "
        f"(protocol {facts.protocol.hash}), written {facts.created}."
    )


def _objectives(facts: ReleaseFacts) -> str:
    arms = facts.protocol.validation
    planned = [f"the score {arms.reference.name!r}"] if arms.reference else []
    planned += ["each hospital's own model"] if arms.local_model else []
    compared = f" It is compared with {' and '.join(planned)}." if planned else ""
    return (
        f"To develop one model with {len(facts.sites)} hospitals, whose records stay where they are, and to "
        f"evaluate it on patients of the same hospitals that training never saw.{compared}"
    )


def _model(protocol: StudyProtocol, files: Mapping[str, bytes]) -> str:
    model = protocol.model
    parts = [f"hidden layers {model.hidden}"] if model.hidden else []
    parts += [f"{model.time_steps} time steps"] if model.time_steps else []
    parts += [f"image {model.image}, normalisation {model.norm}"] if model.image else []
    parts += ["with missing indicators"] if model.missing_indicators else []
    built = f"Architecture `{model.name}`" + (f": {', '.join(parts)}." if parts else ".")
    if "model.onnx" in files:
        number = stored_numbers(files["model.onnx"])
        built += f" model.onnx stores {number:,} floating-point numbers (weights, normalisation and limits)."
    return built


def _inputs(protocol: StudyProtocol) -> str:
    rows = [[f.name, _kind(f), f.unit, _range(f), f.description or "-"] for f in protocol.features]
    return table(["input", "kind", "unit", "accepted values", "meaning"], rows)


def _kind(feature: Feature) -> str:
    return "categorical" if isinstance(feature, CategoricalFeature) else "numeric"


def _range(feature: Feature) -> str:
    if isinstance(feature, CategoricalFeature):
        return ", ".join(f"{level:g}" for level in feature.levels)
    return f"{feature.range[0]:g} to {feature.range[1]:g}"


def _outcome(protocol: StudyProtocol) -> str:
    label = protocol.label
    return table(
        ["outcome", "positive means", "prevalence that a plausible hospital has"],
        [[label.name, label.positive, f"{label.prevalence[0]:g} to {label.prevalence[1]:g}"]],
    )


def _preprocessing(protocol: StudyProtocol) -> str:
    constants = (
        "the federation's mean and standard deviation, computed once before training"
        if protocol.training.normalisation == "federated"
        else "the middle and a quarter of the declared range"
    )
    indicators = (
        " One further column for each input says whether it was missing."
        if protocol.model.missing_indicators
        else ""
    )
    checks = ", ".join(protocol.quality.blocking)
    return (
        "Inside model.onnx: a numeric input is clamped to its accepted range and standardised by "
        f"{constants}; a missing one becomes the mean. A categorical input becomes one column for each level "
        f"but the first; a missing one is all zeros.{indicators} Before training, at each hospital: records "
        f"are checked for {checks}; a failed check keeps the hospital out of the next plan."
    )


_MISSING_VALUES = (
    "NaN is a missing value and is imputed as above. `out_of_range` is true for a row in which a value lies "
    "outside its accepted range, is no declared level, or every input is missing: training could not have "
    "seen such a patient, and the probability must not be used. golden.json holds an example of each."
)


def _output(facts: ReleaseFacts) -> str:
    return (
        f"`probability` (0 to 1) that {facts.protocol.label.name} is positive, and `out_of_range`. "
        f"A patient counts as positive from {facts.decision_threshold:g}. {facts.threshold_source}"
    )


def _data(facts: ReleaseFacts) -> str:
    declared = {p.site: p.declared_size for p in facts.site_privacy}
    cohorts = {d.site: d.cohort for d in facts.lineage.data}
    rows = [
        [site, str(declared.get(site, "-")), (cohorts.get(site) or "-")[:16]]
        for site in sorted(declared | cohorts | dict.fromkeys(facts.sites, 0))
    ]
    head = ["hospital", "patients in training, as declared (two figures)", "cohort (first 16 of its digest)"]
    return table(head, rows) + "\n\nThe split into training and holdout is in dossier/split_attestation.json."


def _training(facts: ReleaseFacts) -> str:
    protocol = facts.protocol
    training = protocol.training
    return (
        f"Federated algorithm `{protocol.strategy.name}`, updates weighted by {protocol.strategy.weights} "
        f"sizes; {facts.rounds} rounds of {training.steps} steps at each hospital, {training.sampling} "
        f"sampling of patients at rate {training.sample_rate:g}, learning rate {training.learning_rate:g}, "
        f"momentum {training.momentum:g}, weight decay {training.weight_decay:g}; class weights: "
        f"{training.class_weights}. Settings were fixed in the protocol before training."
    )


def _evaluation(protocol: StudyProtocol) -> str:
    plan = protocol.validation
    lines = [
        "Each hospital computes on its own holdout: discrimination (AUROC), accuracy, Brier score, "
        "calibration slope and intercept, and these by subgroup. They are pooled by random-effects "
        "meta-analysis, with the differences between hospitals stated. No score of a patient leaves.",
    ]
    if plan.net_benefit is not None:
        lines.append(
            f"Net benefit is reported for thresholds from {plan.net_benefit.low:g} to "
            f"{plan.net_benefit.high:g}."
        )
    lines.append("Gates, fixed before training:\n")
    lines.append("\n".join(f"- {gate.title}" for gate in protocol.gates) or "- none")
    return "\n".join(lines)


_INTERFACE = (
    "The release is a folder of files. model.onnx is one file for an ONNX runtime: input `features` float32 "
    "[patients, inputs] in the order and units above; outputs `probability` float32 [patients] and "
    "`out_of_range` bool [patients]. It opens no connection and keeps nothing between calls. It has no user "
    "interface: the deploying organisation's system shows the number."
)


def _software(facts: ReleaseFacts) -> str:
    lineage = facts.lineage
    return table(
        ["part", "version"],
        [
            ["consilium", facts.code_version],
            ["commit of the coordinator's checkout", lineage.code_commit or "not a clean checkout"],
            ["environment (digest of installed packages)", lineage.environment],
            ["trained weights (digest)", facts.model],
        ],
    )
