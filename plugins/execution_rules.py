"""What a site's task may ask of the execution API: its own life, its plan, and its one answer.

The token of a task is issued by the coordinator and fetched with the job, so whoever holds it is the site
on whose queue the job lay. Stock Airflow lets it read every variable, connection and XCom, write the XComs
of every task, and start any DAG; and it lets it do so after the task has ended.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from contracts.signing import MAX_DOCUMENT_BYTES
from plugins.endpoint import Endpoint
from plugins.jobs import Jobs, Task
from plugins.refused import Refused, Thrown

PREFIX = "/execution/"
MAX_BODY_BYTES = 1 << 20  # a document of MAX_DOCUMENT_BYTES as a JSON string, with room for its escapes

PLAN = "plan"
# Which task of the coordinator made the plan that a site's task reads (dags/).
PLAN_TASKS = {
    "train": "open_round",
    "evaluate": "open_evaluation",
    "verify": "export",
    "unmask": "open_unmasking",
}
ANSWERS = {"return_value", "refusal"}

_INSTANCE = r"task-instances/(?P<id>[0-9a-f-]{36})/"
_XCOM = re.compile(r"xcoms/(?P<dag>[^/]+)/(?P<run>[^/]+)/(?P<task>[^/]+)/(?P<key>[^/]+)")
_END_STATES = {"success", "failed", "up_for_retry", "skipped"}
_PASSED = {  # fields of a site's request that reach Airflow
    "run": ("state", "pid"),
    "heartbeat": ("pid",),
}


def _of_instance(what: str, method: str, audited: bool = True) -> Endpoint:
    return Endpoint(what, method, re.compile(_INSTANCE + what), f"task-instances/{{id}}/{what}", audited)


ENDPOINTS = (
    _of_instance("run", "PATCH"),
    _of_instance("state", "PATCH"),
    _of_instance("heartbeat", "PUT", audited=False),
    _of_instance("rtif", "PUT", audited=False),  # rendered arguments
    Endpoint("read", "GET", _XCOM, "xcoms/{dag}/{run}/{task}/{key}", audited=False),
    Endpoint("write", "POST", _XCOM, "xcoms/{dag}/{run}/{task}/{key}"),
    Endpoint("delete", "DELETE", _XCOM, "xcoms/{dag}/{run}/{task}/{key}"),
)


def check(instance: str, task: Task, endpoint: Endpoint, match: re.Match[str], body: Any, jobs: Jobs) -> Any:
    """Check a request made with the token of a site's task and return the body that may pass.

    Args:
        instance: id of the task instance whose token it is.

    Raises:
        Refused: 403.
        Thrown: the request carries rendered arguments.
    """
    if endpoint.pattern is _XCOM:
        _own_xcom(task, endpoint.name, match)
        return _answer(body) if endpoint.name == "write" else None
    if match["id"] != instance:
        raise Refused(403, "other_task", match["id"])
    if endpoint.name == "rtif":
        raise Thrown(201)
    if not isinstance(body, dict):
        raise Refused(403, "body_form", "not a mapping")
    return _state(instance, body, jobs) if endpoint.name == "state" else _life(endpoint.name, task, body)


def _own_xcom(task: Task, verb: str, match: re.Match[str]) -> None:
    if match["dag"] != task.dag or match["run"] != task.run:
        raise Refused(403, "other_run", f"{match['dag']}/{match['run']}"[:200])
    site, _, name = task.task.partition(".")
    if verb == "read":
        if site != task.queue or match["key"] != PLAN or match["task"] != PLAN_TASKS.get(name):
            raise Refused(403, "other_xcom", f"{match['task']}/{match['key']}"[:200])
    elif match["task"] != task.task or match["key"] not in ANSWERS:
        raise Refused(403, "other_xcom", f"{match['task']}/{match['key']}"[:200])


def _answer(body: Any) -> str:
    try:
        fits = isinstance(body, str) and len(body.encode()) <= MAX_DOCUMENT_BYTES
    except UnicodeEncodeError:
        fits = False
    if not fits:
        raise Refused(403, "answer_form", f"one string of at most {MAX_DOCUMENT_BYTES} bytes")
    return str(body)


def _life(what: str, task: Task, body: dict[str, Any]) -> dict[str, Any]:
    """A start or heartbeat: the site's name stands for its machine and its user, our clock for its clock."""
    passed = {name: body[name] for name in _PASSED[what] if name in body}
    passed["hostname"] = task.queue
    if what == "run":
        passed |= {"unixname": task.queue, "start_date": _now()}
    return passed


def _state(instance: str, body: dict[str, Any], jobs: Jobs) -> dict[str, Any]:
    # Deferred, rescheduled and awaiting input would make the coordinator do something later: import the
    # class whose path the site names, or wait for as long as the site says.
    if body.get("state") not in _END_STATES:
        raise Refused(403, "task_state", repr(body.get("state"))[:40])
    # An outlet in a site's copy of a DAG would start any DAG that waits for the asset.
    if body.get("task_outlets") or body.get("outlet_events"):
        raise Refused(403, "outlet")
    state = body["state"]
    if state == "up_for_retry" and ((life := jobs.life(instance)) is None or not life.retries):
        state = "failed"  # Airflow believes the site here, and would make a new job each time
    passed: dict[str, Any] = {"state": state, "end_date": _now()}
    if state == "success":
        passed |= {"task_outlets": [], "outlet_events": []}
    return passed


def _now() -> str:
    return datetime.now(UTC).isoformat()
