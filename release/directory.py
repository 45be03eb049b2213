"""The release directory: written whole as a candidate, approved by digest, sealed with the coordinator's key.

```
model.onnx         the model: raw clinical units in, probability and out_of_range out
manifest.json      canonical JSON of ReleaseManifest: facts, gates, SHA-256 of every other file, approval
manifest.sig       Ed25519 over manifest.json by the coordinator (sealed releases only)
study.json         canonical JSON of the protocol; its SHA-256 is the protocol hash
validation.json    metrics pooled and by hospital, gates, calibration, parity
validation.html    the same for a reader
dp_statement.md    what privacy is promised, and what is not; dp_statement.json: the same numbers
ledgers/           one excerpt of a privacy ledger for each hospital, from which its epsilon is composed anew
golden.json        inputs and outputs by which a deployment checks itself
README.txt         how to verify
```

A directory appears under its name complete or not at all: it is written beside it and renamed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from contracts.canonical import canonical_json, sha256
from contracts.errors import ConsiliumError
from contracts.release import Approval, ModelInput, ReleaseFile, ReleaseManifest
from contracts.signing import Signed, SigningKey, first_problem
from contracts.study import CategoricalFeature, StudyProtocol
from release.dp_statement import dp_statement, statement
from release.export import OPSET
from release.facts import ReleaseFacts
from release.golden import golden_document
from release.ledgers import FOLDER

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
SIGNER = "coordinator"

_README = """\
{title}
release {version} of study {study}

Regulatory status: investigational, not cleared.
Decision support for the intended use in manifest.json; read validation.html before installing.

How to verify (offline; needs consilium with its `verify` extra, no torch, no Airflow):

    consilium release verify DIR --key COORDINATOR_PUBLIC_KEY

Get the coordinator's public key (43 characters) from the coordinator by another way than this folder. A
key found inside or beside a release proves nothing. The command exits with 0 only if the signature is by
that key, every file is the one that was signed, the approval is for exactly these files, every acceptance
gate passed, and the model answers the golden rows.

model.onnx takes `features` float32 [patients, {width}] in the order, units and ranges of manifest.json
("inputs"), NaN for missing, and returns `probability` and `out_of_range`. Do not act on the probability of a
row that is out of range: training could not have seen it. The decision threshold is {threshold}.
{source}
"""


def write_candidate(target: Path, facts: ReleaseFacts, onnx: Path) -> ReleaseManifest:
    """Write a candidate: everything of a release but approval and signature.

    The same facts and the same ONNX file give the same bytes. Needs onnxruntime, matplotlib and jinja2.

    Args:
        target: directory to create; an earlier candidate there is replaced.
        facts: everything the dossier says.
        onnx: the exported file.

    Returns:
        The manifest; its `candidate_digest` is what an approval must name.
    """
    from release.report import validation_document, validation_page

    protocol = facts.protocol
    with _appearing(target, replace=True) as folder:
        shutil.copyfile(onnx, folder / "model.onnx")
        (folder / "study.json").write_bytes(canonical_json(protocol))
        _write_json(folder / "validation.json", validation_document(facts))
        _write_text(folder / "validation.html", validation_page(facts))
        promised = statement(facts)
        _write_text(folder / "dp_statement.md", dp_statement(facts, promised))
        _write_json(folder / "dp_statement.json", promised)
        for name, excerpt in sorted(facts.ledgers.items()):
            (folder / FOLDER).mkdir(exist_ok=True)
            (folder / FOLDER / f"{name}.jsonl").write_bytes(excerpt)
        _write_json(folder / "golden.json", golden_document(protocol, folder / "model.onnx", facts.threshold))
        readme = _README.format(
            title=protocol.title,
            version=facts.version,
            study=protocol.study,
            width=len(protocol.features),
            threshold=facts.decision_threshold,
            source=facts.threshold_source,
        )
        _write_text(folder / "README.txt", readme)
        manifest = ReleaseManifest(
            product=facts.product,
            study=protocol.study,
            title=protocol.title,
            intended_use=protocol.intended_use,
            version=facts.version,
            regulatory_status=facts.regulatory,
            change=facts.change,
            protocol_hash=protocol.hash,
            code_version=facts.code_version,
            rounds=facts.rounds,
            sites=facts.sites,
            model=facts.model,
            opset=OPSET,
            inputs=_inputs(protocol),
            outputs=["probability", "out_of_range"],
            decision_threshold=facts.decision_threshold,
            privacy_mode=protocol.privacy.mode,
            epsilon=facts.epsilon,
            delta=facts.delta,
            site_privacy=list(facts.site_privacy),
            gates=list(facts.gates),
            lineage=facts.lineage,
            sign_off=list(protocol.sign_off.roles),
            triggered_by=facts.triggered_by,
            files=_listing(folder),
            verified=facts.verified or facts.created,
            created=facts.created,
        )
        (folder / MANIFEST).write_bytes(canonical_json(manifest))
    return manifest


def read_manifest(folder: Path) -> ReleaseManifest:
    """Read `manifest.json` without trusting it.

    Raises:
        ConsiliumError: E703, no manifest; E802, it is not the canonical JSON of one.
    """
    try:
        data = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise ConsiliumError("E703", f"{folder / MANIFEST}: {error.strerror}") from error
    try:
        manifest = ReleaseManifest.model_validate_json(data)
    except ValidationError as error:
        raise ConsiliumError("E802", f"{MANIFEST}: {first_problem(error)}") from error
    if canonical_json(manifest) != data:
        raise ConsiliumError("E802", f"{MANIFEST} is not in canonical form (RFC 8785)")
    return manifest


def seal(
    candidate: Path, target: Path, approvals: list[Approval], key: SigningKey, published: str
) -> ReleaseManifest:
    """Turn an approved candidate into a signed release at `target`.

    Everything is checked again here: whoever calls this cannot skip a gate or approve other files.

    Args:
        candidate: directory of `write_candidate`; stays as it is.
        target: the release directory; must not exist.
        approvals: each names the candidate's digest.
        key: the coordinator's.
        published: UTC.

    Raises:
        ConsiliumError: E703 or E701, a file is missing, extra or changed; E601 or E602, a gate did not pass;
            E705, the approval is for another candidate or older than it; E707, `target` exists.
    """
    from release.verify import check_approval, check_files, check_gates

    manifest = read_manifest(candidate).model_copy(update={"approvals": approvals, "published": published})
    for check in (*check_files(candidate, manifest, sealed=False), *check_approval(manifest)):
        check.require()
    check_gates(manifest).require()
    if target.exists():
        raise ConsiliumError("E707", f"{target}")
    with _appearing(target, replace=False) as folder:
        for file in manifest.files:
            (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(candidate / file.path, folder / file.path)
        (folder / MANIFEST).write_bytes(canonical_json(manifest))
        _write_text(folder / SIGNATURE, key.sign_bytes(signed_bytes(manifest)) + "\n")
        # The candidate could have changed between the check and the copy.
        for check in check_files(folder, manifest, sealed=True):
            check.require()
    return manifest


def signed_bytes(manifest: ReleaseManifest) -> bytes:
    """Return the bytes that `manifest.sig` covers: type, signer and manifest, as in every `Signed`."""
    return Signed(
        type=ReleaseManifest.__name__,
        signer=SIGNER,
        key="A" * 43,  # not covered, not written: the verifier brings the key
        document=json.loads(canonical_json(manifest)),
        signature="A" * 86,
    ).signed_bytes()


def _inputs(protocol: StudyProtocol) -> list[ModelInput]:
    return [
        ModelInput(name=f.name, unit=f.unit, kind=f.kind, levels=list(f.levels))
        if isinstance(f, CategoricalFeature)
        else ModelInput(name=f.name, unit=f.unit, kind=f.kind, low=f.range[0], high=f.range[1])
        for f in protocol.features
    ]


def _listing(folder: Path) -> list[ReleaseFile]:
    files = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            name = path.relative_to(folder).as_posix()
            files.append(ReleaseFile(path=name, sha256=sha256(data), size=len(data)))
    return files


def _write_json(path: Path, value: dict[str, Any]) -> None:
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    _write_text(path, text + "\n")


def _write_text(path: Path, text: str) -> None:
    path.write_bytes(text.encode())  # no newline translation: the bytes are hashed


@contextlib.contextmanager
def _appearing(target: Path, *, replace: bool) -> Iterator[Path]:
    """Give a temporary folder beside `target` and rename it there when the block ends without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        folder.chmod(0o755)
        yield folder
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        if replace and target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
            target.rename(old / "old")
            folder.rename(target)
            shutil.rmtree(old)
        else:
            folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
