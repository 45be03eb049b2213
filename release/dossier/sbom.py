"""`sbom.cdx.json`: CycloneDX 1.6 bill of materials of a release, with the model and its card (ECMA-424)."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from contracts.canonical import digest
from release.dossier.licences import licences
from release.dossier.model_card import data_components, model_component, model_reference, properties
from release.dossier.vulnerabilities import normal_name, purl
from release.dossier.writing import json_bytes
from release.facts import Component, ReleaseFacts


def sbom(facts: ReleaseFacts, model_sha256: str) -> bytes:
    """Return the bill of materials; the same facts give the same bytes.

    The packages are those installed at the coordinator: `required` where a deployment needs them to run and
    verify the model, `excluded` where they only made it.

    Args:
        model_sha256: of model.onnx.
    """
    packages = distinct(facts.components)
    data = data_components(facts)
    body: dict[str, Any] = {
        **header(),
        "metadata": {
            "timestamp": facts.created,
            "tools": tools(facts),
            "component": _release(facts),
            **_manufacturer(facts),
            "properties": _properties(facts),
        },
        "components": [model_component(facts, model_sha256), *data, *map(_package, packages)],
        "dependencies": _dependencies(facts, [part["bom-ref"] for part in data], packages),
        "compositions": _compositions(facts, packages),
    }
    return numbered(body)


def header() -> dict[str, Any]:
    """Return what every CycloneDX 1.6 document begins with."""
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
    }


def tools(facts: ReleaseFacts) -> dict[str, Any]:
    """Return the software that wrote the document."""
    return {"components": [{"type": "application", "name": "consilium", "version": facts.code_version}]}


def numbered(body: dict[str, Any]) -> bytes:
    """Return a document with its serial number, a UUID (RFC 9562, version 5) of its content."""
    number = uuid.uuid5(uuid.NAMESPACE_URL, f"urn:consilium:cyclonedx:{digest(body)}")
    return json_bytes(body | {"serialNumber": f"urn:uuid:{number}"})


def distinct(components: Sequence[Component]) -> list[Component]:
    """Return the packages by name and version, each once; needed at a deployment if one entry says so."""
    found: dict[str, Component] = {}
    for part in sorted(components, key=lambda c: (purl(c.name, c.version), not c.runtime, c.license)):
        found.setdefault(purl(part.name, part.version), part)
    return list(found.values())


def reference(package: Component) -> str:
    """Return the reference of a package within the document: its package URL."""
    return purl(package.name, package.version)


def _release(facts: ReleaseFacts) -> dict[str, Any]:
    return {
        "type": "application",
        "bom-ref": facts.release_id,
        "name": facts.product,
        "version": facts.version,
        "description": facts.protocol.title,
    }


def _manufacturer(facts: ReleaseFacts) -> dict[str, Any]:
    dossier = facts.protocol.dossier
    if not (dossier.manufacturer and dossier.manufacturer.strip()):
        return {}
    maker: dict[str, Any] = {"name": dossier.manufacturer}
    if dossier.contact and dossier.contact.strip():
        maker["contact"] = [{"name": dossier.contact}]
    return {"manufacturer": maker}


def _properties(facts: ReleaseFacts) -> list[dict[str, str]]:
    return properties(
        {
            "regulatory_status": facts.regulatory,
            "study": facts.protocol.study,
            "protocol_hash": facts.protocol.hash,
            "trained_model": facts.model,
            "rounds": facts.rounds,
            "decision_threshold": facts.decision_threshold,
            "privacy_mode": facts.protocol.privacy.mode,
            "epsilon": facts.epsilon,
            "delta": facts.delta,
            "environment": facts.lineage.environment,
            "code_commit": facts.lineage.code_commit,
        }
    )


def _package(package: Component) -> dict[str, Any]:
    part: dict[str, Any] = {
        "type": "library",
        "bom-ref": reference(package),
        "name": package.name,
        "version": package.version,
        "scope": "required" if package.runtime else "excluded",
        "purl": reference(package),
    }
    stated = licences(package.license)
    return part | {"licenses": stated} if stated else part


def _dependencies(facts: ReleaseFacts, data: list[str], packages: list[Component]) -> list[dict[str, Any]]:
    """What is known: the model needs its data and the packages that run it, and packages each other."""
    runtime = [reference(p) for p in packages if p.runtime]
    by_name = {normal_name(p.name): reference(p) for p in packages}
    graph: list[dict[str, Any]] = [
        {"ref": facts.release_id, "dependsOn": [model_reference(facts)]},
        {"ref": model_reference(facts), "dependsOn": sorted([*data, *runtime])},
        *({"ref": ref} for ref in data),
    ]
    for package in packages:
        needs = sorted(
            {by_name[n] for n in map(normal_name, package.requires) if n in by_name} - {reference(package)}
        )
        entry: dict[str, Any] = {"ref": reference(package)}
        graph.append(entry | {"dependsOn": needs} if needs else entry)
    return graph


def _compositions(facts: ReleaseFacts, packages: list[Component]) -> list[dict[str, Any]]:
    """How complete it is: Python packages are listed, the interpreter and the operating system are not."""
    graph_known = any(p.requires for p in packages)
    found: list[dict[str, Any]] = [{"aggregate": "incomplete", "assemblies": [facts.release_id]}]
    if packages:
        aggregate = "complete" if graph_known else "unknown"
        found.append({"aggregate": aggregate, "dependencies": [reference(p) for p in packages]})
    return found
