"""What a site's task may ask of the execution API: its own life, the plan, and its one answer.

The token of a task is issued by the coordinator and fetched with the job, so whoever holds it is the site
on whose queue the job lay. Stock Airflow lets it read every variable and connection and start any DAG.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

from contracts.signing import MAX_DOCUMENT_BYTES
from plugins.identity import Refused
from plugins.jobs import Task

PREFIX = "/execution/"
PLAN_TASKS = {"open_round", "open_evaluation", "export"}  # coordinator tasks that push the XCom "plan"
ANSWERS = {"return_value", "refusal"}

_INSTANCE = re.compile(r"task-instances/(?P<id>[0-9a-f-]{36})/(?P<what>run|state|heartbeat|rtif)")
_XCOM = re.compile(r"xcoms/(?P<dag>[^/]+)/(?P<run>[^/]+)/(?P<task>[^/]+)/(?P<key>[^/]+)")
_METHODS = {"run": "PATCH", "state": "PATCH", "heartbeat": "PUT", "rtif": "PUT"}
_END_STATES = {"success", "failed", "up_for_retry"}
_PASSED = {  # fields of a site's request that reach Airflow
    "run": ("state", "hostname", "pid", "start_date"),
    "heartbeat": ("hostname", "pid"),
}


class Unneeded(Exception):
    """A request that is answered with success and thrown away: rendered arguments stay in the hospital."""


def check(instance: str, task: Task, method: str, path: str, query: str, body: Any) -> Any:
    """Check a request made with the token of a site's task and return the body that may pass.

    Args:
        instance: id of the task instance whose token it is.
        path: after `/execution/`, decoded.

    Raises:
        Refused: 403.
        Unneeded: the request carries rendered arguments.
    """
    if match := _INSTANCE.fullmatch(path):
        if match["id"] != instance or method != _METHODS[match["what"]] or query:
            raise Refused(403, "another task instance, or another method")
        if match["what"] == "rtif":
            raise Unneeded
        if not isinstance(body, dict):
            raise Refused(403, "body is not a mapping")
        return _state(body) if match["what"] == "state" else _life(match["what"], task, body)
    if match := _XCOM.fullmatch(path):
        here = unquote(match["dag"]) == task.dag and unquote(match["run"]) == task.run
        if here and method == "GET" and match["task"] in PLAN_TASKS and match["key"] == "plan":
            return body
        if here and match["task"] == task.task and match["key"] in ANSWERS:
            if method == "DELETE":
                return body
            if method == "POST" and not query:
                if not isinstance(body, str) or len(body.encode()) > MAX_DOCUMENT_BYTES:
                    raise Refused(403, f"an answer is one string of at most {MAX_DOCUMENT_BYTES} bytes")
                return body
    raise Refused(403, "not a request of a site's task")


def _life(what: str, task: Task, body: dict[str, Any]) -> dict[str, Any]:
    """A start or heartbeat: the site's name stands for its machine and its user."""
    passed = {name: body[name] for name in _PASSED[what] if name in body}
    passed["hostname"] = task.queue
    if what == "run":
        passed["unixname"] = task.queue
    return passed


def _state(body: dict[str, Any]) -> dict[str, Any]:
    if body.get("state") not in _END_STATES:
        raise Refused(403, f"state {body.get('state')!r}")
    # An outlet in a site's copy of a DAG would start any DAG that waits for the asset.
    if body.get("task_outlets") or body.get("outlet_events"):
        raise Refused(403, "a site's task has no outlet")
    passed: dict[str, Any] = {name: body[name] for name in ("state", "end_date") if name in body}
    if body["state"] == "success":
        passed |= {"task_outlets": [], "outlet_events": []}
    return passed
