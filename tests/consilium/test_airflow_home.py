"""The two kinds of AIRFLOW_HOME: what each may sign, and what none may say."""

from __future__ import annotations

import configparser
import getpass
import json
import os
import socket
import stat
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

from consilium.airflow_home import (
    LOST_SECONDS,
    coordinator_environment,
    password,
    passwords_file,
    queue_timeout,
    site_environment,
    write_coordinator,
    write_site,
)
from consilium.database import check_database
from consilium.own_executor import MOST_PROCESSES
from contracts.errors import ConsiliumError
from contracts.signing import SigningKey
from site_runtime import exchange
from site_runtime.home import SiteHome
from tasks.head import register_study
from tasks.home import CoordinatorHome
from tasks.settings import Settings, save_settings
from tests.factories import tiny_study


def read(airflow: Path) -> configparser.ConfigParser:
    """The configuration as Airflow parses it."""
    parser = configparser.ConfigParser()
    parser.read(airflow / "airflow.cfg")
    return parser


def test_a_site_holds_its_own_key_and_no_shared_secret(tmp_path: Path) -> None:
    coordinator, site = CoordinatorHome(tmp_path / "coordinator"), SiteHome(tmp_path / "sites" / "ash")
    write_coordinator(coordinator, 18080, 60, sites=4)
    write_site(site, "ash", "http://127.0.0.1:18080")
    config = read(site.airflow)
    assert config["api_auth"]["jwt_secret"] == ""
    assert config["api_auth"]["jwt_private_key_path"] == str(site.edge_key)
    assert config["api_auth"]["jwt_kid"] == config["api_auth"]["jwt_issuer"] == "ash"
    assert config["edge"]["push_logs"] == "False"
    text = (site.airflow / "airflow.cfg").read_text()
    secrets = read(coordinator.airflow)
    for value in (secrets["api_auth"]["jwt_secret"], secrets["api"]["secret_key"], str(coordinator.root)):
        assert value not in text


def test_what_is_secret_is_readable_by_its_owner_only_and_is_kept(tmp_path: Path) -> None:
    home = CoordinatorHome(tmp_path)
    write_coordinator(home, 18080, 60, sites=4)
    before = password(home, "operator"), password(home, "clinician"), home.api_key.read_bytes()
    write_coordinator(home, 18081, 600, sites=4)
    assert (password(home, "operator"), password(home, "clinician"), home.api_key.read_bytes()) == before
    assert before[0] != before[1]
    for path in (passwords_file(home), home.api_key, home.airflow / "airflow.cfg"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SigningKey.load("coordinator", home.api_key).public


def test_every_role_of_a_registered_study_is_a_user_and_the_administrator_is_none(tmp_path: Path) -> None:
    home = CoordinatorHome(tmp_path)
    write_coordinator(home, 18080, 60, sites=4)
    before = password(home, "clinician")
    register_study(home, tiny_study(sign_off={"roles": ["quality", "physicist"]}))
    write_coordinator(home, 18080, 60, sites=4)
    users = read(home.airflow)["core"]["simple_auth_manager_users"]
    assert users == "operator:admin,clinician:op,physicist:op,quality:op"
    secrets = {password(home, user) for user in ("operator", "clinician", "physicist", "quality")}
    assert len(secrets) == 4 and password(home, "clinician") == before
    register_study(home, tiny_study(study="other", sign_off={"roles": ["operator"]}))
    with pytest.raises(ConsiliumError, match=r"E101.*operator"):
        write_coordinator(home, 18080, 60, sites=4)


def test_a_sites_environment_names_neither_user_nor_machine_nor_coordinator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "reaches in")
    monkeypatch.setenv("CONSILIUM_HOME", str(tmp_path))
    monkeypatch.setenv("HOSTNAME", socket.gethostname())
    site = SiteHome(tmp_path / "sites" / "ash")
    environment = site_environment(site, "ash", "http://127.0.0.1:18080")
    assert environment["HOSTNAME"] == environment["LOGNAME"] == environment["USER"] == "ash"
    assert "CONSILIUM_HOME" not in environment and "AIRFLOW__CORE__EXECUTOR" not in environment
    assert environment["TMPDIR"].startswith(str(site.root))
    with monkeypatch.context() as patch:
        patch.setenv("LOGNAME", environment["LOGNAME"])
        assert getpass.getuser() == "ash"  # what Airflow reports with a task
    own = coordinator_environment(CoordinatorHome(tmp_path / "coordinator"))
    assert own["CONSILIUM_HOME"] == str(tmp_path) and "CONSILIUM_SITE_HOME" not in own
    assert os.environ["HOSTNAME"] == socket.gethostname()


@pytest.mark.parametrize("deadline", [60, 120, 600, 86400])
def test_a_lost_task_and_its_retry_fit_into_the_deadline(deadline: int) -> None:
    assert LOST_SECONDS + queue_timeout(deadline) < deadline
    assert queue_timeout(deadline) >= 5


_EXECUTORS = """
import json
from airflow.executors.executor_loader import ExecutorLoader
print(json.dumps({type(one).__name__: one.parallelism for one in ExecutorLoader.init_executors()}))
"""


@pytest.mark.slow
def test_fifty_hospitals_train_at_once_and_the_coordinators_processes_stay_few(tmp_path: Path) -> None:
    """Fifty slots and more for hospitals, and two studies at once; each process of its own costs 40 MB."""
    home = CoordinatorHome(tmp_path)
    write_coordinator(home, 18080, 60, sites=50)
    assert int(read(home.airflow)["core"]["parallelism"]) >= 2 * 50
    run = [sys.executable, "-c", _EXECUTORS]
    answer = subprocess.run(
        run, env=coordinator_environment(home), capture_output=True, text=True, check=True
    )
    assert json.loads(answer.stdout.splitlines()[-1]) == {"OwnExecutor": MOST_PROCESSES, "EdgeExecutor": 100}


def test_nobody_gives_up_within_an_hour_nor_is_late_when_the_coordinator_is_back(tmp_path: Path) -> None:
    """The shortest pause of Airflow's clients between two attempts is a second, the longest is configured."""
    coordinator, site = CoordinatorHome(tmp_path / "coordinator"), SiteHome(tmp_path / "sites" / "ash")
    write_coordinator(coordinator, 18080, 60, sites=4)
    write_site(site, "ash", "http://127.0.0.1:18080")
    for airflow in (coordinator.airflow, site.airflow):
        workers = read(airflow)["workers"]
        assert int(workers["execution_api_retries"]) >= 3600
        assert float(workers["execution_api_retry_wait_max"]) <= 5
    environment = site_environment(site, "ash", "http://127.0.0.1:18080")
    edge = distribution("apache-airflow-providers-edge3")
    client = Path(str(edge.locate_file("airflow/providers/edge3/cli/api_client.py"))).read_text()
    for name, value in (("AIRFLOW__EDGE__API_RETRIES", "3600"), ("AIRFLOW__EDGE__API_RETRY_WAIT_MAX", "5.0")):
        assert environment[name] == value
        assert f'os.getenv("{name}"' in client.replace("(\n        ", "("), (
            "the edge client reads another name"
        )
    waits = [exchange.FIRST_WAIT_SECONDS * 2**n for n in range(exchange.ATTEMPTS - 1)]
    assert sum(min(wait, exchange.LONGEST_WAIT_SECONDS) for wait in waits) >= 3500


def test_the_database_is_the_one_that_the_settings_name(tmp_path: Path) -> None:
    home = CoordinatorHome(tmp_path)
    write_coordinator(home, 18080, 60, sites=4)
    assert read(home.airflow)["database"]["sql_alchemy_conn"].startswith("sqlite:///")
    save_settings(home, Settings(database="postgresql://me:p%40ss@db.example/airflow"))
    write_coordinator(home, 18080, 60, sites=4)
    for option in ("sql_alchemy_conn", "sql_alchemy_conn_async"):
        assert read(home.airflow)["database"][option] == "postgresql+psycopg://me:p%40ss@db.example/airflow"
    assert stat.S_IMODE((home.airflow / "airflow.cfg").stat().st_mode) == 0o600
    for url in ("mysql://db.example/airflow", "airflow"):
        save_settings(home, Settings(database=url))
        with pytest.raises(ConsiliumError, match=r"E118.*expected postgresql://"):
            write_coordinator(home, 18080, 60, sites=4)


def test_a_database_that_does_not_answer_is_named_without_its_password(tmp_path: Path) -> None:
    home = CoordinatorHome(tmp_path)
    save_settings(home, Settings(database="postgresql://me:secret@127.0.0.1:9/airflow"))
    with pytest.raises(ConsiliumError, match=r"E118.*127\.0\.0\.1:9") as refused:
        check_database(home)
    assert "secret" not in str(refused.value)
