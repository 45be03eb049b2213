"""The page of a study that a gate stopped: which gate, by how much, at which hospital."""

from __future__ import annotations

import shutil
from pathlib import Path

from durable.files import write_atomic, write_json
from release.facts import ReleaseFacts
from tasks.home import CoordinatorHome


def release_folder(home: CoordinatorHome, study: str) -> Path:
    """Where the release of a study is made: `model.onnx`, `candidate/`, or `stopped/`."""
    return home.study(study) / "release"


def evidence_page(home: CoordinatorHome, study: str) -> Path:
    """The validation page to show for a study: of the gate that stopped it, else of its candidate."""
    stopped = release_folder(home, study) / "stopped" / "validation.html"
    return stopped if stopped.is_file() else release_folder(home, study) / "candidate" / "validation.html"


def write_stopped(home: CoordinatorHome, facts: ReleaseFacts) -> Path:
    """Write the validation report of a model that may not be released, and return its folder.

    It is written before the study ends: one that cannot be written leaves the study without a release and
    the step to be repeated.
    """
    from release.report import validation_document, validation_page  # matplotlib, jinja2: only here

    folder = release_folder(home, facts.protocol.study) / "stopped"
    write_json(folder / "validation.json", validation_document(facts))
    write_atomic(folder / "validation.html", validation_page(facts).encode())
    return folder


def clear_stopped(home: CoordinatorHome, study: str) -> None:
    """Remove the page of a gate that could not be decided before and now has passed."""
    shutil.rmtree(release_folder(home, study) / "stopped", ignore_errors=True)
