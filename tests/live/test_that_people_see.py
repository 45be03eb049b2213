"""What people see in Airflow: rounds as columns, hospitals as rows, and the form that asks for approval."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from consilium.airflow_home import CLINICIAN, OPERATOR
from consilium.platform import Platform
from tests.live.browser import signed_in
from tests.live.driver import head, heart, intake, start, wait, wait_finished

pytestmark = pytest.mark.live

STUDY = "heart-seen"


@pytest.fixture(scope="module")
def asked(platform: Platform):
    """The study's open question, once all its rounds are closed."""
    intake(platform, STUDY)
    start(platform, STUDY)
    wait_finished(platform, STUDY)
    dag = f"{STUDY}.release"
    wait("the question", lambda: any(not q.answered for q in platform.airflow.questions(dag)), 180)
    return next(q for q in platform.airflow.questions(dag) if not q.answered)


def test_the_grid_has_a_row_for_every_hospital_and_a_column_for_every_round(
    platform: Platform, asked, tmp_path: Path
) -> None:
    runs = [r for r in platform.airflow.runs(f"{STUDY}.round") if r.state == "success"]
    with signed_in(platform, OPERATOR) as page:
        page.goto(f"{platform.url}/dags/{STUDY}.round")
        for site in platform.sites:
            page.get_by_text(site, exact=True).first.wait_for()
        # The panel of the grid is narrow at first: the border to its right is drawn aside.
        page.mouse.move(315, 600)
        page.mouse.down()
        page.mouse.move(760, 600, steps=10)
        page.mouse.up()
        cells = page.locator(f'a[href*="/dags/{STUDY}.round/runs/"][href*="tasks/close_round"]')
        wait("a cell for every round", lambda: cells.count() >= len(runs), 30)
        page.screenshot(path=tmp_path / "grid.png")
    assert len(runs) == heart(STUDY).first_round + 3  # statistics and two rounds
    assert (tmp_path / "grid.png").stat().st_size > 10_000


def test_the_clinician_sees_the_form_with_the_candidate_and_the_evidence(platform: Platform, asked) -> None:
    candidate = head(platform, STUDY).candidate
    with signed_in(platform, CLINICIAN) as page:
        page.goto(f"{platform.url}/dags/{asked.dag}/runs/{asked.run}/tasks/{asked.task}/required_actions")
        page.get_by_role("button", name="Approve").first.wait_for()
        assert page.get_by_role("button", name="Reject").first.is_visible()
        assert candidate in page.content()
        answer = page.goto(f"{platform.url}/candidates/{STUDY}/validation.html")
        assert answer.status == 200 and "default-src 'none'" in answer.headers["content-security-policy"]
        assert "Acceptance gates" in page.content()


def test_the_evidence_is_for_people_who_are_signed_in(platform: Platform, asked) -> None:
    page = f"{platform.url}/candidates/{STUDY}/validation.html"
    assert httpx.get(page, trust_env=False).status_code in (401, 403)
