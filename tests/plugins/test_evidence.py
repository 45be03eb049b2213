"""The page that the sign-off links: the candidate's, or that of the gate which stopped the study."""

from __future__ import annotations

from pathlib import Path

import pytest
from airflow.api_fastapi.core_api.security import get_user
from fastapi.testclient import TestClient

from plugins.evidence import evidence_app
from tasks.head import register_study
from tasks.home import CoordinatorHome
from tasks.stopped import clear_stopped, release_folder
from tests.factories import tiny_study


@pytest.fixture
def home(tmp_path: Path) -> CoordinatorHome:
    return CoordinatorHome(tmp_path)


@pytest.fixture
def client(home: CoordinatorHome) -> TestClient:
    """Somebody who is signed in."""
    app = evidence_app(home)
    app.dependency_overrides[get_user] = lambda: object()
    return TestClient(app)


def write(home: CoordinatorHome, kind: str, text: str) -> None:
    folder = release_folder(home, "tiny") / kind
    folder.mkdir(parents=True)
    (folder / "validation.html").write_text(text)


def test_a_stopped_study_shows_what_stopped_it_and_not_an_earlier_candidate(
    home: CoordinatorHome, client: TestClient
) -> None:
    assert client.get("/tiny/validation.html").status_code == 404
    write(home, "candidate", "the candidate")
    assert client.get("/tiny/validation.html").text == "the candidate"
    write(home, "stopped", "the gate")
    assert client.get("/tiny/validation.html").text == "the gate"
    clear_stopped(home, "tiny")
    answer = client.get("/tiny/validation.html")
    assert (
        answer.text == "the candidate" and "default-src 'none'" in answer.headers["content-security-policy"]
    )


def test_the_studys_page_is_made_as_of_now(home: CoordinatorHome, client: TestClient) -> None:
    assert client.get("/tiny/study.html").status_code == 404
    register_study(home, tiny_study())
    answer = client.get("/tiny/study.html")
    assert answer.status_code == 200 and "No round was opened yet" in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"
