"""docs/dossier.md names every field that a person may write, and no identifier or file that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from contracts.dossier import ChangeControl, Control, Dossier, Modification, Monitoring, Risk
from release.dossier.assemble import COMPONENTS, DOCUMENTS, INDEXES
from release.dossier.conformance import FILE, asked_identifiers

TEXT = (Path(__file__).parents[2] / "docs/dossier.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("contract", [Dossier, Risk, Control, ChangeControl, Modification, Monitoring])
def test_every_field_is_explained(contract: type[Dossier]) -> None:
    missing = [name for name in contract.model_fields if f"`{name}`" not in TEXT]
    assert not missing, f"{contract.__name__}: {missing}"


def test_every_identifier_and_file_that_is_named_exists() -> None:
    named = set(re.findall(r"\b((?:tripod|hti1|annex_iv|iso14971)\.[0-9][0-9a-z.]*[0-9a-z])", TEXT))
    assert named and named <= asked_identifiers()
    made = {path for path, *_ in (*DOCUMENTS, *COMPONENTS, *INDEXES)} | {FILE}
    assert set(re.findall(r"dossier/[a-z_0-9]+\.(?:md|json)", TEXT)) <= made
