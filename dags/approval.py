"""From a person's answer in Airflow to the `Answer` that publication decides on."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.approvals import Answer

PREFIX = "approve_"
CANDIDATE = "candidate"  # key of the XCom in which a question keeps the digest that it showed


def question_id(role: str) -> str:
    """Id of the task that asks a role."""
    return f"{PREFIX}{role}"


def answer_of(payload: Mapping[str, Any] | None, candidate: str | None) -> Answer | None:
    """Bind the answer of a question in Airflow to the candidate that it was asked about.

    Args:
        payload: what the operator returned: `chosen_options`, `params_input`, `responded_at`,
            `responded_by_user`; None where nobody answered.
        candidate: digest that the question showed; None when it never asked about one.
    """
    from tasks.approvals import REJECT, Answer

    if payload is None or candidate is None:
        return None
    given = payload.get("params_input") or {}
    user = payload.get("responded_by_user") or {}
    when = payload["responded_at"]
    if isinstance(when, str):
        when = datetime.fromisoformat(when)
    chosen = list(payload.get("chosen_options") or [])
    return Answer(
        candidate=candidate,
        choice=str(chosen[0]) if len(chosen) == 1 else REJECT,
        user=str(user.get("name") or user.get("id") or ""),
        name=str(given.get("name") or ""),
        reason=str(given.get("reason") or ""),
        time=when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def users_who_started(run: Any) -> list[str]:
    """Name the users behind a DAG run: the one whom Airflow knows, and the one whom a tool's `conf` names."""
    named = [getattr(run, "triggering_user_name", None), (run.conf or {}).get("triggered_by")]
    return [str(user) for user in named if user]
