"""Every file of the dossier by its path in the release, in the order in which one needs the other."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import ModuleType

from contracts.canonical import sha256
from release.dossier import (
    annex_iv,
    change_control,
    conformance,
    governance,
    hti1,
    intended_use,
    model_description,
    monitoring,
    risk,
    split_attestation,
    statements,
    tripod_ai,
)
from release.facts import ReleaseFacts

Files = Mapping[str, bytes]
Make = Callable[[ReleaseFacts, Files], bytes]


def _module(name: str) -> ModuleType | None:
    """Return a module of this package, or None where this version has none; any other failure is raised."""
    path = f"release.dossier.{name}"
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name == path:
            return None
        raise


def _sbom(module: ModuleType, facts: ReleaseFacts, files: Files) -> bytes:
    made: bytes = module.sbom(facts, sha256(files["model.onnx"]))
    return made


def _provenance(module: ModuleType, facts: ReleaseFacts, files: Files) -> bytes:
    made: bytes = module.provenance(facts, {path: sha256(data) for path, data in sorted(files.items())})
    return made


def _plain(name: str) -> Callable[[ModuleType, ReleaseFacts, Files], bytes]:
    def make(module: ModuleType, facts: ReleaseFacts, files: Files) -> bytes:
        made: bytes = getattr(module, name)(facts)
        return made

    return make


# What people and authorities read, made of facts and of the study's YAML alone.
DOCUMENTS: tuple[tuple[str, Make], ...] = (
    (statements.FILE, lambda facts, _: statements.statements_file(facts, conformance.asked_identifiers())),
    (intended_use.FILE, lambda facts, _: intended_use.intended_use(facts)),
    (model_description.FILE, model_description.model_description),
    (split_attestation.FILE, lambda facts, _: split_attestation.split_attestation(facts)),
    (governance.FILE, lambda facts, _: governance.governance(facts)),
    (change_control.FILE, lambda facts, _: change_control.change_control(facts)),
    (risk.FILE, lambda facts, _: risk.risk(facts)),
    (monitoring.FILE, lambda facts, _: monitoring.monitoring(facts)),
    (hti1.FILE, lambda facts, _: hti1.hti1(facts)),
)

# Made by modules that a version may lack: path, module, and how it is called.
COMPONENTS: tuple[tuple[str, str, Callable[[ModuleType, ReleaseFacts, Files], bytes]], ...] = (
    ("sbom.cdx.json", "sbom", _sbom),
    ("vex.cdx.json", "vex", _plain("vex")),
    ("soup.json", "soup", _plain("soup")),
    ("dossier/chai.xml", "chai", _plain("chai")),
)

# Indexes point into all of the above.
INDEXES: tuple[tuple[str, Make], ...] = (
    (tripod_ai.FILE, tripod_ai.tripod_ai),
    (annex_iv.FILE, annex_iv.annex_iv),
)


def dossier_files(facts: ReleaseFacts, files: Files) -> dict[str, bytes]:
    """Return every file of the dossier by its path in the release.

    The same facts and files give the same bytes.

    Args:
        facts: everything the release is made from.
        files: what was written before: `model.onnx`, `study.json`, `validation.json`, `dp_statement.json`,
            `golden.json`, `README.txt`, data sheets, ledgers, events.

    Returns:
        The new files only; `conformance.json` is made last, over all of them, `provenance.json` before it.
    """
    made: dict[str, bytes] = {}
    for path, make in DOCUMENTS:
        made[path] = make(facts, {**files, **made})
    for path, name, call in COMPONENTS:
        module = _module(name)
        if module is not None:
            made[path] = call(module, facts, {**files, **made})
    for path, make in INDEXES:
        made[path] = make(facts, {**files, **made})
    module = _module("provenance")
    if module is not None:
        made["provenance.json"] = _provenance(module, facts, {**files, **made})
    made[conformance.FILE] = conformance.conformance(facts, {**files, **made})
    return made
