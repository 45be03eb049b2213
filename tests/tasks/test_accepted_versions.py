"""A hospital on an older accepted version of the code takes part; on another it is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

import site_runtime.steps
import site_runtime.training
from consilium.simulation import ask_site
from contracts.errors import ConsiliumError
from contracts.signing import parse_signed
from contracts.version import CODE_VERSION
from site_runtime.steps import train
from tasks.exchange import DirectoryExchange
from tasks.rounds import close_round, open_round
from tasks.settings import Settings, load_settings, save_settings
from tests.factories import tiny_simulation, tiny_study

pytestmark = pytest.mark.filterwarnings("ignore")
OLDER = "0.2.9"


@pytest.mark.parametrize("accepted", [[], [OLDER]])
def test_a_hospital_on_an_older_version(tmp_path: Path, monkeypatch, accepted: list[str]) -> None:
    simulation = tiny_simulation(tmp_path, tiny_study(min_sites=1))
    save_settings(simulation.coordinator, Settings(accepted_versions=accepted))
    opened = open_round(simulation.coordinator, "tiny", "run", set(simulation.sites))
    assert opened.plan is not None
    assert parse_signed(opened.plan).document["code_versions"] == [CODE_VERSION, *accepted]
    exchange = DirectoryExchange(simulation.coordinator.exchange)
    answers: dict[str, str | None] = {"birch": ask_site(simulation, "birch", train, opened.plan, exchange)}
    for module in (site_runtime.steps, site_runtime.training):
        monkeypatch.setattr(module, "CODE_VERSION", OLDER)
    answers["ash"] = ask_site(simulation, "ash", train, opened.plan, exchange)
    record = close_round(simulation.coordinator, "tiny", "run", answers).record
    if accepted:
        assert [(u["site"], u["code_version"]) for u in record["updates"]] == [
            ("ash", OLDER),
            ("birch", CODE_VERSION),
        ]
    else:
        assert record["admitted"] == ["birch"]
        assert record["refused"]["ash"]["number"] == "E305"


def test_a_version_that_is_none_is_refused_with_its_value(tmp_path: Path) -> None:
    simulation = tiny_simulation(tmp_path, tiny_study())
    simulation.coordinator.settings.write_text("accepted_versions: ['not a version']\n")
    with pytest.raises(ConsiliumError, match=r"E112.*accepted_versions"):
        load_settings(simulation.coordinator)
