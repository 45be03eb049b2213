"""`dossier/hti1.json`: the 31 source attributes of a Predictive DSI (ONC HTI-1).

Source: 45 CFR 170.315(b)(11)(iv)(B), Health Data, Technology, and Interoperability (HTI-1) final rule,
89 FR 1192, 9 January 2024. Each attribute carries its answer, ready to be copied into a certified system.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from contracts.study import StudyProtocol
from release.dossier.index import ANSWERED, place_of_statement
from release.dossier.pointers import NOWHERE, is_open, open_value
from release.dossier.statements import field, limitations, said_not_applicable, says_no_reason
from release.dossier.writing import AUTHOR, json_bytes
from release.facts import ReleaseFacts

FILE = "dossier/hti1.json"
SOURCE = (
    "45 CFR 170.315(b)(11)(iv)(B), HTI-1 final rule, 89 FR 1192, 9 January 2024. Paragraphs (A)(5)-(13) are "
    "race, ethnicity, language, sexual orientation, gender identity, sex, date of birth, social determinants "
    "of health and health status."
)
_CLAUSE = "170.315(b)(11)(iv)(B)"

CATEGORIES = {
    "1": "Details and output",
    "2": "Purpose",
    "3": "Cautioned out-of-scope use",
    "4": "Development and input features",
    "5": "Process for fairness",
    "6": "External validation",
    "7": "Quantitative measures of performance",
    "8": "Maintenance and monitoring",
    "9": "Update and continued validation",
}

Answer = str | dict[str, str]


@dataclass(frozen=True)
class Attribute:
    """One source attribute: paragraph, meaning in our words, and what answers it without a statement."""

    paragraph: str  # "4.ii"
    title: str
    answer: Callable[[ReleaseFacts], Answer] | None = None  # None: only a person can say it

    @property
    def id(self) -> str:
        """Under which a statement in the YAML answers it."""
        return f"hti1.{self.paragraph}"

    @property
    def clause(self) -> str:
        """`170.315(b)(11)(iv)(B)(4)(ii)`."""
        category, roman = self.paragraph.split(".")
        return f"{_CLAUSE}({category})({roman})"


def _field(name: str) -> Callable[[ReleaseFacts], Answer]:
    return lambda facts: field(facts.protocol.dossier, name)


def _developer(facts: ReleaseFacts) -> Answer:
    parts = [field(facts.protocol.dossier, name) for name in ("manufacturer", "contact")]
    missing = next((part for part in parts if not isinstance(part, str)), None)
    return missing or "; ".join(str(part) for part in parts)


def _output_value(facts: ReleaseFacts) -> Answer:
    label = facts.protocol.label
    return (
        f"A probability between 0 and 1 that {label.name} is positive ({label.positive}), and out_of_range, "
        "which says that training could not have seen such a patient."
    )


def _output_kind(facts: ReleaseFacts) -> Answer:
    return f"Prediction: a probability. A patient counts as positive from {facts.decision_threshold:g}."


def _limits(facts: ReleaseFacts) -> Answer:
    dossier = facts.protocol.dossier
    found = limitations(dossier)
    if isinstance(found, dict):
        return found
    hazards = [f"Risk {risk.id}: {risk.hazard}" for risk in dossier.risks]
    return " ".join([*found, *hazards])


def _inclusion(facts: ReleaseFacts) -> Answer:
    cohort = facts.protocol.cohort
    if not cohort.description.strip():
        return open_value("Who is in the training data.", f"{AUTHOR}: `cohort.description`")
    rule = "only complete records" if cohort.complete_cases else "records with missing values included"
    return f"{cohort.description} At most {cohort.max_records} records of a patient; {rule}."


def _fairness_process(facts: ReleaseFacts) -> Answer:
    gates = [g.title for g in facts.protocol.gates if g.metric == "subgroup_gap"]
    if not gates:
        return open_value(
            "How the fairness of the output was ensured; the protocol has no gate on a subgroup.",
            f"{AUTHOR}: a gate on subgroup_gap, or `dossier.statements.hti1.5.i`",
        )
    groups = ", ".join(s.name for s in facts.protocol.subgroups)
    return (
        f"Performance is measured for the groups of {groups} at every hospital, and a gate that was fixed "
        f"before training stops the release otherwise: {'; '.join(gates)}."
    )


def _validity(facts: ReleaseFacts) -> Answer:
    auroc = facts.metrics.get("pooled", {}).get("auroc")
    if not auroc:
        return open_value("A pooled AUROC.", "the hospitals, which withheld it under the minimum cell")
    return (
        f"On holdout patients of the training hospitals: pooled AUROC {_interval(auroc)}; calibration and "
        "further measures in validation.json."
    )


def _fairness(facts: ReleaseFacts) -> Answer:
    groups = facts.metrics.get("pooled", {}).get("subgroups", {})
    shown = [
        f"{subgroup} {group}: AUROC {_interval(metrics['auroc'])}"
        for subgroup, found in groups.items()
        for group, metrics in found.items()
        if metrics.get("auroc")
    ]
    if not shown:
        who = f"{AUTHOR}: `subgroups`; or the hospitals, which withheld them under the minimum cell"
        return open_value("Performance by subgroup.", who)
    return f"On holdout patients of the training hospitals: {'; '.join(shown)}."


def _local_validity(facts: ReleaseFacts) -> Answer:
    sites = {name: tree for name, tree in facts.metrics.items() if name != "pooled" and tree.get("auroc")}
    if not sites:
        return open_value(
            "Performance at a hospital.", "the hospitals, which withheld it under the minimum cell"
        )
    shown = "; ".join(f"{name}: AUROC {_interval(tree['auroc'])}" for name, tree in sites.items())
    return (
        f"At the hospitals that took part: {shown}. Any other hospital must measure it on its own patients."
    )


def _local_fairness(facts: ReleaseFacts) -> Answer:
    shown = [
        f"{name}, {subgroup} {group}: AUROC {_interval(metrics['auroc'])}"
        for name, tree in facts.metrics.items()
        if name != "pooled"
        for subgroup, found in tree.get("subgroups", {}).items()
        for group, metrics in found.items()
        if metrics.get("auroc")
    ]
    if not shown:
        who = "the hospitals, which withheld it under the minimum cell"
        return open_value("Performance by subgroup at a hospital.", who)
    return f"At the hospitals that took part: {'; '.join(shown)}. Any other hospital must measure it itself."


def _monitored(facts: ReleaseFacts) -> Answer:
    plan = facts.protocol.dossier.monitoring
    if plan is None or not plan.measures or plan.interval_days is None:
        who = f"{AUTHOR}: `dossier.monitoring.measures` and `interval_days`"
        return open_value("How, and how often, validity is monitored.", who)
    return f"Every {plan.interval_days} days: {'; '.join(plan.measures)}."


def _corrected(facts: ReleaseFacts) -> Answer:
    plan = facts.protocol.dossier.monitoring
    if plan is None or not plan.triggers or plan.interval_days is None:
        who = f"{AUTHOR}: `dossier.monitoring.triggers` and `interval_days`"
        return open_value("How often performance is corrected when a risk is found.", who)
    found = "; ".join(plan.triggers)
    return f"Looked at every {plan.interval_days} days, and corrected or withdrawn on: {found}."


def _interval(metric: Mapping[str, float]) -> str:
    text = f"{metric['value']:.3f}"
    if "lower" in metric and "upper" in metric:
        text += f" ({metric['lower']:.3f} to {metric['upper']:.3f})"
    return text


ATTRIBUTES = (
    Attribute("1.i", "Developer: name and contact", _developer),
    Attribute("1.ii", "Who paid for the technical implementation", _field("funding")),
    Attribute("1.iii", "The value that comes out", _output_value),
    Attribute("1.iv", "Kind of output: prediction, classification, recommendation, ...", _output_kind),
    Attribute("2.i", "Intended use", lambda facts: _purpose(facts.protocol)),
    Attribute("2.ii", "Intended patients", _field("patients")),
    Attribute("2.iii", "Intended users", _field("users")),
    Attribute("2.iv", "Role in the decision: informs, augments, replaces", _field("use_of_output")),
    Attribute("3.i", "Tasks, situations and populations to keep it away from", _field("out_of_scope")),
    Attribute("3.ii", "Known risks, inappropriate settings and uses, limits", _limits),
    Attribute("4.i", "Criteria by which patients entered the training data", _inclusion),
    Attribute("4.ii", "Which of the variables (A)(5)-(13) are input features"),
    Attribute("4.iii", "How far the training data represent these variables"),
    Attribute("4.iv", "Relevance of the training data to the intended setting"),
    Attribute("5.i", "What was done so that the output is fair", _fairness_process),
    Attribute("5.ii", "What was done to manage, reduce or remove bias", _field("bias")),
    Attribute("6.i", "External data and setting in which validity and fairness were assessed"),
    Attribute("6.ii", "Who conducted the external testing"),
    Attribute("6.iii", "How far the external data represent the variables (A)(5)-(13)"),
    Attribute("6.iv", "How the external validation was done"),
    Attribute("7.i", "Validity in test data of the same source as the training data", _validity),
    Attribute("7.ii", "Fairness in test data of the same source as the training data", _fairness),
    Attribute("7.iii", "Validity in external data"),
    Attribute("7.iv", "Fairness in external data"),
    Attribute("7.v", "Evaluations of its effect on outcomes of patients"),
    Attribute("8.i", "How and how often validity is monitored", _monitored),
    Attribute("8.ii", "Validity in local data", _local_validity),
    Attribute("8.iii", "How and how often fairness is monitored"),
    Attribute("8.iv", "Fairness in local data", _local_fairness),
    Attribute("9.i", "How and how often it is updated", _field("maintenance")),
    Attribute("9.ii", "How often performance is corrected when risks are found", _corrected),
)


def hti1(facts: ReleaseFacts) -> bytes:
    """Return the 31 source attributes, each answered or open."""
    return json_bytes(
        {
            "source": SOURCE,
            "categories": CATEGORIES,
            "attributes": [_attribute(n, a, facts) for n, a in enumerate(ATTRIBUTES)],
        }
    )


def _attribute(number: int, attribute: Attribute, facts: ReleaseFacts) -> dict[str, Any]:
    written = facts.protocol.dossier.statements.get(attribute.id, "").strip()
    file, pointer = FILE, f"/attributes/{number}/answer"
    excuse = said_not_applicable(written)
    answer: Answer
    if excuse is not None:
        answer, status, reason, file, pointer = written, "not_applicable", excuse, NOWHERE, NOWHERE
    elif written and not says_no_reason(written):
        answer, status = written, "met"
        reason = "Stated by the study's authors, in {} {}.".format(*place_of_statement(attribute.id))
    else:
        who = f"{AUTHOR}: `dossier.statements.{attribute.id}`"
        answer = attribute.answer(facts) if attribute.answer else open_value(f"{attribute.title}.", who)
        status = "open" if is_open(answer) else "met"
        reason = answer["open"] if isinstance(answer, dict) else ANSWERED
    return {
        "id": attribute.id,
        "clause": attribute.clause,
        "category": attribute.paragraph.split(".")[0],
        "title": attribute.title,
        "answer": answer,
        "status": status,
        "file": file,
        "pointer": pointer,
        "also": NOWHERE,
        "reason": reason,
    }


def _purpose(protocol: StudyProtocol) -> Answer:
    text = protocol.intended_use.strip()
    return text or open_value("The intended use of the model.", f"{AUTHOR}: `intended_use`")
