"""What a hospital that turned would try. With the gate none succeeds; without it those marked `stock` do."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.live.rogue import EDGE, EXECUTION, ROGUE, VICTIM, Reply, Rogue

SYSTEM = {
    "airflow_version": "3.3.2",
    "edge_provider_version": "5.1.0",
    "concurrency": 4,
    "free_concurrency": 4,
}
STATE = {"state": "idle", "jobs_active": 0, "sysinfo": SYSTEM}
END = {"state": "success", "end_date": "2026-01-01T00:00:00Z"}
OUTLET = {"name": "heart-release/finished", "uri": "consilium://heart-release/finished", "type": "Asset"}
EVENT = {"dest_asset_key": {"name": OUTLET["name"], "uri": OUTLET["uri"]}, "extra": {}}
DEFERRED = {"state": "deferred", "classpath": "os.system", "trigger_kwargs": {}, "next_method": "execute"}


@dataclass(frozen=True)
class Attack:
    """One request and what its success would mean.

    Attributes:
        stock: whether Airflow without the gate lets it succeed, without harm to the tests.
        elsewhere: another part refuses it behind the gate (the exchange, Airflow's own sign-in).
    """

    name: str
    send: Callable[[Rogue], Reply]
    means: str
    stock: bool = False
    elsewhere: bool = False


def replayed(rogue: Rogue) -> Reply:
    """Use one token twice."""
    path = f"jobs/fetch/{ROGUE}"
    token, body = rogue.token(path), {"queues": [ROGUE], "free_concurrency": 0}
    first = rogue.ask("POST", EDGE + path, token, body)
    if first.status == 403 and not first.by_the_gate:
        return first  # where the gate is not loaded, Airflow refuses the first use as well
    assert first.status == 200
    return rogue.ask("POST", EDGE + path, token, body)


def two_tokens(rogue: Rogue) -> Reply:
    """Send a good token and another hospital's name in a second header."""
    path = f"jobs/fetch/{ROGUE}"
    second = rogue.token(path, iss=VICTIM)
    body = {"queues": [ROGUE], "free_concurrency": 0}
    return rogue.ask("POST", EDGE + path, rogue.token(path), body, [("Authorization", second)])


def spelled(path: str, signed: str = f"jobs/fetch/{ROGUE}") -> Callable[[Rogue], Reply]:
    """Ask for jobs under another spelling of the path."""
    body = {"queues": [VICTIM], "free_concurrency": 0}
    return lambda rogue: rogue.ask("POST", path, rogue.token(signed), body)


def with_token(make: Callable[[Rogue], str | None]) -> Callable[[Rogue], Reply]:
    """Ask for the victim's jobs with another token."""
    body = {"queues": [VICTIM], "free_concurrency": 0}
    return lambda rogue: rogue.ask("POST", f"{EDGE}jobs/fetch/{VICTIM}", make(rogue), body)


def with_body(raw: bytes, headers: list[tuple[str, str]] | None = None) -> Callable[[Rogue], Reply]:
    """Report the worker's state with another body."""
    path = f"worker/{ROGUE}"
    return lambda rogue: rogue.ask("PATCH", EDGE + path, rogue.token(path), None, headers, raw)


def own(changes: dict[str, object]) -> Callable[[Rogue], Reply]:
    """Ask for the rogue's own jobs with a token that has these claims."""
    return lambda rogue: rogue.fetch(**changes)


WORKER = [
    Attack("another hospital's jobs", lambda r: r.fetch(VICTIM), "its tasks and tokens", stock=True),
    Attack("another's queue", lambda r: r.fetch(queues=[VICTIM]), "its tasks and tokens", stock=True),
    Attack("a second queue", lambda r: r.fetch(queues=[ROGUE, VICTIM]), "its tasks and tokens", stock=True),
    Attack(
        "every queue",
        lambda r: r.edge("POST", f"jobs/fetch/{ROGUE}", {"queues": None, "free_concurrency": 0}),
        "everyone's tasks and tokens",
        stock=True,
    ),
    Attack(
        "another's name",
        lambda r: r.edge("PATCH", f"worker/{VICTIM}", STATE | {"queues": [VICTIM]}),
        "a hospital that is gone looks alive",
        stock=True,
    ),
    Attack(
        "register as another",
        lambda r: r.edge("POST", f"worker/{VICTIM}", STATE | {"queues": [VICTIM]}),
        "take a hospital's place",
    ),
    Attack(
        "a team",
        lambda r: r.edge("PATCH", f"worker/{ROGUE}", STATE | {"queues": [ROGUE], "team_name": "x"}),
        "",
    ),
    Attack(
        "another's job done",
        lambda r: r.edge("PATCH", f"jobs/state/{r.dag}/{VICTIM}.train/{r.run}/1/-1/success"),
        "a hospital's work ends before it began",
        stock=True,
    ),
    Attack(
        "a job queued again",
        lambda r: r.edge("PATCH", f"jobs/state/{r.dag}/{ROGUE}.train/{r.run}/1/-1/queued"),
        "jobs that never end",
        stock=True,
    ),
    Attack(
        "the coordinator's job",
        lambda r: r.edge("PATCH", f"jobs/state/{r.dag}/close_round/{r.run}/1/-1/failed"),
        "no round is closed",
        stock=True,
    ),
    Attack(
        "another's queues",
        lambda r: r.edge("PATCH", f"worker/queues/{VICTIM}", {"new_queues": [ROGUE], "remove_queues": []}),
        "a hospital runs another's tasks",
    ),
    Attack(
        "another's log file",
        lambda r: r.edge("GET", f"logs/logfile_path/{r.dag}/{VICTIM}.train/{r.run}/1/-1"),
        "paths of the coordinator",
        stock=True,
    ),
    Attack("an unknown endpoint", lambda r: r.edge("GET", "admin"), "what a later Airflow brings"),
]
TOKENS = [
    Attack("no token", with_token(lambda r: None), "no identity at all"),
    Attack("no real token", with_token(lambda r: "x.y.z"), "no identity at all"),
    Attack("algorithm none", with_token(lambda r: r.with_secret("none")), "any hospital's name"),
    Attack("public key as secret", with_token(lambda r: r.with_secret("HS256")), "any hospital's name"),
    Attack("shared secret", with_token(lambda r: r.with_secret("HS512")), "any hospital's name"),
    Attack(
        "an unknown key", with_token(lambda r: r.as_stranger(f"jobs/fetch/{VICTIM}")), "any hospital's name"
    ),
    Attack(
        "own key, another's kid",
        with_token(lambda r: r.token(f"jobs/fetch/{VICTIM}", {"kid": VICTIM}, iss=VICTIM)),
        "any hospital's name",
    ),
    Attack(
        "another's iss",
        with_token(lambda r: r.token(f"jobs/fetch/{VICTIM}", iss=VICTIM)),
        "any hospital's name",
        stock=True,
    ),
    Attack(
        "the gate's own kid",
        with_token(lambda r: r.token(f"jobs/fetch/{VICTIM}", {"kid": "gate"}, iss="gate", site=VICTIM)),
        "any hospital's name",
    ),
    Attack(
        "a key's address", own({"header": {"jku": "http://192.0.2.1/keys"}}), "a key of the rogue's choice"
    ),
    Attack("expired", own({"iat": 1, "nbf": 1, "exp": 2}), "old tokens stay good"),
    Attack("from the future", own({"iat": int(time.time()) + 3600}), "tokens in store"),
    Attack(
        "good for a day", own({"exp": int(time.time()) + 86_400}), "a stolen token stays good", stock=True
    ),
    Attack("without an id", own({"jti": None}), "a token used twice", stock=True),
    Attack("used twice", replayed, "what was overheard is good again", stock=True),
    Attack(
        "for another request",
        lambda r: r.ask(
            "POST",
            f"{EDGE}jobs/fetch/{ROGUE}",
            r.token(f"worker/{ROGUE}"),
            {"queues": [ROGUE], "free_concurrency": 0},
        ),
        "one token for everything",
        stock=True,
    ),
    Attack("for the exchange", own({"aud": "consilium-exchange"}), "one token for everything"),
    Attack("two tokens", two_tokens, "gate and Airflow read different ones", stock=True),
]
PATHS = [
    Attack("an encoded slash", spelled(f"/edge_worker/v1/jobs%2Ffetch/{VICTIM}"), "past the gate"),
    Attack(
        "encoded letters", spelled(f"/edge_worker/%76%31/jobs/fetch/{VICTIM}"), "past the gate", stock=True
    ),
    Attack("an encoded root", spelled(f"/%65dge_worker/v1/jobs/fetch/{VICTIM}"), "past the gate", stock=True),
    Attack("two slashes", spelled(f"//edge_worker/v1/jobs/fetch/{VICTIM}"), "past the gate"),
    Attack("slashes within", spelled(f"/edge_worker//v1/jobs/fetch/{VICTIM}"), "past the gate"),
    Attack("dots", spelled(f"/edge_worker/v1/worker/../jobs/fetch/{VICTIM}"), "past the gate"),
    Attack("through the pages", spelled(f"/edge_worker/ui/../v1/jobs/fetch/{VICTIM}"), "past the gate"),
    Attack("encoded dots", spelled(f"/edge_worker/ui/%2e%2e/v1/jobs/fetch/{VICTIM}"), "past the gate"),
    Attack("capital letters", spelled(f"/Edge_Worker/v1/jobs/fetch/{VICTIM}"), "past the gate"),
    Attack("a parameter", spelled(f"/edge_worker;x=1/v1/jobs/fetch/{VICTIM}"), "past the gate"),
    Attack(
        "a query",
        lambda r: r.ask(
            "POST",
            f"{EDGE}jobs/fetch/{ROGUE}?worker_name={VICTIM}",
            r.token(f"jobs/fetch/{ROGUE}"),
            {"queues": [ROGUE], "free_concurrency": 0},
        ),
        "gate and Airflow read different names",
        stock=True,
    ),
    Attack(
        "an encoded variable",
        lambda r: r.ask("GET", "/execution/%76ariables/secret", f"Bearer {r.task_token()}"),
        "past the gate",
        stock=True,
    ),
]
BODIES = [
    Attack("a large body", with_body(b'{"x": "' + b"y" * 70_000 + b'"}'), "the coordinator's memory"),
    Attack("a slow body", lambda r: r.slow(), "the coordinator's connections"),
    Attack("not a number", with_body(b'{"state": "idle", "jobs_active": NaN}'), "a crash"),
    Attack("deep brackets", with_body(b"[" * 30_000 + b"]" * 30_000), "a crash"),
    Attack("a compressed bomb", with_body(b"\x1f\x8b", [("Content-Encoding", "gzip")]), "memory"),
    Attack("many headers", with_body(b"{}", [(f"x-{n}", "y") for n in range(90)]), "memory"),
]
TASKS = [
    Attack(
        "a variable", lambda r: r.task("GET", "variables/secret"), "the coordinator's secrets", stock=True
    ),
    Attack("names of variables", lambda r: r.task("GET", "variables/keys"), "secrets", stock=True),
    Attack(
        "write a variable", lambda r: r.task("PUT", "variables/rogue", {"value": "1"}), "settings", stock=True
    ),
    Attack("a connection", lambda r: r.task("GET", "connections/secret"), "databases", stock=True),
    Attack(
        "another's answer",
        lambda r: r.task("GET", r.xcom(f"{VICTIM}.train", "return_value")),
        "what another hospital sent",
        stock=True,
    ),
    Attack(
        "a poisoned plan",
        lambda r: r.task("POST", r.xcom("open_round", "plan"), "poison"),
        "every hospital trains on the rogue's plan",
        stock=True,
    ),
    Attack(
        "answer for another",
        lambda r: r.task("POST", r.xcom(f"{VICTIM}.train", "note"), "poison"),
        "another hospital's update",
        stock=True,
    ),
    Attack(
        "an answer after the end",
        lambda r: r.task("POST", r.xcom(f"{ROGUE}.train", "refusal"), "late"),
        "what was counted is another thing",
        stock=True,
    ),
    Attack(
        "an earlier run's plan",
        lambda r: r.task("GET", r.xcom("open_round", "plan") + "?include_prior_dates=true"),
        "plans of other times",
        stock=True,
    ),
    Attack(
        "free text", lambda r: r.task("POST", r.xcom(f"{ROGUE}.train", "note"), "x"), "data leave", stock=True
    ),
    Attack(
        "another's state",
        lambda r: r.task("PATCH", r.instance("state", f"{VICTIM}.train"), END),
        "a lost round",
    ),
    Attack(
        "an outlet in its copy of the DAG",
        lambda r: r.task("PATCH", r.instance("state"), END | {"task_outlets": [OUTLET], "outlet_events": []}),
        "start a release",
    ),
    Attack(
        "an event of an asset",
        lambda r: r.task("PATCH", r.instance("state"), END | {"task_outlets": [], "outlet_events": [EVENT]}),
        "start a release",
    ),
    Attack(
        "deferred with a class path",
        lambda r: r.task("PATCH", r.instance("state"), DEFERRED),
        "code of the rogue's choice at the coordinator",
    ),
    Attack(
        "rescheduled",
        lambda r: r.task("PATCH", r.instance("state"), {**END, "state": "up_for_reschedule"}),
        "a round that never ends",
    ),
    Attack(
        "skip what comes after",
        lambda r: r.task("PATCH", r.instance("skip-downstream"), {"tasks": ["nothing"]}),
        "a round that is not closed",
        stock=True,
    ),
    Attack(
        "start a run",
        lambda r: r.task("POST", "dag-runs/heart-release.release/rogue", {}),
        "a release at the rogue's time",
    ),
    Attack("clear a run", lambda r: r.task("POST", f"dag-runs/{r.dag}/{r.run}/clear", {}), "work done again"),
    Attack(
        "a run's state",
        lambda r: r.task("GET", f"dag-runs/{r.dag}/{r.run}/state"),
        "who does what",
        stock=True,
    ),
    Attack(
        "everyone's states",
        lambda r: r.task("GET", f"task-instances/states?dag_id={r.dag}"),
        "who does what",
        stock=True,
    ),
    Attack(
        "answer a question",
        lambda r: r.task("PATCH", "hitlDetails/" + r.instances["close_round"], {}),
        "sign",
    ),
    Attack(
        "a token of its own",
        lambda r: r.ask("GET", EXECUTION + "variables/secret", f"Bearer {r.forged_task_token()}"),
        "any task",
    ),
    Attack("the API's description", lambda r: r.ask("GET", "/edge_worker/openapi.json"), "a map", stock=True),
]
PEOPLE = [
    Attack(
        "a hospital's key at the user's API",
        lambda r: r.ask(
            "GET", "/api/v2/dags", f"Bearer {r.token('x', aud='apache-airflow', sub='operator')}"
        ),
        "an administrator",
    ),
    Attack(
        "a variable as administrator",
        lambda r: r.ask(
            "POST",
            "/api/v2/variables",
            f"Bearer {r.token('x', aud='apache-airflow', sub='operator', role='admin')}",
            {"key": "rogue", "value": "1"},
        ),
        "an administrator",
    ),
    Attack(
        "a task's token at the user's API",
        lambda r: r.ask("GET", "/api/v2/dags", f"Bearer {r.task_token()}"),
        "an administrator",
        elsewhere=True,
    ),
    Attack(
        "another hospital's update",
        lambda r: r.blob(r.update),
        "what another hospital learned",
        elsewhere=True,
    ),
]
ATTACKS = [*WORKER, *TOKENS, *PATHS, *BODIES, *TASKS, *PEOPLE]
assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) >= 40
