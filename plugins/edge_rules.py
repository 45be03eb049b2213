"""What a site's edge worker may ask: key = worker name = queue = owner of the job, and nothing else."""

from __future__ import annotations

import math
import re
from typing import Any
from uuid import UUID

from plugins.endpoint import Endpoint
from plugins.jobs import Jobs
from plugins.refused import Refused, Thrown

PREFIX = "/edge_worker/v1/"
MAX_BODY_BYTES = 64 << 10
LOG_BYTES = 8 << 20  # of a pushed log, which is read and thrown away

_JOB = r"(?P<dag>[^/]+)/(?P<task>[^/]+)/(?P<run>[^/]+)/(?P<attempt>\d{1,6})/(?P<index>-?\d{1,6})"
_STATE = rf"jobs/state/{_JOB}/(?P<state>\w+)"
_REPORTED = {"running", "success", "failed"}
_SYSTEM = {
    "status",
    "status_text",
    "version_mismatch_description",
    "airflow_version",
    "edge_provider_version",
    "python_version",
    "worker_start_time",
    "concurrency",
    "free_concurrency",
}
_VERSIONS = ("airflow_version", "edge_provider_version")  # Airflow parses them as text
_MAX_TEXT = 200

Body = dict[str, Any]


ENDPOINTS = (
    Endpoint("register", "POST", re.compile(r"worker/(?P<worker>[^/]+)"), "worker/{worker}"),
    Endpoint("beat", "PATCH", re.compile(r"worker/(?P<worker>[^/]+)"), "worker/{worker}", audited=False),
    Endpoint("fetch", "POST", re.compile(r"jobs/fetch/(?P<worker>[^/]+)"), "jobs/fetch/{worker}"),
    Endpoint("state", "PATCH", re.compile(_STATE), "jobs/state/{dag}/{task}/{run}/{attempt}/{index}/{state}"),
    Endpoint("log", "POST", re.compile(r"logs/push/.+"), "logs/push/{job}", audited=False),
)


def check(site: str, endpoint: Endpoint, match: re.Match[str], body: Any, jobs: Jobs) -> Body | None:
    """Check a request of `site` to the edge API and return the body that may pass.

    Raises:
        Refused: 403, the request is not one that this site may make.
        Thrown: it is about a job of its own that is no more, or calls one running whose task is over.
    """
    if endpoint.name == "state":
        return _job_state(site, match, body, jobs)
    if not isinstance(body, dict):
        raise Refused(403, "body_form", "not a mapping")
    if match["worker"] != site:
        raise Refused(403, "other_worker", match["worker"])
    if body.get("queues") != [site] or body.get("team_name") is not None:
        raise Refused(403, "other_queue", repr(body.get("queues"))[:100])
    return _fetch(site, body) if endpoint.name == "fetch" else _worker(site, body)


def _job_state(site: str, match: re.Match[str], body: Any, jobs: Jobs) -> Body | None:
    if match["state"] not in _REPORTED:
        raise Refused(403, "job_state", match["state"][:40])
    owner = jobs.owner(match["dag"], match["task"], match["run"])
    if owner is None and match["task"].startswith(f"{site}."):
        # A late report of a job that the coordinator has given up: a refusal would end the worker.
        raise Thrown(200)
    if owner != site:
        raise Refused(403, "other_job", f"{match['dag']}/{match['task']} belongs to {owner!r}")
    where = match["dag"], match["task"], match["run"], int(match["attempt"]), int(match["index"])
    if match["state"] == "running" and not jobs.at_work(*where):
        # The executor would count the job's slot as taken for as long as this is repeated. An honest worker
        # repeats it for the few seconds in which a supervisor outlives its task.
        raise Thrown(200)
    if body is None:
        return None
    try:
        return {"task_instance_id": str(UUID(body["task_instance_id"]))}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Refused(403, "body_form", "no id of a task instance") from None


def _fetch(site: str, body: Body) -> Body:
    passed: Body = {
        "queues": [site],
        "free_concurrency": _count(body.get("free_concurrency")),
        "supports_task_instance_uuid": body.get("supports_task_instance_uuid") is True,
    }
    return passed


def _worker(site: str, body: Body) -> Body:
    system = body.get("sysinfo")
    if not isinstance(system, dict) or not isinstance(body.get("state"), str):
        raise Refused(403, "body_form", "no state or sysinfo")
    # Free text of the hospital (a maintenance comment names a user) and unknown facts stay out.
    facts = {key: _fact(value) for key, value in system.items() if key in _SYSTEM}
    if any(not isinstance(facts.get(name, ""), str) for name in _VERSIONS):
        raise Refused(403, "body_form", "a version is text")
    return {
        "state": _fact(body["state"][:40]),
        "jobs_active": _count(body.get("jobs_active", 0)),
        "queues": [site],
        "sysinfo": facts,
        "maintenance_comments": None,
    }


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 1000:
        raise Refused(403, "body_form", "a count between 0 and 1000")
    return value


def _fact(value: Any) -> str | int | float:
    if isinstance(value, str):
        # One lone surrogate would break the operator's page of all workers, a NUL the database.
        return "".join(character for character in value[:_MAX_TEXT] if character.isprintable())
    if isinstance(value, int) and abs(value) < 2**53:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise Refused(403, "body_form", "a fact of the system is text or a number")
