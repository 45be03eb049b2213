"""`dossier/chai.xml`: CHAI Applied Model Card v0.2.

Source: Coalition for Health AI, schema of the applied model card, version v0.2. The schema demands every
text, so what nobody wrote stands there as `OPEN: not written`, with the field in which it belongs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from xml.etree import ElementTree

from release.dossier.statements import field, limitations, says_no_reason
from release.facts import ReleaseFacts

NAMESPACE = "https://mc.chai.org/v0.2/schema.xsd"
OPEN = "OPEN: not written"
# XML 1.0 has no spelling for these characters.
_NOT_XML = re.compile(r"[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

# Fields of the dossier that the card quotes.
FIELDS = (
    *("manufacturer", "contact", "setting", "users", "use_of_output", "patients", "out_of_scope"),
    *("limitations", "bias", "ethics", "maintenance", "security", "funding", "patient_involvement"),
)
# What it asks for beyond them, by the statement `chai.<name>`: element of the card, and what it says.
STATEMENTS = {
    "availability": ("ReleaseInfo/GlobalAvailability", "Where in the world it is available"),
    "clinical_risk_level": ("Warnings/ClinicalRiskLevel", "Clinical risk level"),
    "usefulness_interpretation": (
        "KeyMetrics/UsefulnessUsabilityEfficacy/Interpretation",
        "What the numbers on usefulness mean for patients",
    ),
    "fairness_interpretation": (
        "KeyMetrics/FairnessEquity/Interpretation",
        "What the numbers by subgroup mean for patients",
    ),
    "safety_interpretation": (
        "KeyMetrics/SafetyReliability/Interpretation",
        "What the numbers on calibration and alerts mean for patients",
    ),
    "publications": (
        "Resources/PeerReviewedPublications",
        "Peer-reviewed publications, or that there are none",
    ),
    "consent": ("Resources/PatientConsentOrDisclosure", "What patients are told or asked"),
    "bibliography": ("Bibliography", "Literature"),
}

_USEFUL = ("auroc", "auprc", "sensitivity", "specificity", "ppv", "npv", "accuracy", "net_benefit")
_SAFE = ("brier", "ece", "calibration_slope", "calibration_intercept", "observed_expected", "alert_rate")
_TEST_TYPE = "Retrospective, on holdout patients of the training hospitals"
_SOURCE = "Each hospital's own records, which stay there; {} hospitals took part."

Node = ElementTree.Element


def chai(facts: ReleaseFacts) -> bytes:
    """Return the card; the same facts give the same bytes."""
    root = ElementTree.Element("AppliedModelCard", {"xmlns": NAMESPACE})
    for name, section in (
        ("BasicInfo", _basic(facts)),
        ("ReleaseInfo", _release(facts)),
        ("ModelSummary", _summary(facts)),
        ("UsesAndDirections", _uses(facts)),
        ("Warnings", _warnings(facts)),
    ):
        _fill(ElementTree.SubElement(root, name), section)
    trust = ElementTree.SubElement(root, "TrustIngredients")
    _fill(ElementTree.SubElement(trust, "AISystemFacts"), _system(facts))
    _fill(ElementTree.SubElement(trust, "TransparencyInformation"), _transparency(facts))
    metrics = ElementTree.SubElement(root, "KeyMetrics")
    for name, about, results in (
        ("UsefulnessUsabilityEfficacy", "usefulness", _pooled(facts, _USEFUL)),
        ("FairnessEquity", "fairness", _fairness(facts)),
        ("SafetyReliability", "safety", _pooled(facts, _SAFE)),
    ):
        _key_metric(ElementTree.SubElement(metrics, name), facts, about, list(results))
    _fill(ElementTree.SubElement(root, "Resources"), _resources(facts))
    _text(ElementTree.SubElement(root, "Bibliography"), _statement(facts, "bibliography"))
    ElementTree.indent(root)
    data: bytes = ElementTree.tostring(root, encoding="UTF-8", xml_declaration=True)
    return data + b"\n"


def _basic(facts: ReleaseFacts) -> Iterator[tuple[str, str]]:
    yield "ModelName", f"{facts.protocol.title} ({facts.product})"
    yield "ModelDeveloper", _field(facts, "manufacturer")
    yield "DeveloperContact", _field(facts, "contact")


def _release(facts: ReleaseFacts) -> Iterator[tuple[str, str]]:
    yield "ReleaseStage", facts.regulatory
    yield "ReleaseDate", facts.created[:10]
    yield "ReleaseVersion", facts.version
    yield "GlobalAvailability", _statement(facts, "availability")
    yield "RegulatoryApproval", facts.regulatory


def _summary(facts: ReleaseFacts) -> Iterator[tuple[str, str]]:
    label = facts.protocol.label
    yield (
        "Summary",
        f"{facts.protocol.title}. A {facts.protocol.model.name} model that returns the probability of "
        f"{label.name} ({label.positive}), trained by {len(facts.sites)} hospitals together.",
    )
    yield "Keywords", ""  # has children of its own


def _uses(facts: ReleaseFacts) -> Iterator[tuple[str, str]]:
    purpose = facts.protocol.intended_use.strip() or f"{OPEN} (intended_use)"
    yield "IntendedUseAndWorkflow", f"{purpose} Setting: {_field(facts, 'setting')}"
    yield "PrimaryIntendedUsers", _field(facts, "users")
    yield "HowToUse", _field(facts, "use_of_output")
    yield "TargetedPatientPopulation", _field(facts, "patients")
    yield "CautionedOutOfScopeSettings", _field(facts, "out_of_scope")


def _warnings(facts: ReleaseFacts) -> Iterator[tuple[str, str]]:
    dossier = facts.protocol.dossier
    found = limitations(dossier)
    known = [f"{OPEN} (dossier.limitations)"] if isinstance(found, dict) else found
    risks = [f"Risk {risk.id}: {risk.hazard} {risk.harm}" for risk in dossier.risks]
    yield "KnownRisksAndLimitations", " ".join([*known, *(risks or [f"{OPEN} (dossier.risks)"])])
    yield (
        "KnownBiasesOrEthicalConsiderations",
        f"Bias: {_field(facts, 'bias')} Ethics: {_field(facts, 'ethics')}",
    )
    yield "ClinicalRiskLevel", _statement(facts, "clinical_risk_level")


def _system(facts: ReleaseFacts) -> Iterator[tuple[str, str]]:
    protocol = facts.protocol
    label = protocol.label
    inputs = ", ".join(f"{f.name} ({f.kind}, {f.unit})" for f in protocol.features)
    yield (
        "OutcomesAndOutputs",
        f"Probability of {label.name} ({label.positive}), positive from {facts.decision_threshold:g}; "
        "out_of_range where training saw no such patient.",
    )
    yield "ModelType", f"{protocol.model.name}, trained by {protocol.strategy.name}"
    yield "InputDataSource", _SOURCE.format(len(facts.sites))
    yield "OutputAndInputDataTypes", f"Inputs: {inputs}. Outputs: probability (float32), out_of_range (bool)."
    cohort = protocol.cohort.description.strip() or f"{OPEN} (cohort.description)"
    yield "DevelopmentDataCharacterization", cohort
    yield "BiasMitigationApproaches", _field(facts, "bias")
    yield "OngoingMaintenance", _field(facts, "maintenance")
    yield "Security", _field(facts, "security")
    yield "Transparency", _privacy(facts)


def _transparency(facts: ReleaseFacts) -> Iterator[tuple[str, str]]:
    yield "FundingSource", _field(facts, "funding")
    yield "ThirdPartyInformation", "Third-party software is in soup.json and sbom.cdx.json."
    yield "StakeholdersConsulted", _field(facts, "patient_involvement")


def _resources(facts: ReleaseFacts) -> Iterator[tuple[str, str]]:
    yield "EvaluationReferences", "validation.html, validation.json and conformance.json in the release"
    yield "PeerReviewedPublications", _statement(facts, "publications")
    yield "PatientConsentOrDisclosure", _statement(facts, "consent")


def _key_metric(node: Node, facts: ReleaseFacts, about: str, results: list[tuple[str, str]]) -> None:
    gates = [f"{g.gate}: {_decided(g.passed)}" for g in facts.gates]
    goal = "; ".join(gates) if gates else f"{OPEN} (gates)"
    _add(node, "MetricGoal", f"Acceptance gates, fixed before training: {goal}")
    shown = ElementTree.SubElement(node, "Results")
    withheld = json.dumps("OPEN: not measured, or withheld under the minimum cell")
    for label, value in results or [(about, withheld)]:
        result = ElementTree.SubElement(shown, "MetricResult")
        _fill(result, iter([("Label", label), ("ValueJson", value)]))
    _add(node, "Interpretation", _statement(facts, f"{about}_interpretation"))
    _add(node, "TestType", _TEST_TYPE)
    _add(
        node,
        "TestingDataDescription",
        f"Patients that training never saw ({facts.protocol.holdout.method} holdout) at "
        f"{', '.join(facts.sites)}.",
    )
    _add(
        node,
        "ValidationProcessAndJustification",
        "Each hospital computes its metrics; they are pooled by random-effects meta-analysis. Plan, "
        "thresholds and gates were fixed in the protocol before training.",
    )


def _pooled(facts: ReleaseFacts, names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    pooled = facts.metrics.get("pooled", {})
    for name in names:
        if pooled.get(name):
            yield f"{name}, pooled", _json(pooled[name])


def _fairness(facts: ReleaseFacts) -> Iterator[tuple[str, str]]:
    for subgroup, groups in sorted(facts.metrics.get("pooled", {}).get("subgroups", {}).items()):
        for group, found in sorted(groups.items()):
            for name in ("auroc", "sensitivity", "calibration_slope"):
                if found.get(name):
                    yield f"{name}, {subgroup} {group}, pooled", _json(found[name])


def _json(metric: Mapping[str, object]) -> str:
    return json.dumps(metric, sort_keys=True, allow_nan=False)


def _decided(passed: bool | None) -> str:
    return {True: "passed", False: "failed", None: "not testable"}[passed]


def _privacy(facts: ReleaseFacts) -> str:
    if facts.protocol.privacy.mode == "none":
        return "Trained without differential privacy."
    if facts.epsilon is None:
        return "OPEN: not every hospital stated an epsilon; see dp_statement.md."
    return f"Differential privacy, epsilon at most {facts.epsilon:.3f}; see dp_statement.md."


def _field(facts: ReleaseFacts, name: str) -> str:
    found = field(facts.protocol.dossier, name)
    return found if isinstance(found, str) else f"{OPEN} (dossier.{name})"


def _statement(facts: ReleaseFacts, name: str) -> str:
    text = facts.protocol.dossier.statements.get(f"chai.{name}", "").strip()
    return f"{OPEN} (dossier.statements.chai.{name})" if not text or says_no_reason(text) else text


def _fill(node: Node, fields: Iterator[tuple[str, str]]) -> None:
    for name, text in fields:
        _add(node, name, text)


def _add(node: Node, name: str, text: str) -> None:
    _text(ElementTree.SubElement(node, name), text)


def _text(node: Node, text: str) -> None:
    node.text = _NOT_XML.sub("\ufffd", text) or None
