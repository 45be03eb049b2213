"""`consilium study page` writes one file, or nothing; `consilium status` says that it exists."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import consilium.__main__ as cli
from tasks.head import register_study
from tasks.home import CoordinatorHome
from tests.factories import tiny_study


@pytest.fixture
def consilium(tmp_path, monkeypatch):
    monkeypatch.setenv("CONSILIUM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    register_study(CoordinatorHome(tmp_path / "home" / "coordinator"), tiny_study())

    def run(command):
        monkeypatch.setattr("sys.argv", ["consilium", *command.split()])
        return CliRunner().invoke(cli.app, command.split())

    return run


def test_the_page_is_written_where_it_is_asked_for(consilium, tmp_path):
    assert consilium("study page tiny").exit_code == 0
    assert "<title>Study tiny: registered" in (tmp_path / "tiny.html").read_text()
    said = json.loads(consilium("study page tiny --out where.html --json").stdout)
    assert said == {"study": "tiny", "path": str(tmp_path / "where.html")}
    assert (tmp_path / "where.html").exists()


def test_an_unknown_study_or_a_name_that_is_no_page_writes_nothing(consilium, tmp_path):
    before = sorted(tmp_path.iterdir())
    unknown = consilium("study page other --json")
    assert unknown.exit_code == 1 and json.loads(unknown.stdout)["error"]["number"] == "E102"
    assert consilium("study page tiny --out page.txt").exit_code == 2
    assert sorted(tmp_path.iterdir()) == before


def test_status_names_the_page(consilium):
    assert "consilium study page tiny" in consilium("status tiny").stdout
