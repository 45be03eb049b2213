"""Everything that people wrote in `dossier:` of the study's YAML, in one file, field by field.

`fields` holds every single text of `contracts.dossier.Dossier`; `statements` holds the answers to items of
standards by their identifier (`tripod.5b`, `hti1.4.iii`, `annex_iv.2.g`, `iso14971.8`, ...).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from contracts.dossier import Dossier
from release.dossier.writing import json_bytes, listed, stated
from release.facts import ReleaseFacts

FILE = "dossier/statements.json"

_NOT_APPLICABLE = "not applicable:"  # how a statement begins that says so

# What each field would say.
MISSING = {
    "manufacturer": "Who makes the device and answers for it.",
    "contact": "How the manufacturer is reached.",
    "users": "Who uses the model, with which training.",
    "setting": "Where in care the model is used.",
    "patients": "For which patients the model is meant.",
    "out_of_scope": "For which tasks, situations or patients the model must not be used.",
    "use_of_output": "What is done with the number, and by whom.",
    "benefit": "The clinical benefit that is expected.",
    "background": "The clinical rationale, with the literature it rests on.",
    "model_description": "Why this model, and which assumptions it makes.",
    "bias": "Known or suspected bias, and what was done about it.",
    "funding": "Who paid for the development, and the role of the funders.",
    "ethics": "Which ethics committee approved the study, or why none had to.",
    "patient_involvement": "How patients and the public took part, or that they did not.",
    "security": "The cybersecurity measures of the device and of the place it runs in.",
    "maintenance": "How and how often the model is updated and supported.",
}


def field(dossier: Dossier, name: str) -> str | dict[str, str]:
    """Return one single text of the dossier, or the open value."""
    return stated(getattr(dossier, name), f"dossier.{name}", MISSING[name])


def limitations(dossier: Dossier) -> list[str] | dict[str, str]:
    """Return the known limits of the model, or the open value."""
    return listed(dossier.limitations, "dossier.limitations", "The known limits of the model.")


def said_not_applicable(statement: str) -> str | None:
    """Return the reason of a statement that begins with `Not applicable:`; None for any other."""
    if not statement.lower().startswith(_NOT_APPLICABLE) or says_no_reason(statement):
        return None
    return f"As the study's authors state: {statement[len(_NOT_APPLICABLE) :].strip()}"


def says_no_reason(statement: str) -> bool:
    """Say whether a statement is a bare `Not applicable`, which excuses nothing."""
    return statement.strip().rstrip(":.").lower() == _NOT_APPLICABLE.rstrip(":")


def statements_file(facts: ReleaseFacts, asked: Collection[str]) -> bytes:
    """Return `dossier/statements.json`.

    Args:
        asked: the identifiers that some standard of this dossier asks for. A statement under any other, a
            mistyped one perhaps, is listed as answering nothing.
    """
    dossier = facts.protocol.dossier
    value: dict[str, Any] = {
        "what_this_is": "Written by people in the study's YAML (section dossier), signed with the protocol.",
        "fields": {name: field(dossier, name) for name in MISSING} | {"limitations": limitations(dossier)},
        "statements": {name: _statement(name, text) for name, text in dossier.statements.items()},
        "statements_that_answer_no_item": sorted(set(dossier.statements) - set(asked)),
    }
    return json_bytes(value)


def _statement(name: str, text: str) -> str | dict[str, str]:
    missing = "The reason why it does not apply." if says_no_reason(text) else "The answer to this item."
    return stated("" if says_no_reason(text) else text, f"dossier.statements.{name}", missing)
