"""What a site's edge worker may ask: key = worker name = queue = owner of the job, and nothing else."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

from plugins.identity import Claims, Refused
from plugins.jobs import Jobs

PREFIX = "/edge_worker/v1/"

_WORKER = re.compile(r"worker/(?P<worker>[^/]+)")
_FETCH = re.compile(r"jobs/fetch/(?P<worker>[^/]+)")
_STATE = re.compile(
    r"jobs/state/(?P<dag>[^/]+)/(?P<task>[^/]+)/(?P<run>[^/]+)/(?P<attempt>\d+)/(?P<index>-?\d+)/(?P<state>\w+)"
)
_LOGS = re.compile(r"logs/push/.+")
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

Body = dict[str, Any]


class Dropped(Exception):
    """A request that is answered with success and thrown away: task logs stay in the hospital."""


def check(site: str, claims: Claims, method: str, path: str, body: Body | None, jobs: Jobs) -> Body | None:
    """Check a request of `site` to the edge API and return the body that may pass.

    Args:
        path: after `/edge_worker/v1/`, decoded.

    Raises:
        Refused: 403, the request is not one that this site may make.
        Dropped: the request carries a log.
    """
    # The stock worker signs the path into its token; with a trusted key set Airflow no longer looks at it.
    if unquote(str(claims.get("method", ""))) != path:
        raise Refused(403, f"token signed for {claims.get('method')!r}")
    if method == "POST" and _LOGS.fullmatch(path):
        raise Dropped
    if method in ("POST", "PATCH") and (match := _WORKER.fullmatch(path)):
        return _worker(site, match["worker"], body)
    if method == "POST" and (match := _FETCH.fullmatch(path)):
        _same(site, match["worker"], body)
        return body
    if method == "PATCH" and (match := _STATE.fullmatch(path)):
        if match["state"] not in _REPORTED:
            raise Refused(403, f"state {match['state']!r}")
        owner = jobs.owner(match["dag"], match["task"], match["run"])
        if owner != site:
            raise Refused(403, f"job {match['dag']}/{match['task']} belongs to {owner!r}")
        return body
    raise Refused(403, "not a request of an edge worker")


def _same(site: str, worker: str, body: Body | None) -> None:
    if worker != site:
        raise Refused(403, f"worker name {worker!r}")
    if body is None or body.get("queues") != [site] or body.get("team_name") is not None:
        raise Refused(403, f"queues {None if body is None else body.get('queues')!r}, expected its own alone")


def _worker(site: str, worker: str, body: Body | None) -> Body:
    _same(site, worker, body)
    assert body is not None
    system = body.get("sysinfo") or {}
    if not isinstance(system, dict):
        raise Refused(403, "sysinfo is not a mapping")
    # Free text of the hospital (a maintenance comment names a user) and unknown facts stay out.
    return {
        **body,
        "sysinfo": {
            key: str(value)[:200] if isinstance(value, str) else value
            for key, value in system.items()
            if key in _SYSTEM
        },
        "maintenance_comments": None,
    }
