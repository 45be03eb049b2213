"""The release directory: written whole as a candidate, approved by digest, signed with the release key.

What is in it stands in `release.contents`. A directory appears under its name complete or not at all: it is
written beside it and renamed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from contracts.canonical import canonical_json, sha256
from contracts.errors import ConsiliumError
from contracts.release import Approval, ModelInput, ReleaseFile, ReleaseManifest
from contracts.signing import first_problem
from contracts.study import CategoricalFeature, StudyProtocol
from release.contents import DATA_SHEETS, EVENTS, MANIFEST, REGULATORY
from release.dp_statement import dp_statement, statement
from release.export import OPSET
from release.facts import ReleaseFacts
from release.golden import golden_document
from release.ledgers import FOLDER as LEDGERS
from release.signature import ReleaseKey

MAX_MANIFEST_BYTES = 128 * 1024 * 1024  # read before its signature is known

# Further files of a release by path, from the facts and the files written so far (release.dossier.assemble).
DossierFiles = Callable[[ReleaseFacts, Mapping[str, bytes]], Mapping[str, bytes]]

_README = """\
{title}
release {version} of {product}, study {study}

Regulatory status: {regulatory}.
Decision support for the intended use in manifest.json; read validation.html before installing.

How to verify (offline; needs consilium with its `verify` extra, no torch, no Airflow):

    consilium release verify DIR --key release.pub.pem

Get the coordinator's public key from the coordinator by another way than this folder. A key found inside or
beside a release proves nothing. The command exits with 0 only if the signature over this whole directory is
by that key, every file is the one that was signed, the approvals are for exactly these files, every
acceptance gate passed, and the model answers the golden rows.

model.onnx takes `features` float32 [patients, {width}] in the order, units and ranges of manifest.json
("inputs"), NaN for missing, and returns `probability` and `out_of_range`. Do not act on the probability of a
row that is out of range: training could not have seen it. The decision threshold is {threshold}.
{source}
"""


def write_candidate(
    target: Path, facts: ReleaseFacts, onnx: Path, dossier: DossierFiles | None = None
) -> ReleaseManifest:
    """Write a candidate: everything of a release but approvals and signature.

    The same facts and the same ONNX file give the same bytes. Needs onnxruntime, matplotlib and jinja2.

    Args:
        target: directory to create; an earlier candidate there is replaced.
        facts: everything the dossier says.
        onnx: the exported file.
        dossier: gives the further files; `release.dossier.assemble` unless a test says otherwise.

    Returns:
        The manifest; its `candidate_digest` is what an approval must name.

    Raises:
        ConsiliumError: E703, the dossier would replace a file that is written here.
    """
    from release.dossier.assemble import dossier_files

    files = _own_files(facts, onnx)
    further = (dossier or dossier_files)(facts, files)
    twice = sorted({*files, MANIFEST} & set(further))
    if twice:
        raise ConsiliumError("E703", f"the dossier would replace {', '.join(twice)}")
    files |= further
    manifest = _manifest(facts, files)
    with _appearing(target, replace=True) as folder:
        for path, data in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        (folder / MANIFEST).write_bytes(canonical_json(manifest))
    return manifest


def _own_files(facts: ReleaseFacts, onnx: Path) -> dict[str, bytes]:
    """The files of a candidate by path, without manifest and dossier."""
    from release.report import validation_document, validation_page

    protocol, promised = facts.protocol, statement(facts)
    files = {
        "model.onnx": onnx.read_bytes(),
        "study.json": canonical_json(protocol),
        "validation.json": _json(validation_document(facts)),
        "validation.html": validation_page(facts).encode(),
        "dp_statement.md": dp_statement(facts, promised).encode(),
        "dp_statement.json": _json(promised),
        "golden.json": _json(golden_document(protocol, onnx, facts.threshold)),
        "README.txt": _readme(facts).encode(),
    }
    files |= {f"{LEDGERS}/{name}.jsonl": excerpt for name, excerpt in sorted(facts.ledgers.items())}
    files |= {
        f"{DATA_SHEETS}/{site}.json": sheet.encode() for site, sheet in sorted(facts.data_sheets.items())
    }
    if facts.events:
        files[EVENTS] = facts.events
    if facts.regulatory_statement is not None:
        files[REGULATORY] = facts.regulatory_statement.encode()
    return files


def _manifest(facts: ReleaseFacts, files: Mapping[str, bytes]) -> ReleaseManifest:
    protocol = facts.protocol
    return ReleaseManifest(
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
        inputs=model_inputs(protocol),
        outputs=["probability", "out_of_range"],
        decision_threshold=facts.decision_threshold,
        privacy_mode=protocol.privacy.mode,
        epsilon=facts.epsilon,
        delta=facts.delta,
        site_privacy=list(facts.site_privacy),
        gates=list(facts.gates),
        lineage=facts.lineage,
        events=_events_head(facts.events),
        sign_off=list(protocol.sign_off.roles),
        triggered_by=facts.triggered_by,
        withdrawn=dict(facts.withdrawn) or None,
        files=[
            ReleaseFile(path=path, sha256=sha256(data), size=len(data))
            for path, data in sorted(files.items())
        ],
        verified=facts.verified or facts.created,
        created=facts.created,
    )


def _events_head(events: bytes) -> str | None:
    if not events:
        return None
    from release.events import chain_head

    return chain_head(events)


def read_manifest(folder: Path) -> ReleaseManifest:
    """Read `manifest.json` without trusting it.

    Raises:
        ConsiliumError: E703, no manifest; E802, it is not the canonical JSON of one.
    """
    data = read_bounded(folder / MANIFEST, MAX_MANIFEST_BYTES, "E703")
    try:
        manifest = ReleaseManifest.model_validate_json(data)
    except ValidationError as error:
        raise ConsiliumError("E802", f"{MANIFEST}: {first_problem(error)}") from error
    if canonical_json(manifest) != data:
        raise ConsiliumError("E802", f"{MANIFEST} is not in canonical form (RFC 8785)")
    return manifest


def read_bounded(path: Path, limit: int, number: str) -> bytes:
    """Read a file that nobody has vouched for yet: no link, no pipe or device, at most `limit` bytes.

    Raises:
        ConsiliumError: of that number.
    """
    try:
        # A link could lead to an endless device; a pipe without a writer would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise ConsiliumError(number, f"{path} is no ordinary file")
            data = file.read(limit + 1)
    except OSError as error:
        raise ConsiliumError(number, f"{path}: {error.strerror}") from error
    if len(data) > limit:
        raise ConsiliumError(number, f"{path} has more than {limit} bytes")
    return data


def seal(
    candidate: Path,
    target: Path,
    approvals: list[Approval],
    key: ReleaseKey,
    published: str,
    verify: Callable[[Path], None] | None = None,
) -> ReleaseManifest:
    """Turn an approved candidate into a signed release at `target`.

    Everything is checked again here: whoever calls this cannot skip a gate or approve other files.

    Args:
        candidate: directory of `write_candidate`; stays as it is.
        target: the release directory; must not exist.
        approvals: one for each role of the study's sign-off; each names the candidate's digest.
        key: the coordinator's release key.
        published: UTC.
        verify: raises a refusal for a signed directory that does not verify; then none appears.

    Raises:
        ConsiliumError: what `verify` raises; E703 or E701, a file is missing, extra or changed; E704, E705,
            E709 or E803, an approval is missing or does not count; E601 or E602, a gate did not pass; E707,
            `target` exists.
    """
    from release.verify import check_approvals, check_files, check_gates

    manifest = read_manifest(candidate).model_copy(update={"approvals": approvals, "published": published})
    for check in (
        *check_files(candidate, manifest),
        *check_approvals(manifest),
        check_gates(manifest),
    ):
        check.require()
    if target.exists():
        raise ConsiliumError("E707", f"{target}")
    with _appearing(target, replace=False) as folder:
        for file in manifest.files:
            (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(candidate / file.path, folder / file.path)
        (folder / MANIFEST).write_bytes(canonical_json(manifest))
        key.sign_directory(folder)
        # The candidate could have changed between the check and the copy.
        for check in check_files(folder, manifest, key.public):
            check.require()
        if verify is not None:
            verify(folder)
    return manifest


def model_inputs(protocol: StudyProtocol) -> list[ModelInput]:
    """The columns of the model's input, in order."""
    return [
        ModelInput(name=f.name, unit=f.unit, kind=f.kind, levels=list(f.levels))
        if isinstance(f, CategoricalFeature)
        else ModelInput(name=f.name, unit=f.unit, kind=f.kind, low=f.range[0], high=f.range[1])
        for f in protocol.features
    ]


def _readme(facts: ReleaseFacts) -> str:
    return _README.format(
        title=facts.protocol.title,
        version=facts.version,
        product=facts.product,
        study=facts.protocol.study,
        regulatory=facts.regulatory,
        width=len(facts.protocol.features),
        threshold=facts.decision_threshold,
        source=facts.threshold_source,
    )


def _json(value: dict[str, Any]) -> bytes:
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


@contextlib.contextmanager
def _appearing(target: Path, *, replace: bool) -> Iterator[Path]:
    """Give a temporary folder of the same name, and put it in place when the block ends without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    apart = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    folder = apart / target.name  # its name goes into the signature
    try:
        folder.mkdir(mode=0o755)
        yield folder
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        if replace and target.exists():
            target.rename(apart / "before")
        try:
            folder.rename(target)
        except OSError as error:  # somebody else put one there meanwhile
            raise ConsiliumError("E707", f"{target}: {error.strerror}") from error
    finally:
        shutil.rmtree(apart, ignore_errors=True)
