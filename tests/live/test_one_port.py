"""A hospital in a network of its own, from which one port of one address can be reached."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from consilium.certificates import federation_ca
from consilium.coordinator import up_coordinator
from consilium.federation_init import initialise
from consilium.platform import Platform
from consilium.processes import Part
from consilium.up import down
from site_runtime.config import data_folder
from site_runtime.consent import approve_by_scripts
from site_runtime.enrol import enrol_site
from site_runtime.home import SiteHome
from tasks.federation import coordinator_key, enrol
from tasks.home import CoordinatorHome
from tasks.store import load_record
from tests.live.conftest import free_port
from tests.live.driver import STUDIES, finish, head, heart, start, wait_finished
from tests.live.hospital import present, worker_of

SPACE, OUTER, INNER = "consilium-one", "consilium-out", "consilium-in"
COORDINATOR, HOSPITAL, TLS_PORT = "10.213.77.1", "10.213.77.2", 18443
QUICK = {"steps": 10, "sample_rate": 0.5, "learning_rate": 0.1, "normalisation": "federated"}
STUDY = heart("heart-one-port", rounds=2, min_sites=1, deadline_seconds=60, training=QUICK)

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="no program ip: `make debian`"),
    pytest.mark.skipif(
        shutil.which("nginx", path="/usr/sbin:/usr/bin") is None, reason="no program nginx: `make debian`"
    ),
]


def ip(*words: str) -> None:
    """Configure the network.

    Raises:
        AssertionError: with what `ip` said.
    """
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


@contextlib.contextmanager
def one_way_out() -> Iterator[None]:
    """A namespace with one cable to this machine: no loopback, no default route, one route to one port."""
    subprocess.run(["ip", "netns", "delete", SPACE], capture_output=True, check=False)  # of a killed run
    made = subprocess.run(["ip", "netns", "add", SPACE], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"this machine gives no network namespace: {made.stderr.strip()}")
    try:
        ip("link", "add", OUTER, "type", "veth", "peer", "name", INNER)
        ip("link", "set", INNER, "netns", SPACE)
        ip("address", "add", f"{COORDINATOR}/30", "dev", OUTER)
        ip("link", "set", OUTER, "up")
        ip("-n", SPACE, "address", "add", f"{HOSPITAL}/32", "dev", INNER)
        ip("-n", SPACE, "link", "set", INNER, "up")
        ip("-n", SPACE, "route", "add", COORDINATOR, "dev", INNER, "scope", "link", "table", "100")
        only = ["to", COORDINATOR, "ipproto", "tcp", "dport", str(TLS_PORT), "lookup", "100"]
        ip("-n", SPACE, "rule", "add", *only)
        yield
    finally:
        ip("netns", "delete", SPACE)


def inside(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command where the hospital is."""
    words = ["ip", "netns", "exec", SPACE, *command]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


def reaches(address: str, port: int) -> bool:
    """Say whether a connection from the hospital comes about."""
    attempt = f"import socket; socket.create_connection(({address!r}, {port}), timeout=3)"
    return inside(sys.executable, "-c", attempt).returncode == 0


@dataclass
class Federation:
    """A coordinator, and a hospital that sees its one port."""

    platform: Platform
    worker: Part


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    if not (data_folder() / "heart_disease").is_dir():
        pytest.skip(f"no heart_disease in {data_folder()}: set CONSILIUM_DATA or `consilium data fetch`")
    home, site = tmp_path / "home", SiteHome(tmp_path / "hospital")
    url = f"https://{COORDINATOR}:{TLS_PORT}"
    with one_way_out():
        initialise(home, {"url": url, "port": free_port(), "tls.listen": f"{COORDINATOR}:{TLS_PORT}"})
        coordinator = CoordinatorHome(home / "coordinator")
        public = coordinator_key(coordinator).public
        card = enrol_site(site, STUDIES / "federations" / "heart-disease" / "cleveland.yaml", public)
        enrol(coordinator, card.model_dump())
        approve_by_scripts(site, STUDY)
        site.coordinator_url.write_text(url)
        site.ca.write_text(federation_ca(coordinator) or "")
        platform = up_coordinator(home, [STUDY])
        try:
            with worker_of(site, tmp_path, ("ip", "netns", "exec", SPACE)) as worker:
                yield Federation(platform, worker)
        finally:
            down(home)


def test_a_study_with_a_hospital_that_reaches_one_port_and_is_reached_by_nobody(
    federation: Federation,
) -> None:
    platform = federation.platform
    study = STUDY.study

    present(platform, federation.worker, "cleveland")

    # The one port, and nothing else: not the API server behind it, not this machine, not the world.
    assert reaches(COORDINATOR, TLS_PORT)
    with socket.create_server((COORDINATOR, 0)) as other:
        where = other.getsockname()
        with socket.create_connection(where, timeout=3):
            assert not reaches(*where)  # it listens, for others
    assert not reaches(COORDINATOR, platform.port)
    assert not reaches("127.0.0.1", platform.port)
    assert not reaches("192.0.2.1", 443)

    run = platform.airflow.trigger(f"{study}.intake")
    assert finish(platform, f"{study}.intake", run).state == "success"
    assert load_record(platform.coordinator, study, "intake")["admitted"] == ["cleveland"]
    start(platform, study)
    wait_finished(platform, study, 300)
    assert head(platform, study).round == 2
    for number in (1, 2):
        record = load_record(platform.coordinator, study, str(number))
        assert record["admitted"] == ["cleveland"] and record["refused"] == {}

    # Nothing listens there, while the worker is at work.
    listening = inside("ss", "-Hltnu")
    assert listening.returncode == 0 and listening.stdout == "", listening.stdout
    assert federation.worker.alive()
