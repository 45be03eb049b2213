"""`dossier/annex_iv.json`: where the technical documentation of the EU AI Act, Annex IV, is answered.

Source: Regulation (EU) 2024/1689, Annex IV (named by Article 11(1)), OJ L, 12 July 2024.
Titles are in our words.
"""

from __future__ import annotations

from collections.abc import Mapping

from release.dossier.change_control import FILE as PCCP
from release.dossier.index import Item, Place, counted, entries
from release.dossier.intended_use import FILE as USE
from release.dossier.model_description import FILE as MODEL
from release.dossier.monitoring import FILE as MONITORING
from release.dossier.pointers import WHOLE
from release.dossier.risk import FILE as RISK
from release.dossier.split_attestation import FILE as SPLIT
from release.dossier.statements import FILE as STATEMENTS
from release.dossier.writing import json_bytes
from release.facts import ReleaseFacts

FILE = "dossier/annex_iv.json"
SOURCE = "Regulation (EU) 2024/1689, Annex IV, OJ L, 12 July 2024"


def _item(point: str, title: str, *places: Place, **rest: object) -> Item:
    number, _, letter = point.partition(".")
    clause = f"Annex IV point {number}" + (f"({letter})" if letter else "")
    return Item(f"annex_iv.{point}", clause, title, places, **rest)  # type: ignore[arg-type]


def _software_only(facts: ReleaseFacts) -> str | None:
    return "The release is a folder of files and no component of a physical product."


def _no_interface(facts: ReleaseFacts) -> str | None:
    return "The release has no user interface; the deploying organisation's system shows the number."


ITEMS = (
    _item(
        "1.a",
        "Intended purpose, provider, version and its relation to earlier ones",
        (USE, "#intended-use"),
        (USE, "#manufacturer"),
        (MODEL, "#version"),
    ),
    _item("1.b", "Interaction with hardware and software outside it", (MODEL, "#interface")),
    _item(
        "1.c",
        "Versions of software, and what an update requires",
        (MODEL, "#software"),
        (STATEMENTS, "/fields/maintenance"),
    ),
    _item("1.d", "Forms in which it is handed over", (MODEL, "#interface")),
    _item("1.e", "Hardware it is meant to run on"),
    _item("1.f", "Pictures of the product it is a component of", unless=_software_only),
    _item("1.g", "User interface of the deployer", unless=_no_interface),
    _item("1.h", "Instructions for use", ("README.txt", WHOLE), (USE, "#use-of-the-output")),
    _item(
        "2.a", "Methods and steps of development, parts by others", (MODEL, "#training"), (MODEL, "#software")
    ),
    _item(
        "2.b",
        "Logic, design choices with rationale, what is optimised for whom",
        (MODEL, "#model"),
        (MODEL, "#rationale"),
    ),
    _item(
        "2.c",
        "Architecture of the system, and computing resources used",
        (MODEL, "#model"),
        (MODEL, "#software"),
        statement="needed",
    ),
    _item(
        "2.d",
        "Data: provenance, scope, selection, labelling, cleaning",
        (SPLIT, "/hospitals"),
        (MODEL, "#preprocessing"),
        statement="needed",
    ),
    _item(
        "2.e",
        "Human oversight, and what helps to interpret the output",
        (USE, "#use-of-the-output"),
        (USE, "#intended-users"),
    ),
    _item(
        "2.f",
        "Changes determined beforehand",
        (PCCP, "/description_of_modifications"),
        (PCCP, "/modification_protocol/performance_evaluation"),
    ),
    _item(
        "2.g",
        "Validation and testing: data, metrics, bias; dated test reports",
        ("validation.json", "/pooled/auroc"),
        ("validation.json", "/pooled/subgroups"),
        (SPLIT, "/attestation"),
        (RISK, "/evidence/tests_time"),
    ),
    _item("2.h", "Cybersecurity", (STATEMENTS, "/fields/security")),
    _item(
        "3",
        "Capabilities and limits, unintended outcomes, oversight, input",
        (USE, "#limitations"),
        ("validation.json", "/pooled/auroc"),
        (RISK, "/risks"),
        (USE, "#use-of-the-output"),
        (MODEL, "#inputs"),
    ),
    _item("4", "Why these measures of performance are appropriate"),
    _item(
        "5",
        "Risk management system (Article 9)",
        (RISK, "/risks"),
        (RISK, "/plan"),
        (RISK, "/overall_residual_risk"),
    ),
    _item("6", "Changes through the lifecycle", (PCCP, "/this_release")),
    _item("7", "Harmonised standards applied, or the solutions instead"),
    _item(
        "8", "EU declaration of conformity (Article 47)", who="the provider, before placing it on the market"
    ),
    _item(
        "9",
        "Evaluation after it is on the market, with the plan (Article 72)",
        (MONITORING, "/responsible"),
        (MONITORING, "/measures"),
        (MONITORING, "/interval_days"),
        (MONITORING, "/reporting"),
    ),
)


def annex_iv(facts: ReleaseFacts, files: Mapping[str, bytes]) -> bytes:
    """Return the index of Annex IV."""
    found = entries(ITEMS, facts, files)
    return json_bytes({"source": SOURCE, "points": found, "summary": counted(found)})
