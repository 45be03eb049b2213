"""The client of Airflow's REST API, against an Airflow that cannot always answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from consilium import rest
from consilium.airflow_home import OPERATOR, passwords_file
from consilium.rest import Airflow, AirflowRefused
from contracts.errors import ConsiliumError
from tasks.home import CoordinatorHome

LOCKED = httpx.Response(500, json={"detail": {"reason": "Database error"}})


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "_LONGEST_WAIT", 0.01)


def airflow(home: Path, handler: Callable[[httpx.Request], httpx.Response]) -> Airflow:
    def served(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/auth/token":
            return httpx.Response(201, json={"access_token": "t"})
        return handler(request)

    coordinator = CoordinatorHome(home)
    passwords_file(coordinator).parent.mkdir(parents=True)
    passwords_file(coordinator).write_text(json.dumps({OPERATOR: "p"}))
    made = Airflow("http://airflow.test", coordinator)
    made._client = httpx.Client(base_url=made.url, transport=httpx.MockTransport(served))
    return made


def test_a_locked_database_is_asked_again_for_the_same_run(tmp_path: Path) -> None:
    asked: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content)["dag_run_id"])
        return LOCKED if len(asked) < 3 else httpx.Response(200, json={})

    assert airflow(tmp_path, handler).trigger("s.intake") == asked[0]
    assert len(asked) == 3
    assert len(set(asked)) == 1


def test_a_run_that_an_attempt_had_started_is_that_run(tmp_path: Path) -> None:
    answers = [LOCKED, httpx.Response(409, json={"detail": "exists"})]
    assert airflow(tmp_path, lambda _: answers.pop(0)).trigger("s.intake", "mine") == "mine"
    assert not answers


def test_a_refusal_is_not_asked_again(tmp_path: Path) -> None:
    answers = [httpx.Response(403, json={"detail": "no"})]
    with pytest.raises(AirflowRefused, match="403"):
        airflow(tmp_path, lambda _: answers.pop(0)).pause("s.intake")


def test_a_database_that_stays_locked_is_an_error_with_a_number(tmp_path: Path) -> None:
    with pytest.raises(ConsiliumError, match="Database error") as raised:
        airflow(tmp_path, lambda _: LOCKED).dags()
    assert raised.value.number == "E105"
