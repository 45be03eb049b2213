"""The ledgers of a release open everything that the study must have spent: local models and folds as well."""

from __future__ import annotations

from dataclasses import replace

import pytest

from contracts.errors import ConsiliumError
from contracts.release import RoundLineage
from contracts.schedule import slots
from contracts.signing import SigningKey
from contracts.study import parse_study
from privacy.calibration import calibrate, spend_of
from privacy.ledger import Ledger
from release.ledgers import check_exchanges, least_reservations, replay
from tests.factories import private_study

SITES = ("ash", "birch", "cedar")
STUDY = private_study(
    min_sites=3,
    decision_threshold={"alert_rate": 0.1},
    validation={"local_model": True, "leave_one_site_out": 3},
)


@pytest.fixture(scope="module")
def accounts(tmp_path_factory):
    """What the ledgers of three hospitals open that took part in everything."""
    folder, noise, found = tmp_path_factory.mktemp("ledgers"), calibrate(STUDY), []
    for site in SITES:
        key = SigningKey.generate(site)
        ledger = Ledger(folder / f"{site}.jsonl", site, site, key)
        for slot in slots(STUDY, len(SITES)):
            if slot.fold is not None and SITES[slot.fold] == site:
                continue
            spend = spend_of(STUDY, slot.kind, noise.of(slot.purpose))
            plan = {"study": "tiny", "plan": f"{slot.number:064x}", "purpose": slot.purpose}
            ledger.reserve(**plan, spend=spend, epsilon_cap=99.0, delta=1e-3)
        found.append(replay(STUDY, ledger.excerpt("tiny"), key.public))
    return found


def without(account, purpose, written_off=0):
    """The account with one reservation fewer, and so many of its kind written off instead."""
    excerpt = account.excerpt
    gone = next(r for r in excerpt.reservations if r.purpose == purpose)
    kept = [r for r in excerpt.reservations if r is not gone]
    by_purpose = dict(excerpt.by_purpose) | {"write-off": (gone.spend,) * written_off}
    return replace(account, excerpt=replace(excerpt, reservations=kept, by_purpose=by_purpose))


def test_a_study_that_was_followed_to_its_end_is_whole(accounts):
    assert least_reservations(STUDY) == {
        "training": 6, "statistics": 3, "histogram": 3, "local": 3, "fold": 12
    }  # fmt: skip
    check_exchanges(STUDY, accounts)


@pytest.mark.parametrize("purpose", ["training", "statistics", "histogram", "local", "fold"])
def test_an_exchange_that_is_not_opened_is_missed(accounts, purpose):
    first, *others = accounts
    with pytest.raises(ConsiliumError, match=f"E408.*{purpose}"):
        check_exchanges(STUDY, [without(first, purpose), *others])
    check_exchanges(STUDY, [without(first, purpose, written_off=1), *others])


@pytest.mark.parametrize(("one", "two"), [("statistics", "histogram"), ("training", "fold")])
def test_a_write_off_stands_for_one_reservation_alone(accounts, one, two):
    first, second, third = accounts
    with pytest.raises(ConsiliumError, match="E408"):
        check_exchanges(STUDY, [without(first, one, written_off=1), without(second, two), third])
    check_exchanges(STUDY, [without(first, one, 1), without(second, two, 1), third])


def test_under_masks_a_lost_round_owes_nothing_and_a_closed_one_every_update(accounts):
    fields = STUDY.body() | {"strategy": {"aggregation": {"method": "secure"}}}
    fields["training"] = fields["training"] | {"normalisation": "declared"}
    secure = parse_study(fields)
    once = [without(account, "training") for account in accounts]
    closed = RoundLineage(round=1, kind="training", plan="0" * 64, updates=dict.fromkeys(SITES, "0" * 64))
    check_exchanges(secure, once, [closed])
    with pytest.raises(ConsiliumError, match=r"E408.*training"):
        check_exchanges(secure, once, [closed, closed])


def test_without_further_models_nothing_of_them_is_asked_for():
    assert least_reservations(private_study()) == {"training": 4, "statistics": 2}
