"""Provenance by SLSA v1.0 in an in-toto Statement v1: every file, and everything it was made from."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from release.dossier.provenance import BUILD_TYPE, BUILDER, provenance
from tests.documented import OPENED
from tests.factories import ZERO
from tests.release.dossier.materials import silent, spoken

DIGESTS = {"model.onnx": "a" * 64, "study.json": "b" * 64, "ledgers/ash.jsonl": "c" * 64}


def statement(**digests: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(provenance(spoken(), DIGESTS | digests))
    return found


def test_every_file_is_a_subject_by_its_digest() -> None:
    found = statement()
    assert found["_type"] == "https://in-toto.io/Statement/v1"
    assert found["predicateType"] == "https://slsa.dev/provenance/v1"
    assert {s["name"]: s["digest"]["sha256"] for s in found["subject"]} == DIGESTS


@pytest.mark.parametrize("facts", [spoken(), silent()])
def test_the_required_fields_are_there_and_none_is_empty(facts: Any) -> None:
    found = json.loads(provenance(facts, DIGESTS))["predicate"]
    definition, run = found["buildDefinition"], found["runDetails"]
    assert definition["buildType"] == BUILD_TYPE and run["builder"]["id"] == BUILDER
    assert definition["externalParameters"]["protocolHash"] == facts.protocol.hash
    shared = set(definition["externalParameters"]) & set(definition["internalParameters"])
    assert not shared and run["metadata"]["finishedOn"] == facts.created
    for dependency in definition["resolvedDependencies"]:
        assert re.fullmatch(r"urn:[a-z]+:\S+", dependency["uri"]) and dependency["digest"]
    assert None not in [
        *definition["externalParameters"].values(),
        *definition["internalParameters"].values(),
    ]


def test_data_updates_code_and_environment_are_dependencies() -> None:
    facts = spoken()
    found = {d["uri"]: d for d in statement()["predicate"]["buildDefinition"]["resolvedDependencies"]}
    for data in facts.lineage.data:
        assert found[f"urn:consilium:data-sheet:{data.site}"]["digest"] == {"sha256": data.data_sheet}
    updates = [uri for uri in found if uri.startswith("urn:consilium:update:")]
    assert len(updates) == 6 and found["urn:consilium:update:2:birch"]["digest"] == {"sha256": "1" * 64}
    assert found["urn:consilium:source"]["digest"] == {"gitCommit": "c" * 40}
    assert found["urn:consilium:environment"]["digest"] == {"sha256": ZERO}


def test_the_run_began_with_the_event_log_and_has_a_number_of_its_own() -> None:
    run = statement()["predicate"]["runDetails"]["metadata"]
    assert run["startedOn"] == OPENED
    other = json.loads(provenance(silent(), DIGESTS))["predicate"]["runDetails"]["metadata"]
    assert "startedOn" not in other and other["invocationId"] != run["invocationId"]
    assert provenance(spoken(), DIGESTS) == provenance(spoken(), DIGESTS)
