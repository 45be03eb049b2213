"""`dossier/intended_use.md`: for whom, where and for what the model is meant, and for what it is not."""

from __future__ import annotations

from release.dossier.statements import field, limitations
from release.dossier.writing import document, human_section, section, stated
from release.facts import ReleaseFacts

FILE = "dossier/intended_use.md"


def intended_use(facts: ReleaseFacts) -> bytes:
    """Return the intended use (MDR 2017/745 Annex I 23.4; 45 CFR 170.315(b)(11)(iv)(B)(2), (3))."""
    protocol, dossier = facts.protocol, facts.protocol.dossier
    human = {
        "Intended users": "users",
        "Setting": "setting",
        "Patients": "patients",
        "Out of scope": "out_of_scope",
        "Use of the output": "use_of_output",
        "Benefit": "benefit",
        "Clinical background": "background",
    }
    # The intended use is a required field of a protocol, but may have been left blank.
    purpose = human_section("Intended use", _purpose(protocol.intended_use))
    people = [human_section(heading, field(dossier, name)) for heading, name in human.items()]
    return document(
        f"Intended use of {facts.release_id}",
        [
            "Quotations were written by people in the study's YAML. What nobody wrote is marked OPEN.\n",
            section("Regulatory status", f"{_sentence(facts.regulatory)} {_STATUS}"),
            purpose,
            *people,
            human_section("Limitations", limitations(dossier)),
            human_section("Bias", field(dossier, "bias")),
            human_section("Manufacturer", field(dossier, "manufacturer")),
            human_section("Contact", field(dossier, "contact")),
        ],
    )


_STATUS = (
    "This release does not claim more: the status changes only by a signed statement of a person, which then "
    "lies beside this file as regulatory.json."
)


def _purpose(text: str) -> str | dict[str, str]:
    """Return the protocol's intended use, or the open value when it is blank."""
    return stated(text, "intended_use", "The intended use of the model.")


def _sentence(text: str) -> str:
    line = " ".join(text.split())  # a person may have written it: no line of it may begin a section
    return line[:1].upper() + line[1:].rstrip(".") + "."
