"""Every file of the dossier by its path in the release, in the order in which one needs the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from contracts.canonical import sha256
from release.dossier import (
    annex_iv,
    chai,
    change_control,
    conformance,
    governance,
    hti1,
    intended_use,
    model_description,
    monitoring,
    provenance,
    risk,
    sbom,
    soup,
    split_attestation,
    statements,
    tripod_ai,
    vex,
)
from release.facts import ReleaseFacts

Files = Mapping[str, bytes]
Make = Callable[[ReleaseFacts, Files], bytes]


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

# What machines read.
COMPONENTS: tuple[tuple[str, Make], ...] = (
    ("sbom.cdx.json", lambda facts, files: sbom.sbom(facts, sha256(files["model.onnx"]))),
    ("vex.cdx.json", lambda facts, _: vex.vex(facts)),
    ("soup.json", lambda facts, _: soup.soup(facts)),
    ("dossier/chai.xml", lambda facts, _: chai.chai(facts)),
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
    for path, make in (*DOCUMENTS, *COMPONENTS, *INDEXES):
        made[path] = make(facts, {**files, **made})
    digests = {path: sha256(data) for path, data in sorted({**files, **made}.items())}
    made["provenance.json"] = provenance.provenance(facts, digests)
    made[conformance.FILE] = conformance.conformance(facts, {**files, **made})
    return made
