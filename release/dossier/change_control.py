"""`dossier/pccp.json`: the planned modifications of the model, and which of them this release is.

The parts are those of FDA's final guidance on predetermined change control plans for AI-enabled device
software functions (December 2024): description of modifications, modification protocol with its four parts,
and impact assessment, all by the identifier of the modification.
"""

from __future__ import annotations

from typing import Any

from contracts.dossier import ChangeControl, Modification
from release.dossier.pointers import open_value
from release.dossier.writing import AUTHOR, json_bytes, stated
from release.facts import ReleaseFacts

FILE = "dossier/pccp.json"
SOURCE = (
    "FDA, Marketing Submission Recommendations for a Predetermined Change Control Plan for Artificial "
    "Intelligence-Enabled Device Software Functions, final guidance, December 2024; section 515C of the FD&C "
    "Act"
)

# The four parts of a modification protocol, by the field of the YAML.
PROTOCOL_PARTS = {
    "data_management": "How data for the modification are collected, kept apart and used.",
    "retraining": "What is trained again, and what stays as it is.",
    "performance_evaluation": "How the modified model is evaluated, and what it must reach.",
    "update_procedure": "How the update is released, installed, announced and taken back.",
}
_IMPACT = "Benefits and risks of the modification, and how the risks are mitigated."


def change_control(facts: ReleaseFacts) -> bytes:
    """Return the predetermined change control plan and this release's place in it."""
    plan = facts.protocol.dossier.change_control or ChangeControl()
    modifications = plan.modifications
    return json_bytes(
        {
            "source": SOURCE,
            "regulatory_status": facts.regulatory,
            "authorised_by": stated(
                plan.authorised_by,
                "dossier.change_control.authorised_by",
                "Which authority authorised this plan; without one it is a plan and no permission.",
            ),
            "description_of_modifications": [_description(m) for m in modifications] or _no_plan(),
            "modification_protocol": {
                part: _by_modification(modifications, part, missing)
                for part, missing in PROTOCOL_PARTS.items()
            },
            "impact_assessment": _by_modification(modifications, "impact", _IMPACT),
            "this_release": _this_release(facts, modifications),
        }
    )


def _description(modification: Modification) -> dict[str, Any]:
    return {
        "id": modification.id,
        "title": modification.title,
        "changes": list(modification.changes),
        "description": modification.description,
    }


def _no_plan() -> dict[str, str]:
    return open_value("No modification is planned.", f"{AUTHOR}: `dossier.change_control.modifications`")


def _by_modification(modifications: list[Modification], part: str, missing: str) -> dict[str, Any]:
    """One part of the plan for every modification; open as a whole when one of them lacks it."""
    if not modifications:
        return _no_plan()
    texts = {m.id: getattr(m, part) for m in modifications}
    lacking = sorted(name for name, text in texts.items() if not (text and text.strip()))
    value: dict[str, Any] = {name: text for name, text in texts.items() if name not in lacking}
    if lacking:
        where = f"`dossier.change_control.modifications.{part}` of {', '.join(lacking)}"
        value = {"written": value} | open_value(missing, f"{AUTHOR}: {where}")
    return value


def _this_release(facts: ReleaseFacts, modifications: list[Modification]) -> dict[str, Any]:
    change = facts.change
    value: dict[str, Any] = {
        "version": facts.version,
        "level": change.level,
        "since": change.since,
        "changed": list(change.changed),
    }
    if change.level == "first":
        return value | {
            "modification": None,
            "statement": "The product's first release: nothing was modified.",
        }
    planned = next((m for m in modifications if m.id == change.modification), None)
    if planned is None:
        return value | open_value(
            "Which planned modification this release is; it lies outside the plan until somebody says so.",
            f"{AUTHOR}: a modification that covers {', '.join(change.changed) or 'what changed'}",
        )
    outside = sorted(set(change.changed) - set(planned.changes))
    if outside:
        return value | open_value(
            f"Modification {planned.id} does not cover {', '.join(outside)}.",
            f"{AUTHOR}: a modification that covers it",
        )
    return value | {
        "modification": planned.id,
        "statement": f"Planned modification {planned.id}: {planned.title}",
    }
