"""The bill of materials: valid CycloneDX 1.6, of this model, with a card that holds only what was written."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from importlib import metadata
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from release.dossier.licences import licences
from release.dossier.model_card import FAMILIES
from release.dossier.sbom import sbom
from release.dossier.vex import vex
from release.facts import Component, ReleaseFacts
from tests.factories import ZERO
from tests.release.dossier.materials import silent, spoken, withheld

VALIDATOR = JsonStrictValidator(SchemaVersion.V1_6)
BOTH = pytest.mark.parametrize("make", [spoken, silent, lambda: withheld(spoken())])


def model_of(bill: dict[str, Any]) -> dict[str, Any]:
    (found,) = [c for c in bill["components"] if c["type"] == "machine-learning-model"]
    return found


@BOTH
def test_bill_and_vex_are_valid_and_the_same_from_the_same_facts(make: Callable[[], ReleaseFacts]) -> None:
    for data, again in ((sbom(make(), ZERO), sbom(make(), ZERO)), (vex(make()), vex(make()))):
        assert VALIDATOR.validate_str(data.decode()) is None
        assert data == again


def test_the_validator_would_refuse_a_card_that_does_not_fit() -> None:
    bill = json.loads(sbom(spoken(), ZERO))
    model_of(bill)["modelCard"]["considerations"]["users"] = "nurses"
    assert VALIDATOR.validate_str(json.dumps(bill)) is not None


def test_the_packages_of_this_very_environment_make_a_valid_bill() -> None:
    installed = [
        Component(d.metadata["Name"], d.version, d.metadata.get("License") or "")
        for d in metadata.distributions()
        if d.metadata["Name"]
    ]
    bill = sbom(dataclasses.replace(spoken(), components=installed), ZERO)
    assert VALIDATOR.validate_str(bill.decode()) is None
    assert len([c for c in json.loads(bill)["components"] if c["type"] == "library"]) > 100


@BOTH
def test_every_reference_is_unique_and_leads_to_something(make: Callable[[], ReleaseFacts]) -> None:
    bill = json.loads(sbom(make(), ZERO))
    refs = [c["bom-ref"] for c in (bill["metadata"]["component"], *bill["components"])]
    assert len(set(refs)) == len(refs)
    used = {r for d in bill["dependencies"] for r in (d["ref"], *d.get("dependsOn", []))}
    used |= {r for c in bill["compositions"] for r in (*c.get("assemblies", []), *c.get("dependencies", []))}
    used |= {d["ref"] for d in model_of(bill)["modelCard"]["modelParameters"].get("datasets", [])}
    assert used <= set(refs) and len({d["ref"] for d in bill["dependencies"]}) == len(bill["dependencies"])


def test_the_model_is_this_one_and_its_measured_performance_is_on_the_card_with_intervals() -> None:
    facts = spoken()
    model = model_of(json.loads(sbom(facts, "ab" * 32)))
    assert model["hashes"] == [{"alg": "SHA-256", "content": "ab" * 32}]
    found = {
        (m["type"], m["slice"]): m
        for m in model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    }  # fmt: skip
    pooled = facts.metrics["pooled"]["auroc"]
    shown = found["auroc", "pooled over hospitals"]
    assert float(shown["value"]) == pytest.approx(pooled["value"], abs=1e-5)
    assert float(shown["confidenceInterval"]["lowerBound"]) == pytest.approx(pooled["lower"], abs=1e-5)
    assert ("auroc", "hospital ash") in found and ("auroc", "pooled over hospitals, sex 1") in found
    assert not [m for m, where in found if where.startswith("hospital birch") and m == "auroc"]


def test_what_people_wrote_is_on_the_card_and_nothing_else() -> None:
    dossier = spoken().protocol.dossier
    card = model_of(json.loads(sbom(spoken(), ZERO)))["modelCard"]["considerations"]
    assert card["users"] == [dossier.users] and dossier.use_of_output in card["useCases"]
    assert card["technicalLimitations"][:2] == dossier.limitations
    assert any("A hazard." in risk["name"] for risk in card["ethicalConsiderations"])
    assert dossier.bias in [f.get("mitigationStrategy") for f in card["fairnessAssessments"]]
    assert any("subgroup_gap" in f["mitigationStrategy"] for f in card["fairnessAssessments"])
    bare = model_of(json.loads(sbom(silent(), ZERO)))["modelCard"]["considerations"]
    assert set(bare) <= {"useCases", "performanceTradeoffs"}
    assert "open" not in json.dumps(bare).lower()


def test_no_count_of_patients_stands_beside_a_hospitals_data() -> None:
    bill = json.loads(sbom(spoken(), ZERO))
    data = [c for c in bill["components"] if c["type"] == "data"]
    assert [d["name"] for d in data] == ["tiny/ash", "tiny/birch"]
    for part in data:
        names = {p["name"] for p in part["properties"]}
        assert names == {f"consilium:{n}" for n in ("data_sheet", "cohort", "data_version", "policy")}
        assert part["data"][0]["governance"]["custodians"][0]["organization"]["name"] in part["name"]


def test_packages_are_required_or_excluded_and_linked_to_what_they_need() -> None:
    bill = json.loads(sbom(spoken(), ZERO))
    packages = {c["name"]: c for c in bill["components"] if c["type"] == "library"}
    assert packages["onnxruntime"]["scope"] == "required" and packages["torch"]["scope"] == "excluded"
    assert packages["torch"]["purl"] == "pkg:pypi/torch@2.13.0%2Bcpu"
    assert "licenses" not in packages["silent"]
    needs = {d["ref"]: d.get("dependsOn", []) for d in bill["dependencies"]}
    assert needs[packages["torch"]["purl"]] == [packages["mystery-pkg"]["purl"]]
    (model,) = (ref for ref in needs if ref.startswith("model/"))
    assert packages["onnxruntime"]["purl"] in needs[model] and packages["torch"]["purl"] not in needs[model]


def test_every_model_of_the_registry_has_a_family() -> None:
    from models.registry import MODELS

    assert set(FAMILIES) == set(MODELS)


def test_another_content_has_another_serial_number() -> None:
    one, other = (json.loads(sbom(spoken(), digest))["serialNumber"] for digest in (ZERO, "1" * 64))
    assert one != other


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ("MIT", [{"license": {"id": "MIT"}}]),
        ("Apache License, Version 2.0", [{"license": {"id": "Apache-2.0"}}]),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", [{"expression": "MPL-2.0 AND (Apache-2.0 OR MIT)"}]),
        ("Apache-2.0 WITH LLVM-exception", [{"expression": "Apache-2.0 WITH LLVM-exception"}]),
        ("MIT AND something", [{"license": {"name": "MIT AND something"}}]),
        ("BSD", [{"license": {"name": "BSD"}}]),  # which of them nobody knows
        ("UNKNOWN", []),
        ("", []),
    ],
)
def test_a_licence_is_an_identifier_only_where_its_name_has_one_meaning(
    stated: str, expected: list[dict[str, Any]]
) -> None:
    assert licences(stated) == expected
