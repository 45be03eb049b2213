"""`dossier/tripod_ai.json`: where the 27 items (52 with their sub-items) of TRIPOD+AI are answered.

Source: Collins et al., TRIPOD+AI statement, BMJ 2024;385:e078378, 16 April 2024. Titles are in our words.
"""

from __future__ import annotations

from collections.abc import Mapping

from release.dossier.change_control import FILE as PCCP
from release.dossier.index import Item, Place, counted, entries
from release.dossier.intended_use import FILE as USE
from release.dossier.model_description import FILE as MODEL
from release.dossier.pointers import WHOLE
from release.dossier.split_attestation import FILE as SPLIT
from release.dossier.statements import FILE as STATEMENTS
from release.dossier.writing import json_bytes
from release.facts import ReleaseFacts

FILE = "dossier/tripod_ai.json"
SOURCE = "TRIPOD+AI, Collins et al., BMJ 2024;385:e078378, 16 April 2024"

_POOLED = "/pooled"


def _item(number: str, title: str, *places: Place, **rest: object) -> Item:
    return Item(f"tripod.{number}", f"item {number}", title, places, **rest)  # type: ignore[arg-type]


def _no_weights(facts: ReleaseFacts) -> str | None:
    if facts.protocol.training.class_weights == "none":
        return "No method against class imbalance was used: the protocol sets class_weights to none."
    return None


def _first_release(facts: ReleaseFacts) -> str | None:
    return "The product's first release: no model was updated." if facts.change.level == "first" else None


def _not_recalibrated(facts: ReleaseFacts) -> str | None:
    return "No model is recalibrated after evaluation: what was evaluated is what is released."


def _one_hospital(facts: ReleaseFacts) -> str | None:
    return "One hospital: there are no clusters to compare." if len(facts.sites) < 2 else None


ITEMS = (
    _item("1", "Title: what is predicted, in whom, developed or evaluated", ("study.json", "/title")),
    _item("2", "Abstract by TRIPOD+AI for abstracts"),
    _item("3a", "Healthcare context, rationale, existing models", (USE, "#clinical-background")),
    _item(
        "3b",
        "Target population, place in the care pathway, users",
        (USE, "#patients"),
        (USE, "#setting"),
        (USE, "#intended-users"),
    ),
    _item("3c", "Known inequalities between sociodemographic groups"),
    _item("4", "Objectives: development, evaluation or both", (MODEL, "#objectives")),
    _item("5a", "Sources of data, why they were used, how representative they are"),
    _item("5b", "Dates of the data and of follow-up"),
    _item("6a", "Setting, number and location of centres", (USE, "#setting"), (MODEL, "#data")),
    _item("6b", "Eligibility", ("study.json", "/cohort/description")),
    _item("6c", "Treatments, and how they were handled"),
    _item("7", "Preparation and quality checks of the data", (MODEL, "#preprocessing")),
    _item("8a", "Outcome, time horizon, how and when assessed", (MODEL, "#outcome"), statement="needed"),
    _item("8b", "Who assessed an outcome that needs interpretation"),
    _item("8c", "Blinding of the assessment of the outcome"),
    _item("9a", "How the initial predictors were chosen"),
    _item("9b", "Definition of all predictors", (MODEL, "#inputs")),
    _item("9c", "Who assessed predictors that need interpretation"),
    _item("10", "Study size, and that it suffices"),
    _item("11", "Missing data", (MODEL, "#preprocessing"), (MODEL, "#missing-and-out-of-range-values")),
    _item("12a", "How data were used and split", (SPLIT, "/method"), (SPLIT, "/attestation")),
    _item("12b", "How predictors entered the analysis", (MODEL, "#preprocessing")),
    _item(
        "12c",
        "Type of model, its rationale, steps of building, internal validation",
        (MODEL, "#training"),
        (MODEL, "#model"),
        (MODEL, "#rationale"),
    ),
    _item("12d", "Differences between clusters", (MODEL, "#evaluation"), unless=_one_hospital),
    _item("12e", "Measures and plots of performance", (MODEL, "#evaluation")),
    _item("12f", "Updating after evaluation", unless=_not_recalibrated),
    _item("12g", "How predictions were calculated", ("model.onnx", WHOLE), ("golden.json", "/rows")),
    _item("13", "Methods against class imbalance", (MODEL, "#training"), unless=_no_weights),
    _item("14", "Approaches to fairness, with their rationale", (USE, "#bias")),
    _item("15", "Output, and how the threshold was found", (MODEL, "#output-and-decision-threshold")),
    _item("16", "Differences between development and evaluation data"),
    _item("17", "Ethics committee and consent", (STATEMENTS, "/fields/ethics")),
    _item("18a", "Funding and role of the funders", (STATEMENTS, "/fields/funding")),
    _item("18b", "Conflicts of interest"),
    _item("18c", "Where the protocol is", ("study.json", WHOLE)),
    _item("18d", "Registration, or that there was none"),
    _item("18e", "Availability of the data"),
    _item("18f", "Availability of the code"),
    _item("19", "Involvement of patients and the public", (STATEMENTS, "/fields/patient_involvement")),
    _item("20a", "Flow of participants, with and without the outcome, follow-up"),
    _item("20b", "Characteristics of participants by source"),
    _item("20c", "Development and evaluation data compared"),
    _item(
        "21",
        "Numbers of participants and events in each analysis",
        ("validation.json", f"{_POOLED}/events"),
        ("validation.json", f"{_POOLED}/n"),
        (MODEL, "#data"),
    ),
    _item("22", "The full model, and limits to its use", ("model.onnx", WHOLE), (MODEL, "#interface")),
    _item(
        "23a",
        "Performance with intervals, and by subgroup",
        ("validation.json", f"{_POOLED}/auroc"),
        ("validation.json", f"{_POOLED}/subgroups"),
    ),
    _item(
        "23b",
        "Heterogeneity of performance between clusters",
        ("validation.json", f"{_POOLED}/heterogeneity"),
        unless=_one_hospital,
    ),
    _item("24", "Results of updating the model", (PCCP, "/this_release"), unless=_first_release),
    _item("25", "Interpretation, with fairness, against earlier studies"),
    _item("26", "Limits and their effects", (USE, "#limitations")),
    _item("27a", "Poor or missing input when the model is used", (MODEL, "#missing-and-out-of-range-values")),
    _item(
        "27b",
        "What users do with input and model, and the skill it takes",
        (USE, "#use-of-the-output"),
        (USE, "#intended-users"),
    ),
    _item("27c", "Next steps of research"),
)


def tripod_ai(facts: ReleaseFacts, files: Mapping[str, bytes]) -> bytes:
    """Return the index of TRIPOD+AI."""
    found = entries(ITEMS, facts, files)
    return json_bytes({"source": SOURCE, "items": found, "summary": counted(found)})
