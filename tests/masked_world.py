"""Fixtures: five hospitals under masks at the moments from which tests go on. Name it in `pytest_plugins`."""

from __future__ import annotations

from pathlib import Path

import pytest

from consilium.simulation import Simulation
from contracts.study import StudyProtocol
from tests.factories import PRIVACY, STUDY
from tests.masked import Clear, asked, five_hospitals, masked_study, opened, trained, watched_encoding
from tests.worlds import copied_world

PRIVATE = masked_study(privacy=PRIVACY)


@pytest.fixture
def five(tmp_path: Path) -> Simulation:
    """Five hospitals after intake; their updates are exact."""
    return five_hospitals(tmp_path / "five", masked_study())


@pytest.fixture
def statistics(tmp_path: Path) -> Simulation:
    """Five hospitals after intake of a study that begins with statistics."""
    return five_hospitals(tmp_path / "statistics", masked_study(training=STUDY["training"]))


@pytest.fixture
def clear(monkeypatch: pytest.MonkeyPatch) -> Clear:
    """What each hospital has masked last."""
    return watched_encoding(monkeypatch)


@pytest.fixture
def fresh(tmp_path: Path) -> tuple[Simulation, str]:
    """A private study whose plan reaches the hospitals, with the plan: nobody has trained."""
    simulation = copied_world(tmp_path / "fresh", _planned, PRIVATE)
    return simulation, opened(simulation)


@pytest.fixture
def sent(tmp_path: Path) -> tuple[Simulation, str, str]:
    """As the request reaches the hospitals, with plan and request: elm's answer never arrived."""
    simulation = copied_world(tmp_path / "sent", _requested, PRIVATE)
    request = asked(simulation, {}).plan
    assert request is not None
    return simulation, opened(simulation), request


def _planned(folder: Path, protocol: StudyProtocol) -> Simulation:
    simulation = five_hospitals(folder, protocol)
    opened(simulation)
    return simulation


def _requested(folder: Path, protocol: StudyProtocol) -> Simulation:
    simulation = copied_world(folder, _planned, protocol)
    asked(simulation, trained(simulation, opened(simulation), ("elm",)))
    return simulation
