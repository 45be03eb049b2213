"""A small typed client of Airflow's stable REST API (v2), for the command line and the live tests."""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from consilium.airflow_home import OPERATOR, password
from consilium.certificates import TlsFiles
from contracts.errors import ConsiliumError
from tasks.home import CoordinatorHome

_RENEW_SECONDS = 3600.0  # tokens live a day
# SQLite lets one process write at a time: on a busy machine Airflow answers now and then that it is locked.
_ATTEMPTS, _LONGEST_WAIT = 6, 5.0


class AirflowRefused(Exception):
    """Airflow answered a request with an error."""

    def __init__(self, status: int, detail: str) -> None:
        self.status = status
        super().__init__(f"status {status}: {detail}")


class _Unavailable(AirflowRefused):
    """Airflow could not serve a request just now (status 5xx): the same request may succeed later."""


@dataclass(frozen=True)
class Run:
    """A DAG run."""

    dag: str
    id: str
    state: str
    queued: datetime | None
    started: datetime | None
    ended: datetime | None


@dataclass(frozen=True)
class TaskState:
    """One task of a run, in its newest attempt."""

    task: str
    state: str | None
    attempt: int
    queued: datetime | None
    started: datetime | None
    ended: datetime | None


@dataclass(frozen=True)
class Question:
    """An open or answered human-in-the-loop request."""

    dag: str
    run: str
    task: str
    subject: str
    body: str
    answered: bool
    params: dict[str, Any]

    @property
    def role(self) -> str:
        """The role that is asked: of the task `approve_<role>`."""
        return self.task.removeprefix("approve_")


@dataclass
class Airflow:
    """Airflow of a home as one of its users; logs in when needed.

    Args:
        url: as in `http://127.0.0.1:8080`.
        home: where the user's password lies.
    """

    url: str
    home: CoordinatorHome
    user: str = OPERATOR
    _token: str = ""
    _since: float = 0.0
    _client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        trust: ssl.SSLContext | bool = False  # plain HTTP on loopback has no certificate
        if self.url.startswith("https:"):
            ca = TlsFiles(self.home.tls).ca
            trust = ssl.create_default_context(cafile=ca if ca.exists() else None)
        self._client = httpx.Client(base_url=self.url, timeout=30.0, trust_env=False, verify=trust)

    def as_role(self, role: str) -> Airflow:
        """The same Airflow as the user who may sign off in a role."""
        return Airflow(self.url, self.home, role)

    def health(self) -> dict[str, str | None]:
        """Status of each component: "healthy", "unhealthy" or None; empty when nobody answers."""
        try:
            answer = self._client.get("/api/v2/monitor/health")
            return {name: part.get("status") for name, part in answer.json().items()}
        except (httpx.TransportError, ValueError):
            return {}

    def dags(self) -> dict[str, bool]:
        """Ids of the DAGs, each with whether it is paused."""
        found = self._get("/dags", {"limit": 1000})["dags"]
        return {dag["dag_id"]: bool(dag["is_paused"]) for dag in found}

    def import_errors(self) -> list[str]:
        """Errors of DAG files."""
        return [error["stack_trace"] for error in self._get("/importErrors", {})["import_errors"]]

    def trigger(self, dag: str, run_id: str | None = None) -> str:
        """Start a run and return its id; asked again for the same id, it is the same run."""
        run = run_id or f"manual__{datetime.now(UTC).isoformat()}_{uuid4().hex[:8]}"
        body = {"logical_date": None, "dag_run_id": run}
        try:
            self._call("POST", f"/dags/{_q(dag)}/dagRuns", json=body)
        except AirflowRefused as refused:
            if refused.status != httpx.codes.CONFLICT:  # the attempt before had started it
                raise
        return run

    def runs(self, dag: str) -> list[Run]:
        """Runs of a DAG, oldest first."""
        found: list[Run] = []
        while True:
            query = {"limit": 100, "offset": len(found), "order_by": "run_after"}
            page = self._get(f"/dags/{_q(dag)}/dagRuns", query)
            found += [_run(row) for row in page["dag_runs"]]
            if len(found) >= page["total_entries"] or not page["dag_runs"]:
                return found

    def run(self, dag: str, run: str) -> Run:
        """One run."""
        return _run(self._get(f"/dags/{_q(dag)}/dagRuns/{_q(run)}", {}))

    def tasks(self, dag: str, run: str) -> dict[str, TaskState]:
        """Tasks of a run by their id."""
        rows = self._get(f"/dags/{_q(dag)}/dagRuns/{_q(run)}/taskInstances", {"limit": 1000})
        return {row["task_id"]: _task(row) for row in rows["task_instances"]}

    def xcom(self, dag: str, run: str, task: str, key: str = "return_value") -> Any:
        """What a task pushed, or None."""
        path = f"/dags/{_q(dag)}/dagRuns/{_q(run)}/taskInstances/{_q(task)}/xcomEntries/{_q(key)}"
        try:
            return self._get(path, {"deserialize": "false", "stringify": "false"})["value"]
        except AirflowRefused:
            return None

    def log(self, dag: str, run: str, task: str, attempt: int = 1) -> str:
        """Log of an attempt as text."""
        path = f"/dags/{_q(dag)}/dagRuns/{_q(run)}/taskInstances/{_q(task)}/logs/{attempt}"
        return str(self._get(path, {"full_content": "true"}))

    def clear_run(self, dag: str, run: str) -> None:
        """Clear every task of a run, as the button in the user interface does."""
        self._call("POST", f"/dags/{_q(dag)}/dagRuns/{_q(run)}/clear", json={"dry_run": False})

    def delete_run(self, dag: str, run: str) -> None:
        """Delete a run."""
        self._call("DELETE", f"/dags/{_q(dag)}/dagRuns/{_q(run)}")

    def pause(self, dag: str, paused: bool = True) -> None:
        """Pause a DAG, or end its pause."""
        self._call("PATCH", f"/dags/{_q(dag)}", json={"is_paused": paused})

    def ring(self, uri: str) -> None:
        """Create an event of the asset with this URI, as the user interface can."""
        assets = self._get("/assets", {"uri_pattern": uri, "limit": 100})["assets"]
        number = next(asset["id"] for asset in assets if asset["uri"] == uri)
        self._call("POST", "/assets/events", json={"asset_id": number, "extra": {}})

    def questions(self, dag: str) -> list[Question]:
        """Human-in-the-loop requests of all runs of a DAG."""
        rows = self._get(f"/dags/{_q(dag)}/dagRuns/~/hitlDetails", {"limit": 100})["hitl_details"]
        return [_question(row) for row in rows]

    def answer(self, question: Question, choice: str, params: dict[str, Any]) -> None:
        """Answer a request; only a user it is assigned to may."""
        self._call(
            "PATCH",
            f"/dags/{_q(question.dag)}/dagRuns/{_q(question.run)}"
            f"/taskInstances/{_q(question.task)}/-1/hitlDetails",
            json={"chosen_options": [choice], "params_input": params},
        )

    def _get(self, path: str, query: dict[str, Any]) -> Any:
        return self._call("GET", path, params=query)

    def _call(self, method: str, path: str, **arguments: Any) -> Any:
        """Make a request of the API, again for a while when Airflow cannot serve it just now.

        A run has its own id, a second bell does no harm, and most of the rest reads or sets. A sign-off or a
        deletion that was done although a proxy answered with an error is refused the second time (409, 404).

        Raises:
            ConsiliumError: E105, nobody answers, or still with an error of the server.
            AirflowRefused: Airflow refused the request.
        """
        attempts = Retrying(
            retry=retry_if_exception_type(_Unavailable),
            stop=stop_after_attempt(_ATTEMPTS),
            wait=wait_random_exponential(max=_LONGEST_WAIT),
            reraise=True,
        )
        try:
            return attempts(self._once, method, path, **arguments)
        except httpx.TransportError as error:
            raise ConsiliumError("E105", f"{self.url}: {error!r}") from error
        except _Unavailable as error:
            raise ConsiliumError("E105", f"{self.url}: {error}") from error

    def _once(self, method: str, path: str, **arguments: Any) -> Any:
        headers = {"Authorization": f"Bearer {self._login()}"}
        answer = self._client.request(method, f"/api/v2{path}", headers=headers, **arguments)
        if answer.is_error:
            refusal = _Unavailable if answer.is_server_error else AirflowRefused
            raise refusal(answer.status_code, f"{method} {path}: {answer.text[:300]}")
        return answer.json() if answer.content else None

    def _login(self) -> str:
        if not self._token or time.monotonic() - self._since > _RENEW_SECONDS:
            body = {"username": self.user, "password": password(self.home, self.user)}
            answer = self._client.post("/auth/token", json=body)
            if answer.is_server_error:
                raise _Unavailable(answer.status_code, "POST /auth/token")
            answer.raise_for_status()
            self._token, self._since = answer.json()["access_token"], time.monotonic()
        return self._token


def _q(text: str) -> str:
    return quote(text, safe="~")


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text).astimezone(UTC)


def _run(row: dict[str, Any]) -> Run:
    return Run(
        dag=row["dag_id"],
        id=row["dag_run_id"],
        state=row["state"],
        queued=_time(row.get("queued_at")),
        started=_time(row.get("start_date")),
        ended=_time(row.get("end_date")),
    )


def _task(row: dict[str, Any]) -> TaskState:
    return TaskState(
        task=row["task_id"],
        state=row["state"],
        attempt=row["try_number"],
        queued=_time(row.get("queued_when")),
        started=_time(row.get("start_date")),
        ended=_time(row.get("end_date")),
    )


def _question(row: dict[str, Any]) -> Question:
    instance = row["task_instance"]
    return Question(
        dag=instance["dag_id"],
        run=instance["dag_run_id"],
        task=instance["task_id"],
        subject=row["subject"],
        body=row.get("body") or "",
        answered=bool(row["response_received"]),
        params=row.get("params") or {},
    )
