"""Third-party software: what each package is for, and which anomalies are known or were never looked for."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from pathlib import Path
from typing import Any

from release.dossier.pointers import is_open
from release.dossier.soup import OWN, PURPOSES, soup
from release.facts import Evidence, ReleaseFacts
from tests.release.dossier.materials import COMPONENTS, brought, scanned, silent, spoken

ROOT = Path(__file__).resolve().parents[3]


def listed(facts: ReleaseFacts) -> dict[str, Any]:
    return {entry["name"]: entry for entry in json.loads(soup(facts))["software"]}


def test_every_package_that_this_project_asks_for_has_a_purpose() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = project["dependencies"] + extras["verify"] + extras["site"] + extras["coordinator"]
    names = {re.split(r"[\[=<>!~ ]", line)[0] for line in asked} - {OWN}
    assert names - set(PURPOSES) == set() and set(PURPOSES) - names == set()


def test_purpose_use_and_licence_are_named_or_open() -> None:
    found = listed(spoken())
    assert set(found) == {c.name for c in COMPONENTS} - {OWN}
    assert found["torch"]["use"] == "making" and found["onnxruntime"]["use"] == "runtime"
    assert found["flatbuffers"]["purpose"] == "dependency of onnxruntime"
    assert found["mystery-pkg"]["purpose"] == "dependency of torch"
    assert is_open(found["silent"]["purpose"]) and is_open(found["silent"]["licence"])


def test_known_anomalies_are_those_of_a_current_scan_that_covers_the_package() -> None:
    found = listed(spoken())
    assert found["torch"]["known_anomalies"][0]["analysis"] == "not_affected"
    assert is_open(found["onnxruntime"]["known_anomalies"][0]["analysis"])
    assert found["numpy"]["known_anomalies"] == "none in the scan"
    for evidence in (
        Evidence(),
        dataclasses.replace(brought(), scan_time="2025-11-01T00:00:00Z"),
        brought(scanned(components=COMPONENTS[:1])),
    ):
        assert is_open(listed(dataclasses.replace(spoken(), evidence=evidence))["numpy"]["known_anomalies"])


def test_no_package_is_open_as_a_whole() -> None:
    assert is_open(json.loads(soup(silent())))
    assert not is_open(json.loads(soup(spoken())))
