"""From a person's answer in Airflow to the `Approval` that goes into the release."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from contracts.release import Approval


def approval_of(answer: dict[str, Any], candidate: str) -> Approval:
    """Bind the answer of a question in Airflow to the candidate that it was asked about.

    Args:
        answer: what the operator returned: `responded_by_user`, `responded_at`, `params_input`.
        candidate: digest of the candidate.
    """
    given = answer.get("params_input") or {}
    user = answer.get("responded_by_user") or {}
    when = answer["responded_at"]
    if isinstance(when, str):
        when = datetime.fromisoformat(when)
    return Approval(
        candidate=candidate,
        approved_by=given.get("name") or f"user {user.get('name') or user.get('id')}",
        role=f"{given.get('role') or 'clinician'} (Airflow user {user.get('name') or user.get('id')})",
        reason=given.get("reason") or "",
        time=when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
