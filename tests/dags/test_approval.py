"""What a person answered in Airflow reaches publication as they gave it, and silence as silence."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace

import pytest

from dags.approval import CANDIDATE, answer_of, users_who_started
from tasks.approvals import APPROVE, REJECT

WHEN = datetime(2026, 1, 1, 13, 5, 0, 999_999, tzinfo=timezone(timedelta(hours=1)))
GIVEN = {
    "chosen_options": ["Approve"],
    "params_input": {"name": "Dr A", "role": "clinician", "reason": "reviewed"},
    "responded_at": WHEN,
    "responded_by_user": {"id": "clinician", "name": "clinician"},
}


def test_name_reason_user_and_time_are_the_persons_own() -> None:
    answer = answer_of(GIVEN, "c" * 64)
    assert answer is not None
    assert (answer.candidate, answer.choice, answer.user) == ("c" * 64, APPROVE, "clinician")
    assert (answer.name, answer.reason, answer.time) == ("Dr A", "reviewed", "2026-01-01T12:05:00Z")
    text = {**GIVEN, "responded_at": WHEN.astimezone(UTC).isoformat()}  # as XCom may hand it back
    assert answer_of(text, "c" * 64) == answer


@pytest.mark.parametrize("chosen", [["Reject"], [], ["Approve", "Reject"], None])
def test_anything_but_one_clear_yes_is_no(chosen: list[str] | None) -> None:
    answer = answer_of({**GIVEN, "chosen_options": chosen}, "c" * 64)
    assert answer is not None and answer.choice == REJECT


def test_nobody_answered_is_no_answer() -> None:
    assert answer_of(None, "c" * 64) is None
    nobody = answer_of({**GIVEN, "responded_by_user": None}, "c" * 64)
    assert nobody is not None and nobody.user == ""  # which no role is called


def test_who_started_a_run_is_known_from_airflow_and_from_what_a_tool_says() -> None:
    assert users_who_started(SimpleNamespace(triggering_user_name=None, conf=None)) == []
    run = SimpleNamespace(triggering_user_name="operator", conf={"triggered_by": "anna"})
    assert users_who_started(run) == ["operator", "anna"]


class Instance:
    """A task instance that remembers what is pushed."""

    id = "0"

    def __init__(self) -> None:
        self.pushed: dict[str, object] = {}

    def xcom_push(self, key: str, value: object) -> None:
        """As Airflow's."""
        self.pushed[key] = value


def asked(body: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Ask with a rendered body and return what the question keeps."""
    from airflow.providers.standard.operators import hitl
    from airflow.sdk.exceptions import TaskAwaitingInput

    from dags.question import question
    from tests.factories import tiny_study

    monkeypatch.setattr(hitl, "upsert_hitl_detail", lambda **_: None)
    task = question(tiny_study(), "clinician")
    task.body = body
    instance = Instance()
    with pytest.raises(TaskAwaitingInput):
        task.execute({"ti": instance, "task_instance": instance})
    return instance.pushed


def test_an_answer_belongs_to_the_candidate_that_its_question_showed(monkeypatch: pytest.MonkeyPatch) -> None:
    from jinja2 import Template

    from dags.question import question
    from tests.factories import tiny_study

    body = question(tiny_study(), "clinician").body
    shown = Template(str(body)).render(ti=SimpleNamespace(xcom_pull=lambda task_ids: "a" * 64))
    assert asked(shown, monkeypatch) == {CANDIDATE: "a" * 64}
    # Collected again meanwhile, or never asked: the answer counts for nothing else.
    assert answer_of(GIVEN, None) is None


def test_nobody_is_asked_about_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.sdk.exceptions import AirflowFailException

    with pytest.raises(AirflowFailException, match="no candidate"):
        asked("Candidate digest: `None`", monkeypatch)
