"""Hospitals come, change their keys and go while rounds run, and the others never notice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from consilium.federation_init import initialise
from consilium.platform import COMPONENTS, Platform
from consilium.up import down, up
from contracts.enrolment import fingerprint
from site_runtime.config import data_folder
from site_runtime.consent import approve_by_scripts
from site_runtime.home import SiteHome
from tasks.federation import load_federation
from tasks.replay import replay
from tasks.store import load_record
from tests.live.conftest import BY_HAND, QUICK, free_port
from tests.live.driver import STUDIES, finish, heart, start, state_of, wait
from tests.live.hospital import present, worker_of
from tests.live.rogue import Rogue

pytestmark = pytest.mark.live

FEDERATION = STUDIES / "federations" / "heart-disease"
FOUNDERS = ("cleveland", "hungarian", "switzerland")
NEW, ROTATING = "va", "hungarian"
# A round lasts some seconds, so that something can happen while it is open.
STUDY = heart("heart-members", **BY_HAND | {"rounds": 7, "min_sites": 2, "training": QUICK | {"steps": 1500}})
DAG = f"{STUDY.study}.round"


@dataclass
class Federation:
    """A running federation of three, and the home of a fourth hospital."""

    platform: Platform
    new: SiteHome
    files: Path

    def consilium(self, *words: str, home: Path | None = None) -> Any:
        """Run a command as its user would and return what it says to machines.

        Args:
            home: the hospital's own folder; the coordinator's when None.
        """
        options = ["--json"] if home is None else ["--json", "--home", str(home)]
        environment = os.environ | {"CONSILIUM_HOME": str(self.platform.home)}
        command = [sys.executable, "-m", "consilium", *words, *options]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def round(self) -> str:
        """Start a round and wait until somebody trains in it."""
        run = start(self.platform, STUDY.study)
        wait("training", lambda: self.state(run, "cleveland.train") in ("queued", "running", "success"), 60)
        return run

    def state(self, run: str, task: str) -> str | None:
        """State of a task of a round."""
        return state_of(self.platform, DAG, run, task)

    def closed(self, run: str, number: int) -> dict[str, Any]:
        """The record of a round, when it is closed."""
        assert finish(self.platform, DAG, run).state in ("success", "failed")
        record = load_record(self.platform.coordinator, STUDY.study, str(number))
        assert record["status"] == "closed"
        return record

    def intake(self) -> list[str]:
        """Freeze the cohorts and return who was admitted."""
        dag = f"{STUDY.study}.intake"
        finish(self.platform, dag, self.platform.airflow.trigger(dag))
        return list(load_record(self.platform.coordinator, STUDY.study, "intake")["admitted"])

    def tasks(self, dag: str) -> set[str]:
        """Ids of the tasks that Airflow knows of a DAG."""
        return {row["task_id"] for row in self.platform.airflow._get(f"/dags/{dag}/tasks", {})["tasks"]}

    def ask(self, key: SiteHome, site: str) -> int:
        """Status of an ordinary request in a hospital's name with the key in a home."""

        class Asking(Rogue):
            def key(self, site: str = site) -> bytes:
                return key.edge_key.read_bytes()

        asking = Asking(self.platform, self.platform.url, DAG, "")
        path = f"jobs/fetch/{site}"
        token = asking.token(path, header={"kid": site}, iss=site)
        body = {"queues": [site], "free_concurrency": 0, "supports_task_instance_uuid": True}
        return asking.ask("POST", f"/edge_worker/v1/{path}", token, body).status


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    if not (data_folder() / "heart_disease").is_dir():
        pytest.skip(f"no heart_disease in {data_folder()}: set CONSILIUM_DATA or `consilium data fetch`")
    founders = tmp_path / "founders"
    founders.mkdir()
    for site in FOUNDERS:
        for file in FEDERATION.glob(f"{site}*"):
            (founders / file.name).write_bytes(file.read_bytes())
    home, port = tmp_path / "home", free_port()
    initialise(home, {"url": f"http://127.0.0.1:{port}", "port": port, "tls.mode": "none"})
    platform = up(home, founders, [STUDY], port)
    try:
        yield Federation(platform, SiteHome(tmp_path / NEW), tmp_path)
    finally:
        down(home)


def entries(platform: Platform) -> dict[str, str]:
    """What the registry says of each member."""
    return {m.site: m.model_dump_json() for m in load_federation(platform.coordinator).members}


def workers(platform: Platform, *sites: str) -> dict[str, int | None]:
    """Process ids of hospitals that run."""
    assert all(platform.part(f"site-{site}").alive() for site in sites)
    return {site: platform.part(f"site-{site}").leader() for site in sites}


def test_a_hospital_comes_another_changes_its_keys_and_one_goes(federation: Federation) -> None:
    platform, files = federation.platform, federation.files
    founders = workers(platform, *FOUNDERS)
    components = {name: platform.part(name).leader() for name in COMPONENTS}
    assert federation.intake() == sorted(FOUNDERS)

    # A hospital comes while a round is open: that round is the founders', the next one is everybody's.
    run, before = federation.round(), entries(platform)
    request, kit = files / "va.request.json", files / "va.kit.json"
    card = federation.consilium(
        *("site", "enrol", NEW, "--config", str(FEDERATION / f"{NEW}.yaml"), "--out", str(request)),
        home=federation.new.root,
    )
    approved = federation.consilium(
        "federation",
        "approve",
        str(request),
        "--fingerprint",
        card["fingerprints"]["sign_key"],
        "--out",
        str(kit),
    )
    assert "PRIVATE" not in kit.read_text()
    told = fingerprint(approved["coordinator_key"])
    federation.consilium("site", "join", str(kit), "--fingerprint", told, home=federation.new.root)
    after = entries(platform)
    assert {site: after[site] for site in FOUNDERS} == before
    approve_by_scripts(federation.new, STUDY)
    with worker_of(federation.new, files) as worker:
        assert federation.closed(run, 1)["admitted"] == sorted(FOUNDERS)
        present(platform, worker, NEW)
        dag = f"{STUDY.study}.intake"
        wait("the hospital in the DAG", lambda: f"{NEW}.intake" in federation.tasks(dag), 120)
        assert federation.intake() == sorted([*FOUNDERS, NEW])
        record = federation.closed(federation.round(), 2)
        assert record["expected"] == record["admitted"] == sorted([*FOUNDERS, NEW])

        # A hospital changes its keys while a round is open; the old ones open nothing from then on.
        old = SiteHome(files / "old")
        old.edge_key.parent.mkdir(parents=True)
        old.edge_key.write_bytes(platform.site(ROTATING).edge_key.read_bytes())
        assert federation.ask(old, ROTATING) == 200
        run, change = federation.round(), files / "hungarian.rotation.json"
        rotating = platform.site(ROTATING).root
        wait("its answer", lambda: federation.state(run, f"{ROTATING}.train") == "success", 180)
        federation.consilium(
            *("site", "rotate", "--officer", "Dr. A. Smith", "--reason", "Yearly.", "--out", str(change)),
            home=rotating,
        )
        federation.consilium("federation", "rotate", str(change), "--yes", "--out", str(kit))
        federation.consilium("site", "join", str(kit), home=rotating)
        assert federation.ask(old, ROTATING) == 403
        assert federation.ask(platform.site(ROTATING), ROTATING) == 200
        assert federation.closed(run, 3)["admitted"] == sorted([*FOUNDERS, NEW])
        present(platform, platform.part(f"site-{ROTATING}"), ROTATING)
        assert federation.closed(federation.round(), 4)["admitted"] == sorted([*FOUNDERS, NEW])

        # A hospital is revoked while it trains: refused at once, and its answer is not taken.
        run = federation.round()
        assert federation.ask(federation.new, NEW) == 200
        federation.consilium("federation", "revoke", NEW, "--reason", "Agreement ended.", "--yes")
        assert federation.ask(federation.new, NEW) == 403
        record = federation.closed(run, 5)
        assert record["admitted"] == sorted(FOUNDERS) and NEW not in record["silent"]
        assert record["refused"][NEW]["number"] == "E808"
        record = federation.closed(federation.round(), 6)
        assert record["expected"] == record["admitted"] == sorted(FOUNDERS)

    assert workers(platform, *FOUNDERS) == founders
    assert components == {name: platform.part(name).leader() for name in components}
    assert all(round.matches for round in replay(platform.coordinator, STUDY.study))
