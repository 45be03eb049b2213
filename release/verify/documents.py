"""The dossier's machine-readable parts: conformance matrix, SBOM with model card, VEX, regulatory status."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

from contracts.errors import ConsiliumError
from contracts.regulatory import RegulatoryStatement
from contracts.release import INVESTIGATIONAL
from contracts.signing import open_signed, parse_signed
from release.contents import CONFORMANCE, REGULATORY, SBOM, VEX
from release.verify.check import Opened


def conformance(release: Opened) -> str:
    """The conformance matrix has no empty cell, and what it calls met is where it says (E711)."""
    from release.dossier.conformance import check_conformance

    document = release.json(CONFORMANCE)
    problems = check_conformance(document, release.read)
    if problems:
        raise ConsiliumError("E711", "; ".join(problems[:5]))
    return f"{CONFORMANCE} is complete"


def schemas(release: Opened) -> str:
    """SBOM and VEX are valid CycloneDX 1.6, and the SBOM holds this model with its card (E713)."""
    for path in (SBOM, VEX):
        _valid(path, release.read(path).decode())
    _card(release, json.loads(release.read(SBOM)))
    return f"{SBOM}, {VEX}: valid CycloneDX 1.6"


def regulatory(release: Opened) -> str:
    """A status other than the default is stated and signed by a person, for this protocol (E714)."""
    manifest = release.manifest
    status = manifest.regulatory_status
    if not release.has(REGULATORY):
        if status != INVESTIGATIONAL:
            raise ConsiliumError("E714", f"{status!r} without a signed {REGULATORY}")
        return status
    text = release.read(REGULATORY)
    try:
        signed = parse_signed(text)
        said = open_signed(text, RegulatoryStatement, signed.signer, signed.key)
    except ConsiliumError as error:
        raise ConsiliumError("E714", f"{REGULATORY}: {error}") from error
    found = (said.product, said.protocol_hash, said.status)
    if found != (manifest.product, manifest.protocol_hash, status):
        raise ConsiliumError("E714", f"{REGULATORY} states {said.status!r} of another product or protocol")
    if manifest.published is None or said.time > manifest.published:
        raise ConsiliumError("E714", f"{REGULATORY} is dated {said.time}, after publication")
    return f"{status}: stated by {said.name} ({said.role}) with key {signed.key[:8]}..."


@cache
def _validator() -> Any:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    return JsonStrictValidator(SchemaVersion.V1_6)


def _valid(path: str, text: str) -> None:
    # The schema lets its `$schema` and version go unsaid; a reader must not have to guess them.
    document = json.loads(text)
    if document.get("specVersion") != "1.6":
        raise ConsiliumError("E713", f"{path} is CycloneDX {document.get('specVersion')!r}, expected '1.6'")
    error = _validator().validate_str(text)
    if error is not None:
        raise ConsiliumError("E713", f"{path}: {str(error)[:300]}")


def _card(release: Opened, sbom: dict[str, Any]) -> None:
    models = [part for part in _components(sbom) if part.get("type") == "machine-learning-model"]
    if len(models) != 1:
        raise ConsiliumError("E713", f"{SBOM} names {len(models)} machine-learning models, expected 1")
    if not models[0].get("modelCard"):
        raise ConsiliumError("E713", f"{SBOM}: the model has no modelCard")
    digests = {line["content"] for line in models[0].get("hashes", []) if line["alg"] == "SHA-256"}
    if digests != {release.sha256("model.onnx")}:
        raise ConsiliumError("E713", f"{SBOM} is of another model.onnx")


def _components(sbom: dict[str, Any]) -> Iterator[dict[str, Any]]:
    main = sbom.get("metadata", {}).get("component")
    waiting = [*([main] if main else []), *sbom.get("components", [])]
    while waiting:
        part = waiting.pop()
        yield part
        waiting += part.get("components", [])
