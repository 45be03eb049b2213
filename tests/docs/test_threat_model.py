"""Every row of the threat model names a test that shows its control, and the test is there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "threat-model.md").read_text()
COLUMNS = ["who", "wants", "what stops it", "what remains", "shown by"]


def rows() -> list[list[str]]:
    """Cells of every row of every table that has the columns of a threat."""
    found, inside = [], False
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            inside = False
        elif cells == COLUMNS:
            inside = True
        elif inside and not set(line) <= set("|-: "):
            found.append(cells)
    return found


@cache
def functions_of(path: Path) -> set[str]:
    """Names of the test functions of a file."""
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def problem(row: list[str]) -> str | None:
    """What is wrong with a row, or None."""
    if len(row) != len(COLUMNS) or not all(len(cell) > 2 for cell in row):
        return "a cell is empty"
    named = re.findall(r"`([^`]+)`", row[-1])
    if not named:
        return "names no test"
    for one in named:
        path, _, name = one.partition("::")
        file = ROOT / "tests" / path
        if not file.is_file():
            return f"no file tests/{path}"
        if name not in functions_of(file):
            return f"no test {name} in tests/{path}"
    return None


def test_there_are_threats() -> None:
    assert len(rows()) >= 40


@pytest.mark.parametrize("row", rows(), ids=lambda row: re.sub(r"\W+", "-", " ".join(row[:2]))[:60])
def test_a_row_names_what_stops_it_what_remains_and_a_test_that_is_there(row: list[str]) -> None:
    assert problem(row) is None, row


def test_a_row_without_a_test_is_found() -> None:
    good = [
        "somebody",
        "something",
        "a control",
        "little",
        "`docs/test_threat_model.py::test_there_are_threats`",
    ]
    assert problem(good) is None
    assert problem([*good[:4], "a review"]) == "names no test"
    assert problem([*good[:4], "`docs/test_threat_model.py::test_gone`"]) is not None
    assert problem([*good[:4], "`docs/gone.py::test_gone`"]) is not None
    assert problem([*good[:3], "", good[4]]) == "a cell is empty"
