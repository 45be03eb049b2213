"""A hospital whose disk is full: a numbered refusal, nothing half-written, and it goes on with room again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import site_runtime.preflight
from contracts.refusal import Refusal
from contracts.signing import SigningKey, parse_signed
from contracts.update import UpdateEnvelope
from privacy.ledger import Ledger
from site_runtime.egress import egress_records
from site_runtime.home import SiteHome
from site_runtime.steps import SiteRefused, train
from tasks.exchange import DirectoryExchange
from tests.disk import fill, small_disk
from tests.factories import opened_plan, private_study, tiny_simulation

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("leave", [0, 24 << 10, 16 << 20])
def test_a_full_disk_is_refused_and_then_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leave: int
) -> None:
    """With nothing left, with room for a reservation but no update, and with room below the reserve."""
    simulation = tiny_simulation(tmp_path / "home", private_study(), budget={"epsilon": 50.0, "delta": 1e-3})
    exchange, plan = DirectoryExchange(simulation.coordinator.exchange), opened_plan(simulation)
    before = simulation.sites["ash"].root
    with small_disk(tmp_path / "disk", "128m") as disk:
        home = SiteHome(disk / "ash")
        shutil.copytree(before, home.root)
        ballast = fill(disk, leave=leave)
        if leave == 24 << 10:  # as if the disk filled up after the check
            monkeypatch.setattr(site_runtime.preflight, "SPARE_BYTES", 0)
        records = egress_records(home)
        try:
            train(home, plan, exchange)
        except SiteRefused as refused:
            assert refused.number == "E122"
            assert Refusal.model_validate(parse_signed(refused.document).document).number == "E122"
        except OSError:
            assert leave < 1 << 20  # what leaves cannot be written down, so nothing leaves
            assert egress_records(home) == records
        else:
            assert leave == 24 << 10  # it fitted
        assert not list((home.root / "outbox").glob(".unfinished.*"))
        ballast.unlink()
        sent = UpdateEnvelope.model_validate(parse_signed(train(home, plan, exchange)).document)
        assert sent.site == "ash"
        key = SigningKey.load("ash", home.signing_key)
        assert len(Ledger(home.ledger("ash"), "ash", "ash", key).spends()) == 1
