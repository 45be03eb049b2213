"""What happens to a federation in weeks: bad links, wrong clocks, an absent coordinator, a lost machine."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from consilium.backup import backup, restore
from consilium.platform import COMPONENTS, Platform
from consilium.processes import end
from consilium.up import down, up
from contracts.study import StudyProtocol
from site_runtime.config import data_folder
from tasks.home import CoordinatorHome
from tasks.presence import present_sites
from tasks.replay import replay
from tasks.store import load_record
from tests.live.calm import plans_of, rounds, site_ledger
from tests.live.chaos import leftovers
from tests.live.conftest import QUICK, free_port
from tests.live.driver import STUDIES, head, heart, intake, quiet, start, wait, wait_finished
from tests.live.hospital import moved, skewed
from tests.live.link import link_to

pytestmark = pytest.mark.soak

OUTAGE_SECONDS = 100.0  # longer than every time after which Airflow gives a task, job or worker up
TOLERATED, TOO_MUCH = 110, 600  # seconds that a hospital's clock is off


def private(study: str, rounds: int, steps: int = 30, **changes: object) -> StudyProtocol:
    """A study whose ledgers say how often a hospital trained."""
    spend = {"mode": "patient", "epsilon": 0.5, "delta": 1e-3, "max_grad_norm": 1.0}
    return heart(
        study,
        rounds=rounds,
        deadline_seconds=120,
        privacy=spend,
        training=QUICK | {"steps": steps},
        **changes,
    )


LINKS = private("heart-links", rounds=6, min_sites=3)
OUTAGE = private("heart-outage", rounds=4, steps=2000)
RESTORED = private("heart-restored", rounds=8, steps=300)


@pytest.fixture(scope="module")
def enduring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Four hospitals on one machine."""
    if not (data_folder() / "heart_disease").is_dir():
        pytest.skip(f"no heart_disease in {data_folder()}: set CONSILIUM_DATA or `consilium data fetch`")
    home = tmp_path_factory.mktemp("enduring") / "home"
    federation = STUDIES / "federations" / "heart-disease"
    platform = up(home, federation, [LINKS, OUTAGE, RESTORED], free_port())
    for study in (LINKS, OUTAGE, RESTORED):
        platform.airflow.pause(f"{study.study}.release")
    try:
        yield platform
    finally:
        down(home)
        assert leftovers(platform) == []


def nothing_was_lost_or_paid_twice(platform: Platform, study: str, sites: list[str]) -> None:
    """Check that these hospitals are in every round, and that each trained once for it."""
    records = list(rounds(platform, study))
    for record in records:
        assert record["status"] == "closed" and record["admitted"] == sites, record
    assert all(found.matches for found in replay(platform.coordinator, study))
    for site in sites:
        ledger = site_ledger(platform.site(site))
        paid = [plan for record in records for plan in plans_of(record) if ledger.reserved(plan)]
        assert len(paid) == len(ledger.spends(study)) == len(records)


def reasons_at_the_gate(platform: Platform) -> set[str]:
    """Reasons for which the gate refused anything."""
    files = platform.coordinator.audit.glob("gate-*.jsonl")
    return {json.loads(line)["reason"] for path in files for line in path.read_text().splitlines()}


def everybody(platform: Platform) -> None:
    """Wait until the coordinator hears of every hospital."""
    wait("everybody", lambda: set(platform.sites) == present_sites(platform.coordinator), 180)


@pytest.mark.skip(reason="written, and not seen to pass yet")
def test_a_flapping_link_and_clocks_two_minutes_off_lose_nothing(enduring: Platform, tmp_path: Path) -> None:
    """Ten minutes are too much, and the log of the gate says so."""
    platform, study = enduring, LINKS.study
    everybody(platform)
    intake(platform, study)
    with ExitStack() as stack:
        link = stack.enter_context(link_to(platform.port, up=4.0, down=2.0))
        stack.enter_context(moved(platform, "va", link.port))
        for site, seconds in (("hungarian", TOLERATED), ("switzerland", -TOLERATED), ("cleveland", TOO_MUCH)):
            stack.enter_context(moved(platform, site, environment=skewed(tmp_path, seconds)))
        here = {"va", "hungarian", "switzerland"}
        wait("the hospitals", lambda: here <= present_sites(platform.coordinator), 180)
        wait("a wrong clock", lambda: "token_early" in reasons_at_the_gate(platform), 180)
        assert "cleveland" not in present_sites(platform.coordinator)
        start(platform, study)
        wait_finished(platform, study, 400)
        assert link.cuts > 5 and link.reset > 0
    nothing_was_lost_or_paid_twice(platform, study, sorted(here))


@pytest.mark.skip(reason="written, and not seen to pass yet")
def test_the_coordinator_comes_back_to_the_round_that_was_open(enduring: Platform) -> None:
    platform, study = enduring, OUTAGE.study
    everybody(platform)
    intake(platform, study)
    start(platform, study)
    wait("a round", lambda: head(platform, study).round >= 2 and head(platform, study).plan is not None, 120)
    leaders = {site: platform.part(f"site-{site}").leader() for site in platform.sites}
    end([platform.part(name) for name in COMPONENTS], force=True)
    time.sleep(OUTAGE_SECONDS)
    assert sorted(platform.revive()) == sorted(COMPONENTS)
    wait_finished(platform, study, 400)
    nothing_was_lost_or_paid_twice(platform, study, sorted(platform.sites))
    # The workers waited; nobody had to start them again.
    assert leaders == {site: platform.part(f"site-{site}").leader() for site in platform.sites}
    quiet(platform, study)


def test_a_lost_coordinator_is_restored_and_finishes_the_study(enduring: Platform, tmp_path: Path) -> None:
    """Rounds after the backup are made again, from what the hospitals sent then and at no new cost."""
    platform, study = enduring, RESTORED.study
    everybody(platform)
    intake(platform, study)
    start(platform, study)
    wait("three rounds", lambda: head(platform, study).round >= 3, 120)
    saved = tmp_path / "backup.tar"
    backup(platform.coordinator, saved)
    wait("two more", lambda: head(platform, study).round >= 6, 120)
    lost = {record["round"]: record["model"] for record in _closed(platform, study)}
    down(platform.home)
    shutil.rmtree(platform.coordinator.root)  # the machine is gone; the hospitals are not

    restore(saved, platform.home)
    coordinator = CoordinatorHome(platform.home / "coordinator")
    assert head(platform, study).round < max(lost)
    again = up(platform.home, STUDIES / "federations" / "heart-disease", [RESTORED], platform.port)
    assert again.coordinator == coordinator
    start(again, study)
    wait_finished(again, study, 300)
    records = list(rounds(again, study))
    assert {number: records[number - 1]["model"] for number in lost} == lost
    assert all(record["status"] == "closed" for record in records)
    assert all(found.matches for found in replay(coordinator, study))
    for site in again.sites:
        assert len(site_ledger(again.site(site)).spends(study)) == len(records)


def _closed(platform: Platform, study: str) -> list[dict[str, object]]:
    return [load_record(platform.coordinator, study, str(n)) for n in range(1, head(platform, study).round)]
