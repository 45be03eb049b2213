"""`dossier/risk.json`: the risk management file (ISO 14971:2019), each control with the test that shows it.

A control counts as verified only when its test is among the results that were brought to the coordinator and
passed there. Whether a risk is acceptable is a person's decision; this file never takes it.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from contracts.dossier import Control, Risk
from release.dossier.pointers import is_open, open_value
from release.dossier.statements import says_no_reason
from release.dossier.writing import AUTHOR, json_bytes, stated
from release.facts import Evidence, ReleaseFacts

FILE = "dossier/risk.json"

SEVERITY = {
    1: "negligible: inconvenience or a delay without consequence",
    2: "minor: temporary injury that needs no treatment",
    3: "serious: injury that needs treatment, or a missed diagnosis that is found in time",
    4: "critical: permanent impairment or life-threatening injury",
    5: "catastrophic: death",
}
PROBABILITY = {
    1: "improbable: not expected over the life of the device",
    2: "remote: less than one in 10,000 uses",
    3: "occasional: one in 1,000 to 10,000 uses",
    4: "probable: one in 100 to 1,000 uses",
    5: "frequent: more than one in 100 uses",
}
_MEANING = (
    "Severity is that of the harm; probability is that of the harm occurring, for a use of the output. The "
    "product of both is given to sort by and decides nothing."
)
_NO_TEST = "A test that shows this control."
_NO_RISKS = "The hazards of the model, with their estimation and controls (ISO 14971:2019, clauses 5 to 7)."


def risk(facts: ReleaseFacts) -> bytes:
    """Return the risk management file, with the last result of each control's test."""
    dossier, evidence = facts.protocol.dossier, facts.evidence
    risks = [_risk(r, evidence) for r in dossier.risks]
    nobody = open_value(_NO_RISKS, f"{AUTHOR}: `dossier.risks`")
    return json_bytes(
        {
            "source": "ISO 14971:2019, Medical devices: Application of risk management to medical devices",
            "plan": _statement(facts, "4.4", "The risk management plan, with who is responsible."),
            "criteria": _statement(facts, "4.2", "The criteria by which a risk is acceptable."),
            "scales": {"severity": _scale(SEVERITY), "probability": _scale(PROBABILITY), "meaning": _MEANING},
            "risks": risks or nobody,
            "controls": _controls(risks) if risks else nobody,
            "residual_risks": _residual(dossier.risks) if risks else nobody,
            "overall_residual_risk": _statement(
                facts, "8", "The evaluation of the overall residual risk, and who accepts it."
            ),
            "evidence": {
                "tests": len(evidence.tests) or open_value("The results of the tests.", _WHO_TESTS),
                "tests_time": evidence.tests_time or open_value("When the tests ran.", _WHO_TESTS),
                "scan_time": _scan_time(evidence, facts.created),
            },
        }
    )


_WHO_TESTS = "whoever runs the tests, as a JUnit report brought to the coordinator"
_SCAN_DAYS = 30  # an older scan for vulnerabilities says nothing of those that were published since


def _scan_time(evidence: Evidence, created: str) -> str | dict[str, str]:
    who = "whoever scans the components, as a dated report brought to the coordinator"
    if evidence.scan is None or evidence.scan_time is None:
        return open_value("A dated scan for vulnerabilities.", who)
    age = datetime.fromisoformat(created) - datetime.fromisoformat(evidence.scan_time)
    if age > timedelta(days=_SCAN_DAYS):
        return open_value(f"A scan of the last {_SCAN_DAYS} days; the last is of {evidence.scan_time}.", who)
    return evidence.scan_time


def result_of(test: str, evidence: Evidence) -> str | None:
    """Return the result of a test over all its parameters; None where there is none.

    One failure is a failure; a test that was only skipped has no result.
    """
    found = [r for name, r in evidence.tests.items() if name == test or name.startswith(f"{test}[")]
    if "failed" in found:
        return "failed"
    return "passed" if "passed" in found else None


def _risk(entry: Risk, evidence: Evidence) -> dict[str, Any]:
    residual: Any = open_value("The residual risk.", f"{AUTHOR}: residual_severity and residual_probability")
    if entry.residual_severity is not None and entry.residual_probability is not None:
        residual = _estimate(entry.residual_severity, entry.residual_probability)
    accepted = f"dossier.risks.accepted_by of {entry.id}"
    return {
        "id": entry.id,
        "hazard": entry.hazard,
        "sequence_of_events": entry.sequence,
        "harm": entry.harm,
        "initial": _estimate(entry.severity, entry.probability),
        "controls": [_control(c, evidence) for c in entry.controls]
        or open_value("A control of this risk.", f"{AUTHOR}: `dossier.risks.controls` of {entry.id}"),
        "residual": residual,
        "accepted_by": stated(
            entry.accepted_by, accepted, "Who decided that the residual risk is acceptable."
        ),
    }


def _estimate(severity: int, probability: int) -> dict[str, int]:
    return {"severity": severity, "probability": probability, "product": severity * probability}


def _control(control: Control, evidence: Evidence) -> dict[str, Any]:
    return {
        "id": control.id,
        "kind": control.kind,
        "description": control.description,
        "verification": _verification(control, evidence),
    }


def _verification(control: Control, evidence: Evidence) -> dict[str, Any]:
    if control.test is None:
        return open_value(_NO_TEST, f"{AUTHOR}: `test` of control {control.id}")
    result = result_of(control.test, evidence)
    if result == "passed":
        return {"test": control.test, "result": result, "time": evidence.tests_time}
    missing = "The test failed." if result == "failed" else "No result of this test was brought."
    return {"test": control.test, "result": result} | open_value(missing, _WHO_TESTS)


def _controls(risks: list[dict[str, Any]]) -> dict[str, Any]:
    """How many controls are verified; open unless every risk has controls and all of them are."""
    controls = [c for r in risks if not is_open(r["controls"]) for c in r["controls"]]
    bare = [r["id"] for r in risks if is_open(r["controls"])]
    unverified = [c["id"] for c in controls if is_open(c["verification"])] + bare
    summary = {"number": len(controls), "verified": sum(not is_open(c["verification"]) for c in controls)}
    if unverified:
        return summary | open_value(f"Not verified: {', '.join(unverified)}.", f"{AUTHOR}, or {_WHO_TESTS}")
    return summary


def _residual(risks: list[Risk]) -> dict[str, Any]:
    pending = [
        r.id for r in risks if None in (r.residual_severity, r.residual_probability) or not r.accepted_by
    ]
    summary = {"number": len(risks), "accepted": len(risks) - len(pending)}
    if pending:
        missing = f"Not estimated, or accepted by nobody: {', '.join(pending)}."
        return summary | open_value(missing, f"{AUTHOR}: residual estimates and accepted_by")
    return summary


def _statement(facts: ReleaseFacts, clause: str, missing: str) -> str | dict[str, str]:
    key = f"iso14971.{clause}"
    text = facts.protocol.dossier.statements.get(key, "")
    return stated("" if says_no_reason(text) else text, f"dossier.statements.{key}", missing)


def _scale(words: dict[int, str]) -> dict[str, str]:
    return {str(level): meaning for level, meaning in words.items()}
