"""One real platform for all live tests: Airflow, and four hospitals as processes of their own."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from consilium.platform import Platform
from consilium.up import down, up
from site_runtime.config import data_folder
from tests.leaks import Planted
from tests.live.driver import STUDIES, heart, plant

# Rounds of these start by hand only; a task of the second takes seconds.
BY_HAND = {"rounds": 4, "deadline_seconds": 60, "cadence": "cron", "cron": "0 3 1 1 *"}
QUICK = {"steps": 10, "sample_rate": 0.5, "learning_rate": 0.1, "normalisation": "declared"}
SLOW = QUICK | {"steps": 600}
PRIVATE = {
    "privacy": {"mode": "patient", "epsilon": 0.5, "delta": 1e-3, "max_grad_norm": 1.0},
    "rounds": 2,
    "training": QUICK,
}
# The budget of every lineage holds heart-private, and heart-second alone, but not both.
BUDGET = {"epsilon": 1.05, "delta": 1e-3}
SECOND = PRIVATE | {"privacy": PRIVATE["privacy"] | {"epsilon": 1.0}}
LIVE_STUDIES = (
    heart("heart-live", rounds=6, deadline_seconds=60),
    heart("heart-private", deadline_seconds=60, **PRIVATE),
    heart("heart-second", **BY_HAND | SECOND),
    heart("heart-queued", **BY_HAND, training=QUICK),
    heart("heart-running", **BY_HAND, training=SLOW),
    heart("heart-seen", rounds=2, deadline_seconds=60, training=QUICK | {"normalisation": "federated"}),
    heart(
        "heart-secure",
        rounds=2,
        deadline_seconds=60,
        training=QUICK,
        strategy={"aggregation": {"method": "secure"}},
    ),
    heart("heart-rejected", rounds=1, deadline_seconds=60, training=QUICK),
    heart("heart-besieged", rounds=20, deadline_seconds=60, training=QUICK),
    heart("heart-release", rounds=2, deadline_seconds=60, training=QUICK | {"normalisation": "federated"}),
)
HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
PLANTED = {
    site: Planted(
        identifier=f"QX77319{number}-{site}",
        date=f"1931-07-1{number}",
        number=613.40625 + number,
        sentence=f"a caravan of {site} zebras",
    )
    for number, site in enumerate(HOSPITALS)
}


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def planted() -> dict[str, Planted]:
    """The patient planted at each hospital, who must be found nowhere else."""
    return PLANTED


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory, planted: dict[str, Planted]) -> Iterator[Platform]:
    """Real Airflow with four real edge workers on heart-disease, with a planted patient at each."""
    if not (data_folder() / "heart_disease").is_dir():
        pytest.skip(f"no heart_disease in {data_folder()}: set CONSILIUM_DATA or `consilium data fetch`")
    federation = tmp_path_factory.mktemp("hospitals") / "federation"
    plant(STUDIES / "federations" / "heart-disease", federation, planted, BUDGET)
    home = tmp_path_factory.mktemp("live") / "home"
    running = up(home, federation, list(LIVE_STUDIES), free_port())
    try:
        yield running
    finally:
        down(home)
