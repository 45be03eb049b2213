"""With the key: a bill of materials, a card or a regulatory status that is not what it must be."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from contracts.regulatory import RegulatoryStatement
from contracts.signing import to_text
from tests.full_release import PERSON, full_study
from tests.release.mutations.world import World, document, mutation


def card(content: Any) -> Any:
    """The model among the components of a bill."""
    parts = [content["metadata"].get("component"), *content.get("components", [])]
    return next(part for part in parts if part and part["type"] == "machine-learning-model")


def sbom(world: World, change: Callable[[Any], None]) -> None:
    document(world, "sbom.cdx.json", change)


@mutation("signature", "E702", "by the key")
def a_stripped_card_under_another_key(world: World) -> None:
    content = json.loads((world.folder / "sbom.cdx.json").read_bytes())
    del card(content)["modelCard"]
    world.it.rewrite({"sbom.cdx.json": json.dumps(content).encode()}, key=world.stranger)


@mutation("schemas", "E713", "no modelCard")
def a_stripped_card(world: World) -> None:
    sbom(world, lambda d: card(d).pop("modelCard"))


@mutation("schemas", "E713", "0 machine-learning models")
def no_model_in_the_bill(world: World) -> None:
    sbom(world, lambda d: card(d).update(type="data"))


@mutation("schemas", "E713", "another model.onnx")
def the_bill_of_another_model(world: World) -> None:
    sbom(world, lambda d: card(d)["hashes"][0].update(content="0" * 64))


@mutation("schemas", "E713", "sbom.cdx.json")
def a_bill_with_a_field_of_its_own(world: World) -> None:
    sbom(world, lambda d: d.update(extra=1))


@mutation("schemas", "E713", "'1.4'")
def a_bill_of_another_version(world: World) -> None:
    sbom(world, lambda d: d.update(specVersion="1.4"))


@mutation("schemas", "E713", "vex.cdx.json")
def a_vex_that_is_no_vex(world: World) -> None:
    document(world, "vex.cdx.json", lambda d: d.update(vulnerabilities="none"))


def statement(**changes: Any) -> bytes:
    fields = {
        "product": "tiny",
        "protocol_hash": full_study().hash,
        "status": "cleared",
        "basis": "decision of a test",
        "name": "R. Test",
        "role": "regulatory affairs",
        "time": "2026-01-01T00:04:00Z",
    }
    return to_text(PERSON.sign(RegulatoryStatement.model_validate(fields | changes))).encode()


@mutation("regulatory status", "E714", "without a signed")
def a_status_without_a_statement(world: World) -> None:
    world.it.rewrite(regulatory_status="cleared")


@mutation("regulatory status", "E714", "another product")
def a_status_that_nobody_stated(world: World) -> None:
    world.it.rewrite({"regulatory.json": statement()}, regulatory_status="cleared for everything")


@mutation("regulatory status", "E714", "another product")
def a_statement_for_another_protocol(world: World) -> None:
    world.it.rewrite({"regulatory.json": statement(protocol_hash="1" * 64)}, regulatory_status="cleared")


@mutation("regulatory status", "E714", "after publication")
def a_statement_after_publication(world: World) -> None:
    data = statement(time="2026-01-01T00:06:01Z")
    world.it.rewrite({"regulatory.json": data}, regulatory_status="cleared")


@mutation("regulatory status", "E714", "E803")
def a_forged_statement(world: World) -> None:
    data = statement(basis="decision of a test").replace(b"decision of a test", b"decision of a fact")
    world.it.rewrite({"regulatory.json": data}, regulatory_status="cleared")
