"""One real platform for all live tests: Airflow, and four hospitals as processes of their own."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from consilium.up import Platform, down, up
from tests.live.driver import STUDIES, heart

# Rounds of these start by hand only; a task of the second takes seconds.
BY_HAND = {"rounds": 4, "deadline_seconds": 60, "cadence": "cron", "cron": "0 3 1 1 *"}
QUICK = {"steps": 10, "sample_rate": 0.5, "learning_rate": 0.1, "normalisation": "declared"}
SLOW = QUICK | {"steps": 600}
PRIVATE = {
    "privacy": {"mode": "patient", "epsilon": 0.5, "delta": 1e-3, "max_grad_norm": 1.0},
    "rounds": 2,
    "training": QUICK,
}
LIVE_STUDIES = (
    heart("heart-live", rounds=6, deadline_seconds=60),
    heart("heart-private", deadline_seconds=60, **PRIVATE),
    heart("heart-queued", **BY_HAND, training=QUICK),
    heart("heart-running", **BY_HAND, training=SLOW),
)


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Real Airflow with four real edge workers on the heart-disease federation."""
    from consilium.data import DATA_SETS

    assert DATA_SETS
    home = tmp_path_factory.mktemp("live") / "home"
    running = up(home, STUDIES / "federations" / "heart-disease", list(LIVE_STUDIES), free_port())
    try:
        yield running
    finally:
        down(home)
