"""A second study on the same lineages is refused when their cap would be passed, and Airflow shows why."""

from __future__ import annotations

from pathlib import Path

import pytest

from consilium.airflow_home import OPERATOR
from consilium.platform import Platform
from contracts.errors import SENTENCES
from contracts.signing import SigningKey
from privacy.accountant import epsilon
from privacy.ledger import Ledger
from site_runtime.config import load_site
from tasks.store import load_record
from tests.live.browser import signed_in
from tests.live.conftest import BUDGET
from tests.live.driver import finish, head, intake, start, wait_finished

pytestmark = pytest.mark.live

FIRST, SECOND = "heart-private", "heart-second"


def ledger(platform: Platform, site: str) -> Ledger:
    """The ledger of a hospital's lineage."""
    home = platform.site(site)
    lineage = load_site(home).governance.lineage
    return Ledger(home.ledger(lineage), site, lineage, SigningKey.load(site, home.signing_key))


@pytest.fixture(scope="module")
def refused(platform: Platform) -> str:
    """The run in which every hospital refuses the second study, after the first has spent."""
    intake(platform, SECOND)  # alone it fits
    if head(platform, FIRST).status in ("registered", "running"):
        intake(platform, FIRST)
        start(platform, FIRST)
        wait_finished(platform, FIRST)
    run = start(platform, SECOND)
    finish(platform, f"{SECOND}.round", run)
    return run


def test_the_second_study_is_refused_and_spends_nothing(platform: Platform, refused: str) -> None:
    dag = f"{SECOND}.round"
    assert platform.airflow.run(dag, refused).state == "failed"
    opened = load_record(platform.coordinator, SECOND, "1")
    assert (opened["kind"], opened["status"], sorted(opened["refused"])) == (
        "training",
        "refused",
        sorted(platform.sites),
    )
    # The head names a model once a round is closed, and none was.
    assert head(platform, SECOND).round == 1 and head(platform, SECOND).model is None
    for site in platform.sites:
        spends = ledger(platform, site).spends()
        assert ledger(platform, site).spends(FIRST) == spends  # nothing of the second
        assert epsilon(spends, BUDGET["delta"]) <= 0.5
        assert "E401" in platform.airflow.xcom(dag, refused, f"{site}.train", "refusal")
        assert "E401" in platform.site(site).log.read_text()


def test_the_reason_stands_in_the_airflow_ui_and_in_the_status(
    platform: Platform, refused: str, tmp_path: Path
) -> None:
    sentence = SENTENCES["E401"][1]
    reason = head(platform, SECOND).reason
    assert reason is not None and "E401" in reason and sentence in reason
    where = f"{platform.url}/dags/{SECOND}.round/runs/{refused}/tasks"
    with signed_in(platform, OPERATOR) as page:
        page.goto(f"{where}/close_round")
        page.get_by_text(sentence).first.wait_for()
        page.screenshot(path=tmp_path / "refused.png")


def test_a_new_intake_is_refused_before_it_reads_any_data(platform: Platform, refused: str) -> None:
    run = platform.airflow.trigger(f"{SECOND}.intake")
    finish(platform, f"{SECOND}.intake", run)
    assert load_record(platform.coordinator, SECOND, "intake")["refused"] == dict.fromkeys(
        platform.sites, "E401"
    )
