"""The protocol hashes of the shipped studies. A site approves a hash, so that a change asks it again.

When a study was changed on purpose, write its new hash (`consilium study check NAME`) into
`golden_hashes.json` in the same commit. When only the code was changed, the hash must not move.
"""

import json
from pathlib import Path

import studies
from contracts.study import load_study

GOLDEN = Path(__file__).parent / "golden_hashes.json"


def test_the_shipped_studies_have_their_golden_hashes() -> None:
    found = {path.stem: load_study(path).hash for path in Path(studies.__file__).parent.glob("*.yaml")}
    assert found == json.loads(GOLDEN.read_text())
