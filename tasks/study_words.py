"""The words of the study's page: states, what an aggregation leaves open, and what to do about a refusal."""

from __future__ import annotations

import re
from pathlib import Path

from contracts.errors import SENTENCES
from release.markup import Html

_ERRORS = Path(__file__).resolve().parents[1] / "docs" / "errors.md"

# word -> (sign, what it means); the sign and the word say the same, so that colour is never needed.
STATES = {
    "admitted": ("✓", "its update went into the model"),
    "refused": ("✕", "it refused, or its update was refused; the number says why"),
    "silent": ("○", "it was asked and nothing of it arrived in time"),
    "absent": ("–", "it was not there when the round opened, or its data were not admitted"),
    "paused": ("‖", "the hospital paused its part"),
    "withdrawn": ("⊘", "the hospital withdrew from the study"),
    "waiting": ("…", "the round is open and waits for it"),
    "not asked": ("", "the exchange has no part for it, or it was not enrolled yet"),
}
OF_NUMBER = {"E302": "paused", "E303": "withdrawn"}

PROTECTS = {
    "mean": (
        "The weighted mean of the updates as they were admitted.",
        "A hospital moves the model by as much as its admission bound and its weight allow.",
    ),
    "norm_bound": (
        "The weighted mean, after every update is held to {factor:g} times the median of norm over reach.",
        "An update of ordinary length in a wrong direction is not noticed: a hospital with wrong labels, or "
        "a backdoor that needs no large change, still has its weight in the mean. Half of the hospitals "
        "together can move the median.",
    ),
    "median": (
        "The median of every parameter; weights play no part.",
        "Small hospitals count as much as large ones, and what only one hospital has seen is lost. A shift "
        "that stays within the spread of the others goes through. Half of the hospitals together decide.",
    ),
    "trimmed_mean": (
        "The mean of every parameter without the {trim} lowest and highest values; weights play no part.",
        "What only one hospital has seen is partly lost. A shift that stays within the spread of the others "
        "goes through, and so do more than {trim} hospitals that act together.",
    ),
    "krum": (
        "The mean of the {keep} updates that lie closest to the others; up to {malicious} may be anything.",
        "The other updates are thrown away, also those of an honest hospital that differs from the rest. A "
        "shift that stays within the spread of the others goes through.",
    ),
    "secure": (
        "The sum of the updates under masks: nobody sees one of them.",
        "Whoever sees only a sum cannot tell whose part of it is wrong: single updates are bounded by the "
        "hospitals' own code alone, and no influence can be shown.",
    ),
}


def remedy_of(state: str, number: str | None, detail: str) -> Html | None:
    """What to do about a state: of a refusal what `docs/errors.md` says, where this is a checkout."""
    if number is not None:
        return _from_errors(number)
    if state == "silent":
        return Html(
            "Ask the hospital whether its edge worker runs and reaches this "
            "address; a task that is slow needs a longer <code>deadline_seconds</code>."
        )
    if "not connected" in detail:
        return Html(
            "Its edge worker was not heard of when the round opened. The next round counts on it as soon as "
            "it is connected."
        )
    if "no data sheet" in detail:
        return Html("It has not taken in its data for this study: run the study's intake.")
    return Html(
        "Its data sheet names the checks that failed: correct the data or the mapping and run intake again."
    )


def _from_errors(number: str) -> Html | None:
    """The remedy of a number, with the few signs of Markdown that it uses; None without the documentation."""
    if not _ERRORS.exists():
        return None
    name = SENTENCES[number][0]
    section = re.search(
        rf"^### {number} {name}$.*?\*\*What to do\.\*\* (.*?)(?=\n\n|\Z)",
        _ERRORS.read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    if section is None:
        return None
    text = section.group(1).replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")
    text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"<code>docs/\1</code>", text)
    return Html(re.sub(r"`([^`]+)`", r"<code>\1</code>", text))
