"""The validation report: what a reader must find on the page, and that page and validation.json agree."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from contracts.release import Change, GateResult
from release.markup import element
from release.numbers import FORMS
from release.report import validation_document, validation_page
from release.statements import gate_name
from tests.dossiers import tiny_facts
from tests.factories import tiny_study
from tests.full_facts import HOSPITALS, REFERENCE, full_facts, full_study
from validation.meta_analysis import FEW

_VOID = {"meta", "br", "link", "img", "input", "hr"}


class Node:
    """An element of a parsed page."""

    def __init__(self, tag: str, attributes: dict[str, str], parent: Node | None):
        self.tag, self.attributes, self.parent = tag, attributes, parent
        self.children: list[Node | str] = []

    def all(self, tag: str, **wanted: str) -> list[Node]:
        """Every element below of this tag with these attributes (a class: one of its classes)."""
        found = []
        for child in self.children:
            if isinstance(child, Node):
                kinds = child.attributes.get("class", "").split()
                fits = all(
                    v in kinds if k == "class_" else child.attributes.get(k) == v for k, v in wanted.items()
                )
                found += [child] if tag in ("*", child.tag) and fits else []
                found += child.all(tag, **wanted)
        return found

    @property
    def text(self) -> str:
        """What it says, with single spaces, and one between cells and blocks."""
        parts = (child if isinstance(child, str) else child._apart for child in self.children)
        return re.sub(r"[ \n]+", " ", "".join(parts)).strip()

    @property
    def _apart(self) -> str:
        return self.text if self.tag in ("b", "data", "code", "span") else f" {self.text} "


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = self.at = Node("root", {}, None)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {k: v or "" for k, v in attrs}, self.at)
        self.at.children.append(node)
        if tag not in _VOID:
            self.at = node

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.at.children.append(Node(tag, {k: v or "" for k, v in attrs}, self.at))

    def handle_endtag(self, tag: str) -> None:
        assert self.at.tag == tag, f"</{tag}> closes <{self.at.tag}>"
        assert self.at.parent is not None
        self.at = self.at.parent

    def handle_data(self, data: str) -> None:
        self.at.children.append(data)


def parsed(page: str) -> Node:
    """The page as a tree; every element is closed in order."""
    reader = _Reader()
    reader.feed(page)
    assert reader.at is reader.root
    return reader.root


def section(root: Node, name: str) -> Node:
    """One section of the page."""
    (found,) = root.all("section", id=name)
    return found


@pytest.fixture(scope="module")
def facts():
    return full_facts()


@pytest.fixture(scope="module")
def page(facts) -> str:
    return validation_page(facts)


@pytest.fixture(scope="module")
def root(page) -> Node:
    return parsed(page)


def test_the_same_facts_give_the_same_bytes(facts, page):
    assert validation_page(full_facts()) == page
    assert json.dumps(validation_document(full_facts())) == json.dumps(validation_document(facts))


def test_the_page_runs_nothing_and_asks_nobody(page, root):
    assert not root.all("script") and not root.all("iframe") and not root.all("link")
    assert not [n for n in root.all("*") if any(a.startswith("on") for a in n.attributes)]
    for node in root.all("*"):
        for name in ("src", "href"):
            assert node.attributes.get(name, "#").startswith("#")
    assert not re.search(r"https?://|url\(|@import", page)
    policy = root.all("meta")[2].attributes
    assert policy["http-equiv"] == "Content-Security-Policy" and "default-src 'none'" in policy["content"]


def test_every_number_is_the_one_in_validation_json(facts, root):
    document = json.loads(json.dumps(validation_document(facts)))
    shown = root.all("data")
    assert len(shown) > 200
    for node in shown:
        found: Any = document
        for key in node.attributes["data-from"].split("/")[1:]:
            found = found[int(key)] if isinstance(found, list) else found[key.replace("~1", "/")]
        assert float(node.attributes["value"]) == found
        assert node.text == FORMS[node.attributes["data-form"]](found)


def test_every_gate_is_named_with_its_result_margin_and_hospital_and_the_failed_come_first(facts, root):
    rows = section(root, "gates").all("tbody")[0].all("tr")
    assert len(rows) == len(facts.gates)
    for gate in facts.gates:
        (row,) = [r for r in rows if gate_name(gate.gate) in r.text]
        assert ("failed" if gate.passed is False else "passed") in row.text and gate.detail in row.text
        assert f"{abs(gate.margin):.3f}" in row.text and gate.site in row.text
    results = [row.all("span", class_="badge")[0].text for row in rows]
    assert results == sorted(results)  # failed before passed


def test_a_stopped_study_reads_as_stopped_and_says_by_how_much_and_where(facts, root):
    (failed,) = [gate for gate in facts.gates if not gate.passed]
    verdict = section(root, "verdict")
    assert verdict.all("h2")[0].text == "Stopped: an acceptance gate failed"
    assert "must not be used" in verdict.text and "failed" in verdict.attributes["class"]
    for said in (gate_name(failed.gate), f"missed by {abs(failed.margin):.3f}", failed.site, failed.detail):
        assert said in verdict.text


def test_a_stopped_candidate_is_never_called_a_release(root):
    assert "Stopped candidate for release 1.1.0" in root.all("header")[0].text
    assert not root.all("section", id="verify")  # there is no directory to verify
    assert "dp_statement.md" not in section(root, "privacy").text
    assert "Nobody is asked to sign" in section(root, "change").text


@pytest.mark.parametrize(
    ("passed", "title"),
    [
        (True, "Every acceptance gate passed"),
        (None, "Stopped: an acceptance gate could not be decided"),
        (False, "Stopped: an acceptance gate failed"),
    ],
)
def test_the_verdict_follows_from_the_gates(passed, title):
    assert section(parsed(validation_page(tiny_facts(passed=passed))), "verdict").all("h2")[0].text == title


def test_without_a_gate_nothing_is_called_passed():
    facts = full_facts({"alder": 900}, gates=[])
    assert (
        section(parsed(validation_page(facts)), "verdict").all("h2")[0].text.startswith("No acceptance gate")
    )


def test_a_margin_of_a_gate_that_could_not_be_tested_is_not_called_a_miss():
    gate = GateResult(gate="pooled auroc >= 0.7", passed=None, margin=0.05, detail="too few events")
    text = section(parsed(validation_page(full_facts({"alder": 900}, gates=[gate]))), "gates").text
    assert "not testable" in text and "inside by 0.050" in text and "missed" not in text


def test_a_withheld_hospital_is_named_everywhere_and_its_metrics_nowhere(facts, root):
    assert facts.metrics["hazel"]["suppressed"] and "auroc" not in facts.metrics["hazel"]
    assert "hazel: fewer than twice the minimum cell" in section(root, "withheld").text
    for name in ("discrimination", "calibration", "threshold"):
        rows = [r for r in section(root, name).all("tr") if r.text.startswith("hazel")]
        assert rows and all("withheld" in row.text for row in rows)
    pointers = {n.attributes["data-from"] for n in root.all("data")}
    assert {p for p in pointers if p.startswith("/hazel")} <= {
        "/hazel/n", *(f"/hazel/accuracy/{end}" for end in ("value", "lower", "upper"))
    }  # fmt: skip


def test_a_value_that_is_the_worst_of_a_range_says_so():
    facts = full_facts({"alder": 900, "cedar": 110})  # few missed events: cedar's counts are ranges
    assert facts.metrics["cedar"]["sensitivity"]["at_worst"] and "events" in facts.metrics["cedar"]
    assert "at_worst" not in facts.metrics["alder"]["sensitivity"]
    shown = section(parsed(validation_page(facts)), "threshold")
    (alder,) = [r for r in shown.all("tr") if r.text.startswith("alder")]
    (cedar,) = [r for r in shown.all("tr") if r.text.startswith("cedar")]
    assert "at worst" in cedar.text and "at worst" not in alder.text
    assert "At worst: cedar tells only a range" in shown.text


def test_diagnostics_show_whether_each_holdout_was_frozen(facts, root):
    assert all(found["frozen"] for found in validation_document(facts)["_diagnostics"].values())
    changed = [
        r.model_copy(update={"cohort": "1" * 64}) if r.site == "birch" else r for r in facts.evaluation
    ]
    later = section(parsed(validation_page(full_facts(evaluation=changed))), "diagnostics")
    for site in HOSPITALS:
        (row,) = [r for r in later.all("tr") if r.text.startswith(site)]
        assert row.all("td")[-1].text == ("no" if site == "birch" else "yes")


def test_the_method_is_that_of_the_meta_analysis(facts):
    method = validation_document(facts)["_method"]["heterogeneity"]
    assert f"From {FEW} of them: tau2 of Paule and Mandel" in method and "half-normal prior" in method


def test_statements_say_what_the_intervals_say(facts, root):
    text = section(root, "comparisons").text
    pooled = facts.metrics["pooled"]["comparisons"]
    local, first = pooled["local"], pooled["first"]
    assert local["auroc"]["lower"] > 0 > first["auroc"]["lower"]
    assert f"Better than each hospital's own model: AUROC higher by {local['auroc']['value']:.3f}" in text
    assert (
        f"No clear difference from the product's first release: AUROC +{first['auroc']['value']:.3f}" in text
    )
    assert f"It could be lower by up to {-first['auroc']['lower']:.3f}" in text
    best = local["best_baseline"]
    assert f"that of {best['site']} (AUROC {best['auroc']['value']:.3f})" in text
    assert f"better by {best['difference']['value']:.3f}" in text
    assert "Not worse than the product's first release by 0.03 or more" in text
    assert "Better than the Tiny score" in text and "Tester et al." in text
    own = facts.metrics["alder"]["comparisons"]["reference"]["metrics"]["auroc"]["value"]
    assert f"AUROC of the Tiny score: alder {own:.3f}, " in text


def test_a_model_that_is_worse_is_said_to_be():
    facts = full_facts({"alder": 900, "birch": 620})
    worse = {"value": -0.04, "standard_error": 0.01, "lower": -0.06, "upper": -0.02}
    comparisons = {"local": {"sites": 2, "auroc": worse}}
    metrics = {**facts.metrics, "pooled": {**facts.metrics["pooled"], "comparisons": comparisons}}
    text = section(parsed(validation_page(full_facts(metrics=metrics))), "comparisons").text
    assert "Worse than each hospital's own model: AUROC lower by 0.040 (95 % −0.060 to −0.020)" in text


def test_a_regulatory_status_is_said_in_words_with_who_stated_it():
    document = {
        "basis": "FDA: K000000",
        "name": "R. Test",
        "role": "regulatory affairs",
        "time": "2026-01-02",
    }
    statement = json.dumps({"document": document, "signature": "x"})
    facts = full_facts(regulatory="cleared", regulatory_statement=statement)
    text = section(parsed(validation_page(facts)), "use").text
    assert "cleared FDA: K000000. Stated and signed by R. Test (regulatory affairs)" in text
    assert "signature" not in text


def test_not_worse_than_a_score_names_the_score():
    gate = {"metric": "non_inferiority", "against": "reference", "margin": 0.2}
    text = section(parsed(validation_page(full_facts(study=full_study(gates=[gate])))), "comparisons").text
    assert "Not worse than the Tiny score by 0.2 or more" in text and "reference release" not in text


def test_a_net_benefit_that_not_every_hospital_shows_says_whose_it_is():
    everywhere = section(parsed(validation_page(full_facts())), "comparisons").text
    assert "Difference in net benefit at the threshold: " in everywhere and "alone)" not in everywhere
    facts = full_facts()
    for site, tree in facts.metrics.items():
        if site not in ("pooled", "alder") and "comparisons" in tree:
            tree["comparisons"]["reference"]["differences"].pop("net_benefit")
    text = section(parsed(validation_page(facts)), "comparisons").text
    assert "Difference in net benefit at the threshold (shown by alder alone): " in text


def test_alerts_among_a_hundred_patients_follow_from_the_pooled_rates(facts, root):
    pooled = {name: facts.metrics["pooled"][name]["value"] for name in ("alert_rate", "ppv", "npv")}
    (said,) = root.all("p", id="of-hundred")
    alerts, right, needless, missed = (int(node.text) for node in said.all("b"))
    assert alerts == right + needless == round(100 * pooled["alert_rate"])
    assert right == round(100 * pooled["alert_rate"] * pooled["ppv"])
    assert missed == round(100 * (1 - pooled["alert_rate"]) * (1 - pooled["npv"]))
    (picture,) = root.all("svg", class_="hundred")
    for kind, count in (("hit", right), ("alarm", needless), ("missed", missed)):
        assert len(picture.all("*", class_=kind)) == count
    assert len(picture.all("circle")) + len(picture.all("path")) == 100


def test_the_prediction_interval_for_a_new_hospital_is_drawn_and_explained(facts, root):
    new = facts.metrics["pooled"]["heterogeneity"]["auroc"]
    text = section(root, "discrimination").text
    assert f"New hospital predicted {new['new_site_lower']:.3f} to {new['new_site_upper']:.3f}" in text
    assert (
        f"about {100 * new['i2']:.0f} % of the variation between hospitals" in text and new["prior"] in text
    )


def test_the_worst_gap_between_groups_is_named(facts, root):
    groups = facts.metrics["pooled"]["subgroups"]["age_band"]
    values = [tree["auroc"]["value"] for tree in groups.values()]
    assert f"Largest gap in age_band: {max(values) - min(values):.3f}" in section(root, "subgroups").text


def test_a_study_without_a_part_shows_no_empty_section(root):
    everything = {n.attributes["id"] for n in root.all("section")}
    plain = parsed(validation_page(tiny_facts(tiny_study(subgroups=[]))))
    shown = {n.attributes["id"] for n in plain.all("section")}
    assert everything - shown == {"diagnostics", "decision-curve", "comparisons", "subgroups"}
    for node in plain.all("section"):
        assert len(node.text) > len(node.all("h2")[0].text) + 20


def test_what_nobody_wrote_is_open_and_what_somebody_wrote_is_shown(root):
    plain = parsed(validation_page(tiny_facts()))
    assert "open" in section(plain, "limitations").text and "open" in section(plain, "use").text
    written = full_study().dossier
    assert all(text in section(root, "limitations").text for text in written.limitations)
    assert written.out_of_scope in section(root, "use").text and "open" not in section(root, "use").text


def test_the_page_says_what_this_release_is(root):
    assert "A minor release since 1.0.0. Changed: data, weights." in section(root, "change").text
    gate = GateResult(gate="pooled auroc >= 0.7", passed=True, detail="0.800")
    text = section(parsed(validation_page(full_facts({"alder": 900}, gates=[gate]))), "change").text
    assert (
        "m1" in text
        and "clinician and quality" in text
        and "operator, who started the release, may not sign" in text
    )
    first = full_facts({"alder": 900}, change=Change(level="first"))
    assert "first release" in section(parsed(validation_page(first)), "change").text


def test_what_people_wrote_cannot_become_markup():
    evil = "\"><script>alert(1)</script><svg onload='x'>&amp;"
    study = full_study(
        title=evil,
        intended_use=evil,
        dossier={"limitations": [evil], "patients": evil},
        validation={
            "net_benefit": {"low": 0.05, "high": 0.6},
            "local_model": True,
            "reference": REFERENCE | {"name": evil, "source": evil},
        },
    )
    gate = GateResult(gate=evil, passed=False, detail=evil)
    root = parsed(validation_page(full_facts({"alder": 900, "birch": 500}, study, gates=[gate])))
    assert not root.all("script")
    assert not [n for n in root.all("*") if any(a.startswith("on") for a in n.attributes)]
    assert root.all("h1")[0].text == evil and evil in section(root, "comparisons").text


def test_text_in_a_drawing_is_escaped():
    drawn = element("svg", element("text", "<b>&", x=1.0), element("title", 'a"b'), aria_label='"><x')
    assert drawn == (
        '<svg aria-label="&quot;&gt;&lt;x"><text x="1">&lt;b&gt;&amp;</text><title>a&quot;b</title></svg>'
    )


def test_the_page_can_be_read_without_seeing_it(root):
    assert root.all("html")[0].attributes["lang"] == "en" and len(root.all("main")) == 1
    assert len(root.all("h1")) == 1 and root.all("nav")[0].attributes["aria-label"]
    ids = [n.attributes["id"] for n in root.all("*") if "id" in n.attributes]
    assert len(ids) == len(set(ids))
    for node in root.all("a") + root.all("use"):
        assert node.attributes["href"].removeprefix("#") in ids
    for node in root.all("svg"):
        if node.attributes.get("role") == "img":
            assert node.all("title")[0].text and node.all("desc")[0].text
            assert set(node.attributes["aria-labelledby"].split()) <= set(ids)
        else:
            assert node.attributes.get("aria-hidden") == "true" or node.parent.tag == "svg"
    for table in root.all("table"):
        assert table.all("caption")[0].text
        assert all(cell.attributes.get("scope") for cell in table.all("th"))
    levels = [int(n.tag[1]) for n in root.all("*") if re.fullmatch(r"h[1-6]", n.tag)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_each_hospital_has_its_panels(root):
    for kind in ("roc", "calibration", "decision"):
        names = {n.attributes["id"] for n in root.all("title") if n.attributes.get("id", "").startswith(kind)}
        assert {f"{kind}-{site}-t" for site in HOSPITALS if site != "hazel"} <= names


def test_twenty_hospitals_fit_into_one_megabyte():
    hospitals = {f"hospital_{i:02d}": 300 + 20 * i for i in range(20)}
    page = validation_page(full_facts(hospitals))
    assert len(page.encode()) < 1_000_000 and all(name in page for name in hospitals)


def _themes() -> dict[str, dict[str, str]]:
    style = (Path(__file__).parents[2] / "release" / "templates" / "validation.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", style, re.S)[:2]
    read = [dict(re.findall(r"--(\w+): (#[0-9a-f]{3,6})", text)) for text in (light, dark)]
    return {"light": read[0], "dark": read[0] | read[1]}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_and_marks_stand_out_from_what_is_behind_them(theme):
    """WCAG 2.2: 1.4.3 (text 4.5) and 1.4.11 (marks 3)."""
    colours = _themes()[theme]
    for ink in ("ink", "soft", "accent", "good", "bad", "open", "pool"):
        for behind in ("card", "paper", "wash"):
            assert _contrast(colours[ink], colours[behind]) >= 4.5, (ink, behind)
    for badge in ("good", "bad", "open"):
        assert _contrast(colours["mark"], colours[badge]) >= 4.5, badge


def _contrast(one: str, other: str) -> float:
    bright, dim = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def _luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_hospital_that_withdrew_is_named_on_the_page_in_the_manifest_and_in_the_dossier(facts):
    from release.directory import _manifest
    from release.dossier.governance import governance

    left = dataclasses.replace(facts, withdrawn={"cedar": 4})
    shown = validation_page(left)
    assert "cedar withdrew from the study" in shown and "from number 4 on" in shown
    assert "withdrew" not in validation_page(facts)
    assert json.loads(governance(left))["withdrawn"] == [{"site": "cedar", "since_exchange": 4}]
    assert _manifest(left, {}).withdrawn == {"cedar": 4} and _manifest(facts, {}).withdrawn is None
