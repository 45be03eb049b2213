"""The question to the person of one role, which remembers the candidate that it showed."""

from __future__ import annotations

import re
from typing import Any

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import Param
from airflow.sdk.exceptions import AirflowFailException

from contracts.study import StudyProtocol
from dags.approval import CANDIDATE, question_id

BODY = """\
Release candidate of **{title}** (study `{study}`), for sign-off as **{role}**.

Candidate digest: `{{{{ ti.xcom_pull(task_ids='collect') }}}}`

All acceptance gates of the protocol passed, and every hospital ran the exported model on its own holdout.
Read the [validation page](/candidates/{study}/validation.html) first. What you sign is this digest: another
candidate needs another sign-off. Who started this run may not sign it off, and every role needs a person of
its own. The coordinator countersigns: it signs the whole release with the answers inside.
"""
_SHOWN = re.compile(r"^Candidate digest: `([0-9a-f]{64})`$", re.MULTILINE)


class SignOffQuestion(HITLOperator):
    """A question about one candidate: the answer belongs to the digest in it, whatever is collected later.

    Not an ApprovalOperator: a rejection would only skip what follows, and the head must hear of it.
    """

    def execute(self, context: Any) -> Any:
        """Keep the digest that the person is shown, then wait for them."""
        shown = _SHOWN.search(self.body or "")
        if shown is None:
            raise AirflowFailException("there is no candidate to ask about")
        context["ti"].xcom_push(key=CANDIDATE, value=shown[1])
        return super().execute(context)


def question(protocol: StudyProtocol, role: str) -> HITLOperator:
    """Ask the person of one role; only the Airflow user of that name can answer (anybody else gets 403)."""
    from tasks.approvals import APPROVE, REJECT

    return SignOffQuestion(
        task_id=question_id(role),
        options=[APPROVE, REJECT],
        subject=f"Release {protocol.study}? Sign-off as {role}",
        body=BODY.format(title=protocol.title, study=protocol.study, role=role),
        params={
            "name": Param("", type="string", title="Your name", maxLength=200),
            "role": Param(role, type="string", title="Your role", enum=[role]),
            "reason": Param("", type="string", title="Reason", maxLength=500),
        },
        assigned_users={"id": role, "name": role},
        retries=0,
        execution_timeout=None,  # a person may take days
    )
