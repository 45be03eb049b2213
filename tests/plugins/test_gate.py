"""The gate binds every request to the key that signed it, and lets a site's task do nothing but its task."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest

from contracts.signing import MAX_DOCUMENT_BYTES, SigningKey
from plugins.jobs import Life
from tests.plugins.gate_harness import ASH_LATER, ASH_TASK, OWN_TASK, RUN, SYSTEM, Gate, state


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """A gate with sites ash, birch and cedar."""
    return Gate(tmp_path)


def test_a_worker_speaks_for_itself_and_its_presence_is_noted(gate: Gate) -> None:
    assert gate.edge("ash", "POST", "worker/ash", state(["ash"])) == 200
    assert gate.edge("ash", "PATCH", "worker/ash", state(["ash"])) == 200
    assert gate.edge("ash", "POST", "jobs/fetch/ash", {"queues": ["ash"], "free_concurrency": 4}) == 200
    assert gate.edge("ash", "PATCH", f"jobs/state/tiny.round/ash.train/{RUN}/1/-1/running") == 200
    assert (gate.home.presence / "ash").exists()
    assert not (gate.home.presence / "birch").exists()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "worker/birch", state(["birch"])),
        ("POST", "worker/ash", state(["ash", "birch"])),
        ("POST", "worker/ash", state(["birch"])),
        ("POST", "worker/ash", {"state": "idle", "sysinfo": SYSTEM}),
        ("POST", "worker/ash", state(["ash"], team_name="others")),
        ("POST", "jobs/fetch/ash", {"queues": ["birch"], "free_concurrency": 4}),
        ("POST", "jobs/fetch/ash", {"queues": None, "free_concurrency": 4}),
        ("POST", "jobs/fetch/birch", {"queues": ["birch"], "free_concurrency": 4}),
        ("PATCH", f"jobs/state/tiny.round/birch.train/{RUN}/1/-1/success", None),
        ("PATCH", f"jobs/state/tiny.round/ash.train/{RUN}/1/-1/queued", None),
        ("PATCH", f"jobs/state/tiny.round/close_round/{RUN}/1/-1/failed", None),
        ("PATCH", "worker/queues/ash", {"new_queues": ["birch"], "remove_queues": []}),
        ("DELETE", "worker/ash", None),
        ("GET", f"logs/logfile_path/tiny.round/ash.train/{RUN}/1/-1", None),
    ],
)
def test_a_worker_cannot_act_beyond_its_own(gate: Gate, method: str, path: str, body: Any) -> None:
    assert gate.edge("ash", method, path, body) == 403
    assert gate.behind.seen == []
    assert not (gate.home.presence / "ash").exists()


@pytest.mark.parametrize(
    "forge",
    [
        lambda gate, path: None,
        lambda gate, path: "not a token",
        lambda gate, path: gate.edge_token("ash", "worker/birch"),
        lambda gate, path: gate.edge_token("ash", path, iss="birch"),
        lambda gate, path: gate.edge_token("ash", path, aud="apache-airflow"),
        lambda gate, path: gate.edge_token("ash", path, exp=int(time.time()) - 1000),
        lambda gate, path: jwt.encode({"iss": "ash", "method": path}, "secret" * 16, headers={"kid": "ash"}),
        lambda gate, path: jwt.encode(
            jwt.decode(gate.edge_token("ash", path), options={"verify_signature": False}),
            gate.pem(gate.federation.keys["birch"]),
            "EdDSA",
            headers={"kid": "ash"},
        ),
        lambda gate, path: gate.task_token(ASH_TASK),
    ],
)
def test_only_the_sites_own_key_opens_the_edge_api(gate: Gate, forge: Callable[[Gate, str], Any]) -> None:
    status = gate.ask("POST", "/edge_worker/v1/worker/ash", forge(gate, "worker/ash"), state(["ash"]))
    assert status in (401, 403)
    assert gate.behind.seen == []


def test_a_second_token_on_one_request_is_refused(gate: Gate) -> None:
    good = (b"authorization", gate.edge_token("ash", "worker/ash").encode())
    bad = (b"Authorization", gate.edge_token("birch", "worker/birch").encode())
    assert gate.send("POST", "/edge_worker/v1/worker/ash", [good, bad], state(["ash"])) == 400
    assert gate.send("POST", "/edge_worker/v1/worker/ash", [bad, good], state(["ash"])) == 400
    assert gate.behind.seen == []


def test_free_text_of_a_hospital_does_not_pass(gate: Gate) -> None:
    body = state(["ash"], maintenance_comments="by dr. house")
    body["sysinfo"] = {**SYSTEM, "disk": "/data/records", "python_version": "3" * 900}
    assert gate.edge("ash", "PATCH", "worker/ash", body) == 200
    passed = gate.behind.seen[0][1]
    assert passed["maintenance_comments"] is None
    assert set(passed["sysinfo"]) == {*SYSTEM, "python_version"}
    assert len(passed["sysinfo"]["python_version"]) == 200


def test_no_character_that_cannot_be_shown_reaches_the_operators_page(gate: Gate) -> None:
    sysinfo = {
        **SYSTEM,
        "status_text": "all\x07 \x00well\n",
        "python_version": "3.11\x1b[2J",
        "status": "\u202e",
    }
    assert gate.edge("ash", "PATCH", "worker/ash", state(["ash"], state="idle\x07", sysinfo=sysinfo)) == 200
    passed = gate.behind.seen[0][1]
    assert passed["state"] == "idle"
    shown = {name: passed["sysinfo"][name] for name in ("status_text", "python_version", "status")}
    assert shown == {"status_text": "all well", "python_version": "3.11[2J", "status": ""}
    json.dumps(passed, ensure_ascii=False).encode()  # as Airflow answers


def test_a_pushed_log_is_answered_and_thrown_away(gate: Gate) -> None:
    path = f"logs/push/tiny.round/ash.train/{RUN}/1/-1"
    assert gate.edge("ash", "POST", path, {"log_chunk_data": "patient 17", "log_chunk_time": "x"}) == 200
    assert gate.behind.seen == []


def test_a_late_report_of_a_job_that_is_no_more_ends_no_worker(gate: Gate) -> None:
    assert gate.edge("ash", "PATCH", "jobs/state/tiny.round/ash.train/long-ago/1/-1/failed") == 200
    assert gate.edge("ash", "PATCH", "jobs/state/tiny.round/birch.train/long-ago/1/-1/failed") == 403
    assert gate.behind.seen == []


def test_a_job_whose_task_is_over_is_not_running_whatever_its_hospital_says(gate: Gate) -> None:
    """Its end is still reported: that frees the slot of the executor."""
    job = f"jobs/state/tiny.round/ash.train/{RUN}"
    assert gate.edge("ash", "PATCH", f"{job}/2/-1/running") == 200  # an attempt that is not the present one
    gate.jobs.over.add("ash.train")
    assert gate.edge("ash", "PATCH", f"{job}/1/-1/running") == 200
    assert gate.behind.seen == []
    assert gate.edge("ash", "PATCH", f"{job}/1/-1/success") == 200
    assert len(gate.behind.seen) == 1


@pytest.mark.parametrize(
    ("life", "passed"),
    [
        (Life("running", 0.0), "up_for_retry"),
        (Life("running", 0.0, retries=False), "failed"),
        (None, "failed"),
    ],
)
def test_a_task_is_tried_again_as_often_as_it_may_be_and_no_more(
    gate: Gate, life: Life | None, passed: str
) -> None:
    gate.jobs.lives[ASH_TASK] = life
    end = {"state": "up_for_retry", "end_date": "2026-01-01T00:00:00Z"}
    assert gate.task(ASH_TASK, "PATCH", f"task-instances/{ASH_TASK}/state", end) == 200
    assert gate.behind.seen[0][1]["state"] == passed
    assert gate.audited()[-1]["subject"].endswith(passed)


def test_a_fresh_worker_takes_over_from_a_silent_one_only(gate: Gate) -> None:
    path = gate.home.presence / "ash"
    path.parent.mkdir(parents=True)
    path.touch()
    gate.behind.status = 409
    assert gate.edge("ash", "POST", "worker/ash", state(["ash"])) == 409
    assert gate.jobs.silenced == []
    os.utime(path, (time.time() - 60, time.time() - 60))
    gate.edge("ash", "POST", "worker/ash", state(["ash"]))
    assert gate.jobs.silenced == ["ash"]
    assert time.time() - path.stat().st_mtime > 50  # an attempt that was refused is no sign of life


def test_a_sites_task_lives_reads_its_plan_and_answers(gate: Gate) -> None:
    me = f"task-instances/{ASH_TASK}"
    start = {"hostname": "pc-17", "unixname": "dr-house", "pid": 7, "start_date": "x", "state": "running"}
    assert gate.task(ASH_TASK, "PATCH", f"{me}/run", start) == 200
    passed = gate.behind.seen[-1][1]
    # Their clock, their machine and their user stay there.
    assert passed.pop("start_date") != "x"
    assert passed == {"hostname": "ash", "unixname": "ash", "pid": 7, "state": "running"}
    assert gate.task(ASH_TASK, "PUT", f"{me}/heartbeat", {"hostname": "ash", "pid": 7}) == 200
    assert gate.task(ASH_TASK, "GET", f"xcoms/tiny.round/{RUN}/open_round/plan") == 200
    assert gate.task(ASH_TASK, "POST", f"xcoms/tiny.round/{RUN}/ash.train/return_value", "{}") == 200
    assert gate.task(ASH_TASK, "POST", f"xcoms/tiny.round/{RUN}/ash.train/refusal", "{}") == 200
    end = {"state": "success", "end_date": "x", "task_outlets": [], "outlet_events": []}
    assert gate.task(ASH_TASK, "PATCH", f"{me}/state", {**end, "rendered_map_index": "patient 17"}) == 200
    passed = gate.behind.seen[-1][1]
    assert passed.pop("end_date") != "x"
    assert passed == {"state": "success", "task_outlets": [], "outlet_events": []}


def test_rendered_arguments_are_thrown_away(gate: Gate) -> None:
    assert gate.task(ASH_TASK, "PUT", f"task-instances/{ASH_TASK}/rtif", {"op_args": "patient 17"}) == 201
    assert gate.behind.seen == []


OUTLET = {"state": "success", "end_date": "x", "task_outlets": [{"name": "a", "uri": "a", "type": "Asset"}]}
EVENT = {
    "state": "success",
    "end_date": "x",
    "outlet_events": [{"dest_asset_key": {"name": "a", "uri": "a"}}],
}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "variables/secret", None),
        ("PUT", "variables/secret", {"value": "1"}),
        ("GET", "connections/database", None),
        ("POST", "dag-runs/birch.release/now", {}),
        ("POST", f"dag-runs/tiny.round/{RUN}/clear", {}),
        ("PATCH", f"task-instances/{OWN_TASK}/state", {"state": "success", "end_date": "x"}),
        ("PATCH", f"task-instances/{ASH_LATER}/run", {"state": "running"}),
        ("PATCH", f"task-instances/{ASH_TASK}/state", OUTLET),
        ("PATCH", f"task-instances/{ASH_TASK}/state", EVENT),
        ("PATCH", f"task-instances/{ASH_TASK}/state", {"state": "deferred"}),
        ("PATCH", f"task-instances/{ASH_TASK}/state", {"state": "up_for_reschedule", "end_date": "x"}),
        ("PATCH", f"task-instances/{ASH_TASK}/state", {"state": "awaiting_input", "next_method": "x"}),
        ("PATCH", f"task-instances/{ASH_TASK}/state", {"state": "removed", "end_date": "x"}),
        ("PATCH", f"task-instances/{ASH_TASK}/state", ["success"]),
        ("PATCH", f"task-instances/{ASH_TASK}/skip-downstream", {"tasks": ["close_round"]}),
        ("GET", f"xcoms/tiny.round/{RUN}/birch.train/return_value", None),
        ("GET", f"xcoms/tiny.round/other/{'open_round'}/plan", None),
        ("GET", f"xcoms/other.round/{RUN}/open_round/plan", None),
        ("GET", f"xcoms/tiny.round/{RUN}/open_round/skipmixin_key", None),
        ("GET", f"xcoms/tiny.round/{RUN}/open_evaluation/plan", None),
        ("GET", f"xcoms/tiny.round/{RUN}/open_round/plan/item/0", None),
        ("GET", f"xcoms/tiny.round/{RUN}/open_round/plan/slice", None),
        ("HEAD", f"xcoms/tiny.round/{RUN}/open_round/plan", None),
        ("GET", f"xcoms/tiny.round/{RUN}/ash.train/return_value", None),
        ("GET", "task-instances/count", None),
        ("GET", "task-instances/states", None),
        ("GET", "task-instances/previous/tiny.round/birch.train", None),
        ("GET", f"task-instances/{ASH_TASK}/previous-successful-dagrun", None),
        ("GET", f"task-reschedules/{ASH_TASK}/start_date", None),
        ("GET", f"dag-runs/tiny.round/{RUN}", None),
        ("GET", "asset-events/by-asset", None),
        ("GET", "docs", None),
        ("POST", f"xcoms/tiny.round/{RUN}/open_round/plan", "{}"),
        ("POST", f"xcoms/tiny.round/{RUN}/birch.train/return_value", "{}"),
        ("POST", f"xcoms/tiny.round/{RUN}/ash.train/note", "patient 17"),
        ("POST", f"xcoms/tiny.round/{RUN}/ash.train/return_value", {"a": 1}),
        ("POST", f"xcoms/tiny.round/{RUN}/ash.train/return_value", "x" * (MAX_DOCUMENT_BYTES + 1)),
        ("POST", f"hitlDetails/{ASH_TASK}", {}),
        ("PUT", "store/asset/by-name/value", {}),
    ],
)
def test_a_sites_task_can_do_nothing_else(gate: Gate, method: str, path: str, body: Any) -> None:
    assert gate.task(ASH_TASK, method, path, body) == 403
    assert gate.behind.seen == []


def test_the_coordinators_own_tasks_pass_and_unknown_ones_do_not(gate: Gate) -> None:
    assert gate.task(OWN_TASK, "GET", "variables/anything") == 200
    assert gate.task(str(uuid.UUID(int=99)), "GET", "variables/anything") == 403
    assert gate.task("nobody", "GET", "variables/anything") == 403
    assert gate.ask("GET", "/execution/variables/anything", None) == 401


def test_a_site_is_no_user_of_the_interface(gate: Gate) -> None:
    token = gate.edge_token("ash", "worker/ash", aud="apache-airflow", sub="operator", role="admin")
    assert gate.ask("GET", "/api/v2/dags", f"Bearer {token}") == 403
    assert gate.ask("GET", "/api/v2/dags", None) == 200  # Airflow's own check comes behind


@pytest.mark.parametrize(
    ("method", "key"), [("POST", ""), ("PATCH", "/return_value"), ("DELETE", "/return_value"), ("PUT", "/x")]
)
def test_no_person_writes_the_answer_of_another_to_a_sign_off(gate: Gate, method: str, key: str) -> None:
    path = f"/api/v2/dags/tiny.release/dagRuns/{RUN}/taskInstances/approve_quality/xcomEntries{key}"
    forged = {"key": "return_value", "value": {"chosen_options": ["Approve"]}}
    assert gate.ask(method, path, None, forged) == 403
    assert gate.behind.seen == []
    assert gate.ask("GET", path, None) == 200


def test_a_hospital_enrolled_later_is_known_without_a_restart(gate: Gate) -> None:
    from tasks.federation import enrol

    path = "worker/willow"
    key = SigningKey.generate("willow")
    gate.federation.keys["willow"] = key
    assert gate.edge("willow", "POST", path, state(["willow"])) == 403
    card = {"site": "willow", "sign_key": key.public, "edge_key": key.public, "declared_size": 100}
    enrol(gate.home, card)
    assert gate.edge("willow", "POST", path, state(["willow"])) == 200
