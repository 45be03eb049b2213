"""The validation report: pooled and every hospital, and one page that stands alone."""

from __future__ import annotations

import json
import re

from release.report import validation_document, validation_page
from tests.dossiers import tiny_candidate, tiny_facts
from tests.factories import tiny_study


def test_validation_json_holds_pooled_and_every_site(tmp_path):
    document = json.loads((tiny_candidate(tmp_path)[0] / "validation.json").read_text())
    assert document["pooled"]["auroc"]["value"] and document["ash"]["auroc"]["lower"] is not None
    assert document["birch"]["suppressed"] and "auroc" not in document["birch"]
    assert document == json.loads(json.dumps(validation_document(tiny_facts())))


def test_the_page_stands_alone_and_escapes_what_people_wrote():
    study = tiny_study(title="<script>alert(1)</script> & co")
    page = validation_page(tiny_facts(study))
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page) and "url(" not in page
    assert "withheld" in page.lower()
