"""What a release directory holds, in one place.

```
model.onnx         the model: raw clinical units in, probability and out_of_range out
manifest.json      canonical JSON of ReleaseManifest: facts, gates, SHA-256 of every other file, approvals
release.sig        model-signing bundle over all other files by the coordinator's release key (sealed only)
study.json         canonical JSON of the protocol; its SHA-256 is the protocol hash
validation.json    metrics pooled and by hospital, gates, calibration, parity
validation.html    the same for a reader
dp_statement.md    what privacy is promised, and what is not; dp_statement.json: the same numbers
ledgers/           one excerpt of a privacy ledger for each hospital, from which its epsilon is composed anew
data_sheets/       each hospital's signed data sheet
events.jsonl       what happened from registration to the last verification, hash-chained
regulatory.json    a person's signed statement, when the regulatory status is not the default
golden.json        inputs and outputs by which a deployment checks itself
README.txt         how to verify
sbom.cdx.json, vex.cdx.json, conformance.json and all the rest of the dossier (release.dossier)
```
"""

from __future__ import annotations

MANIFEST = "manifest.json"
SIGNATURE = "release.sig"
DATA_SHEETS = "data_sheets"
EVENTS = "events.jsonl"
REGULATORY = "regulatory.json"
SBOM = "sbom.cdx.json"
VEX = "vex.cdx.json"
CONFORMANCE = "conformance.json"

# A release without one of these, or without a data sheet of every hospital, is refused (E703).
REQUIRED = frozenset(
    {
        "model.onnx",
        "study.json",
        "validation.json",
        "validation.html",
        "dp_statement.md",
        "dp_statement.json",
        "golden.json",
        "README.txt",
        EVENTS,
        SBOM,
        VEX,
        CONFORMANCE,
    }
)
