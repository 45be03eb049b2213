"""The offline check of the conformance matrix notices everything that could make it say more than is so."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from release.dossier.assemble import dossier_files
from release.dossier.conformance import check_conformance
from release.dossier.pointers import PlaceError, is_open, resolve, section_name
from tests.documented import documented, documented_study, written_before

Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    facts = documented(documented_study())
    before = written_before(facts, tmp_path_factory.mktemp("candidate"))
    return {**before, **dossier_files(facts, before)}


def first(rows: Rows, status: str) -> dict[str, str]:
    return next(row for row in rows if row["status"] == status)


def calls_open_met(rows: Rows) -> None:
    first(rows, "open")["status"] = "met"


def calls_met_open(rows: Rows) -> None:
    first(rows, "met")["status"] = "open"


def excuses_what_is_open(rows: Rows) -> None:
    first(rows, "open")["status"] = "not_applicable"


def empties_a_reason(rows: Rows) -> None:
    first(rows, "open")["reason"] = " "


def points_elsewhere(rows: Rows) -> None:
    first(rows, "met")["pointer"] = "/nowhere/9"


def names_a_file_that_is_not_there(rows: Rows) -> None:
    first(rows, "met")["file"] = "dossier/other.json"


def drops_a_row(rows: Rows) -> None:
    rows.pop()


def repeats_a_row(rows: Rows) -> None:
    rows.append(dict(rows[0]))


def invents_a_status(rows: Rows) -> None:
    rows[0]["status"] = "certified"


def names_one_more_place(rows: Rows) -> None:
    first(rows, "met")["also"] = "dossier/intended_use.md #nothing-of-the-kind"


def drops_a_cell(rows: Rows) -> None:
    del rows[0]["pointer"]


@pytest.mark.parametrize(
    "mutate",
    [
        calls_open_met,
        calls_met_open,
        excuses_what_is_open,
        empties_a_reason,
        points_elsewhere,
        names_a_file_that_is_not_there,
        drops_a_row,
        repeats_a_row,
        invents_a_status,
        names_one_more_place,
        drops_a_cell,
    ],
)
def test_a_changed_matrix_is_a_problem(files: dict[str, bytes], mutate: Callable[[Rows], None]) -> None:
    document = json.loads(files["conformance.json"])
    assert check_conformance(document, files.__getitem__) == []
    mutate(document["rows"])
    assert check_conformance(document, files.__getitem__)


@pytest.mark.parametrize("catalogue", [None, 0, 2, True, "1"])
def test_another_catalogue_is_a_problem(files: dict[str, bytes], catalogue: Any) -> None:
    document = json.loads(files["conformance.json"]) | {"catalogue": catalogue}
    assert check_conformance(document, files.__getitem__)


@pytest.mark.parametrize("document", [None, [], {}, {"rows": 1}, {"rows": [1]}, {"rows": []}])
def test_what_is_no_matrix_is_a_problem(files: dict[str, bytes], document: Any) -> None:
    assert check_conformance(document, files.__getitem__)


def test_an_answer_that_was_taken_out_later_is_a_problem(files: dict[str, bytes]) -> None:
    document = json.loads(files["conformance.json"])
    use = files["dossier/intended_use.md"].replace(b"> What a person wrote about users.", b"")
    problems = check_conformance(document, {**files, "dossier/intended_use.md": use}.__getitem__)
    assert any("intended-users" in problem and "met, but open" in problem for problem in problems)
    lacking = {path: data for path, data in files.items() if path != "dossier/risk.json"}
    assert any("dossier/risk.json" in problem for problem in check_conformance(document, lacking.__getitem__))


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("dossier/hti1.json", "attributes"),
        ("dossier/tripod_ai.json", "items"),
        ("dossier/annex_iv.json", "points"),
    ],
)
def test_an_index_that_says_otherwise_than_the_matrix_is_a_problem(
    files: dict[str, bytes], file: str, key: str
) -> None:
    document, index = json.loads(files["conformance.json"]), json.loads(files[file])
    index[key][-1] = copy.deepcopy(index[key][-1]) | {"reason": "Another one."}
    problems = check_conformance(document, {**files, file: json.dumps(index).encode()}.__getitem__)
    assert any(problem.startswith(file) for problem in problems)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
        max_leaves=12,
    )
)
def test_a_json_pointer_finds_every_value_of_a_document(value: Any) -> None:
    files = {"a.json": json.dumps(value).encode()}
    assert resolve(files, "a.json", "#") == value

    def walk(inner: Any, pointer: str) -> None:
        if pointer:
            assert resolve(files, "a.json", pointer) == inner
        parts = (
            inner.items() if isinstance(inner, dict) else enumerate(inner) if isinstance(inner, list) else ()
        )
        for key, below in parts:
            walk(below, f"{pointer}/{str(key).replace('~', '~0').replace('/', '~1')}")

    walk(value, "")


@pytest.mark.parametrize(
    ("file", "pointer"),
    [
        ("a.json", "/b/01"), ("a.json", "/b/-"), ("a.json", "/b/2"), ("a.json", "b"), ("a.json", "/c"),
        ("a.json", "/b/0/x"), ("b.json", "#"), ("c.json", "#"), ("a.md", "#other"), ("a.md", "/b"),
        ("a.html", "#other"), ("-", "-"),
    ],
)  # fmt: skip
def test_a_place_that_is_not_there_is_not_found(file: str, pointer: str) -> None:
    files = {"a.json": b'{"b": [1, 2]}', "b.json": b"{", "a.md": b"# A\n", "a.html": b'<p id="a">'}
    with pytest.raises(PlaceError):
        resolve(files, file, pointer)


def test_a_section_ends_with_the_next_of_its_rank() -> None:
    files = {
        "a.md": b"# T\n\n## One\n\ntext\n\n### Deeper\n\nmore\n\n## Two\n\n**OPEN.** Nobody.\n",
        "a.html": b"<a id=x>",
    }
    assert resolve(files, "a.md", "#one") == "text\n\n### Deeper\n\nmore"
    assert is_open(resolve(files, "a.md", "#two")) and not is_open(resolve(files, "a.md", "#one"))
    assert not is_open(resolve(files, "a.html", "#x"))
    assert section_name("Output and decision threshold") == "output-and-decision-threshold"


@pytest.mark.parametrize(
    "value", [None, False, "", "  \n", [], {}, {"open": "x", "number": 3}, b"", "**OPEN.** x"]
)
def test_what_answers_nothing_is_open(value: Any) -> None:
    assert is_open(value)


@pytest.mark.parametrize("value", [0, 0.0, True, "x", [None], {"a": None}, b"x"])
def test_what_says_something_is_not_open(value: Any) -> None:
    assert not is_open(value)
