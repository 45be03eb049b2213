"""What the live tests do to a running platform, always waiting for a condition with a deadline."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import yaml

from consilium.platform import Platform
from consilium.processes import wait_until
from consilium.rest import Run, TaskState
from contracts.canonical import sha256
from contracts.study import StudyProtocol, load_study, parse_study
from site_runtime.config import data_folder
from tasks.head import Head, load_head
from tasks.store import load_record
from tests.leaks import Planted

STUDIES = Path(__file__).resolve().parents[2] / "studies"
BUSY = ("queued", "running")


def heart(study: str, **changes: Any) -> StudyProtocol:
    """The shipped heart-disease study under another name, with some fields replaced."""
    body = load_study(STUDIES / "heart-disease.yaml").body()
    return parse_study({**body, "study": study, "gates": [], **changes})


def wait(what: str, condition: Any, seconds: float) -> None:
    """Wait for a condition.

    Raises:
        AssertionError: it did not come true in time.
    """
    assert wait_until(condition, seconds, interval=0.25), f"{what}: not within {seconds} s"


def finish(platform: Platform, dag: str, run: str, seconds: float = 120) -> Run:
    """Wait until a run has ended and return it."""
    wait(f"{dag} {run}", lambda: platform.airflow.run(dag, run).state not in BUSY, seconds)
    return platform.airflow.run(dag, run)


def intake(platform: Platform, study: str) -> None:
    """Freeze the cohorts of a study at every hospital."""
    run = platform.airflow.trigger(f"{study}.intake")
    assert finish(platform, f"{study}.intake", run).state == "success"
    admitted = load_record(platform.coordinator, study, "intake")["admitted"]
    assert admitted == sorted(platform.sites)


def start(platform: Platform, study: str) -> str:
    """Start a round by hand and return the run."""
    return platform.airflow.trigger(f"{study}.round")


def head(platform: Platform, study: str) -> Head:
    """Where a study stands."""
    return load_head(platform.coordinator, study)


def wait_finished(platform: Platform, study: str, seconds: float = 240) -> None:
    """Wait until the last round of a study is closed."""
    ended = ("finished", "released", "rejected")
    wait(f"{study} finished", lambda: head(platform, study).status in ended, seconds)


def quiet(platform: Platform, study: str, seconds: float = 180) -> None:
    """Wait until no run of a study is active, but for one that waits for a person."""

    def idle() -> bool:
        airflow = platform.airflow
        for kind in ("intake", "round"):
            if any(run.state in BUSY for run in airflow.runs(f"{study}.{kind}")):
                return False
        for run in airflow.runs(f"{study}.release"):
            if run.state in BUSY:
                tasks = airflow.tasks(run.dag, run.id)
                asked = [tasks[name].state for name in tasks if name.startswith("approve_")]
                if not any(state in ("awaiting_input", "deferred") for state in asked):
                    return False
        return True

    # Events become runs within a moment: quiet means quiet twice.
    def twice() -> bool:
        if not idle():
            return False
        time.sleep(2)
        return idle()

    wait(f"{study} quiet", twice, seconds)


def state_of(platform: Platform, dag: str, run: str, task: str) -> str | None:
    """State of a task, None before it is scheduled."""
    found: TaskState | None = platform.airflow.tasks(dag, run).get(task)
    return found.state if found else None


def fingerprint(platform: Platform, study: str) -> dict[str, str]:
    """Digests of everything a study has made: head, records, plans, answers, ledgers, outboxes."""
    coordinator = platform.coordinator.study(study)
    files = [path for path in coordinator.rglob("*") if path.is_file() and not path.name.startswith(".")]
    for site in platform.sites:
        home = platform.site(site)
        files += [path for folder in ("ledger", "outbox") for path in (home.root / folder).rglob("*.*")]
    files += [path for path in platform.coordinator.exchange.rglob("*") if path.is_file()]
    found = {
        str(path.relative_to(platform.home)): sha256(path.read_bytes()) for path in files if path.is_file()
    }
    return {name: digest for name, digest in found.items() if not name.endswith(".lock")}


def plant(federation: Path, target: Path, planted: dict[str, Planted], budget: dict[str, float]) -> None:
    """Copy a federation with its data, with one more patient at each hospital who exists nowhere else.

    Every file gets a column with the patient's identifier (the line number, so that FLamby's split stays),
    one with a date and one of free text; the planted patient is in training. `budget` is every lineage's.
    """
    target.mkdir(parents=True)
    for file in sorted(federation.glob("*.yaml")):
        site = yaml.safe_load(file.read_text())
        name, source = site["site"], site["source"]
        raw = Path(os.path.expandvars(source["path"].replace("${CONSILIUM_DATA}", str(data_folder()))))
        lines = raw.read_text().splitlines()
        rows = [f"{line},{number},2001-01-01,nothing" for number, line in enumerate(lines, 1) if line.strip()]
        who = planted[name]
        rows.append(
            f"57,1,3,131,{who.number!r},0,1,151,0,1.2,?,?,?,1,{who.identifier},{who.date},{who.sentence}"
        )
        data = target / f"{name}.data"
        data.write_text("\n".join(rows) + "\n")
        columns = [*source["columns"], "mrn", "seen", "note"]
        source |= {"path": data.name, "columns": columns, "patient": "mrn"}
        shutil.copyfile(federation / site["holdout"], target / site["holdout"])
        site["budget"] = budget
        (target / file.name).write_text(yaml.safe_dump(site))
