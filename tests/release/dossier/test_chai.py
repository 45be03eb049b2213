"""The CHAI Applied Model Card: valid v0.2, with what people wrote, and visibly open where they did not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from release.dossier.chai import FIELDS, NAMESPACE, OPEN, STATEMENTS, chai
from release.facts import ReleaseFacts
from tests.release.dossier.materials import silent, spoken, withheld

XSD = Path(os.environ.get("CONSILIUM_DATA", "nowhere")) / "schemas/chai/applied-model-card-0.2.xsd"
SECTIONS = (
    *("BasicInfo", "ReleaseInfo", "ModelSummary", "UsesAndDirections", "Warnings", "TrustIngredients"),
    *("KeyMetrics", "Resources", "Bibliography"),
)
# xmldsig is named by the schema and used by no card of ours: what it imports is replaced by this.
SIGNATURE = (
    '<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema" '
    'targetNamespace="http://www.w3.org/2000/09/xmldsig#"><xs:element name="Signature"/></xs:schema>'
)
ALL = pytest.mark.parametrize("make", [spoken, silent, lambda: withheld(silent())])


def texts(card: bytes) -> dict[str, str]:
    """Text of every element that has one, by its name; of several the last."""
    root = ElementTree.fromstring(card)
    return {e.tag.rpartition("}")[2]: e.text or "" for e in root.iter() if len(e) == 0}


@ALL
def test_the_card_has_the_sections_in_order_and_no_empty_text(make: Callable[[], ReleaseFacts]) -> None:
    root = ElementTree.fromstring(chai(make()))
    assert root.tag == f"{{{NAMESPACE}}}AppliedModelCard"
    assert [e.tag.rpartition("}")[2] for e in root] == list(SECTIONS)
    empty = [e.tag.rpartition("}")[2] for e in root.iter() if len(e) == 0 and not (e.text or "").strip()]
    assert empty == ["Keywords"]
    for value in root.iter(f"{{{NAMESPACE}}}ValueJson"):
        json.loads(value.text or "")


@ALL
def test_the_card_is_valid_against_the_published_schema(make: Callable[[], ReleaseFacts]) -> None:
    if not XSD.exists():
        pytest.skip("CONSILIUM_DATA has no CHAI schema; the structure is tested above")
    from lxml import etree

    class Signature(etree.Resolver):
        def resolve(self, url: str, public: str, context: object) -> object:
            return self.resolve_string(SIGNATURE, context) if "xmldsig" in url else None

    parser = etree.XMLParser(no_network=True)
    parser.resolvers.add(Signature())
    schema = etree.XMLSchema(etree.parse(str(XSD), parser))
    assert schema.validate(etree.fromstring(chai(make()))), schema.error_log
    broken = etree.fromstring(chai(make()).replace(b"Bibliography", b"Literature"))
    assert not schema.validate(broken)


def test_the_same_facts_give_the_same_bytes() -> None:
    assert chai(spoken()) == chai(spoken())


def test_what_people_wrote_is_quoted_and_what_they_did_not_is_open() -> None:
    written, bare = chai(spoken()).decode(), chai(silent()).decode()
    dossier = spoken().protocol.dossier
    for name in FIELDS:
        value = getattr(dossier, name)
        for text in value if isinstance(value, list) else [value]:
            assert text in written, name
        assert f"{OPEN} (dossier.{name})" in bare and f"{OPEN} (dossier.{name})" not in written, name
    for name in STATEMENTS:
        assert f"{OPEN} (dossier.statements.chai.{name})" in bare, name
    assert texts(chai(spoken()))["PeerReviewedPublications"] == "None <yet> & \ufffdcounting."


def test_results_are_the_pooled_estimates_or_said_to_be_withheld() -> None:
    root = ElementTree.fromstring(chai(spoken()))
    results = {
        r[0].text: json.loads(r[1].text or "") for r in root.iter(f"{{{NAMESPACE}}}MetricResult")
    }  # fmt: skip
    assert results["auroc, pooled"]["value"] == spoken().metrics["pooled"]["auroc"]["value"]
    assert "auroc, sex 1, pooled" in results and "brier, pooled" in results
    # Accuracy may be shown under the cell, so that only fairness and safety have nothing.
    assert chai(withheld(spoken())).count(b"withheld under the minimum cell") == 2
