"""From a finished study to a release in real Airflow: a person is asked, and only that person may answer."""

from __future__ import annotations

import pytest

from consilium.demo import answer_as_script
from consilium.platform import Platform
from consilium.rest import AirflowRefused
from release.directory import read_manifest
from release.verify import verified, verify_release
from tasks.events import read_events
from tasks.release_key import release_key
from tasks.replay import replay
from tests.live.driver import head, intake, quiet, start, wait, wait_finished

pytestmark = pytest.mark.live

STUDY = "heart-release"


def question(platform: Platform, study: str = STUDY):
    """The open question of a study's release, or None."""
    return next((q for q in platform.airflow.questions(f"{study}.release") if not q.answered), None)


def test_a_finished_study_is_evaluated_judged_exported_and_waits_for_a_person(platform: Platform) -> None:
    intake(platform, STUDY)
    start(platform, STUDY)
    wait_finished(platform, STUDY)
    wait("the question", lambda: question(platform) is not None, 180)
    asked = question(platform)
    candidate = head(platform, STUDY).candidate
    assert candidate is not None and candidate in asked.body
    assert f"/candidates/{STUDY}/validation.html" in asked.body
    assert not list((platform.coordinator.releases / STUDY).glob("*"))


def test_the_administrator_may_not_answer_for_the_clinician(platform: Platform) -> None:
    with pytest.raises(AirflowRefused) as refused:
        platform.airflow.answer(question(platform), "Approve", {"name": "operator"})
    assert refused.value.status == 403
    assert head(platform, STUDY).status == "finished"


def test_the_answer_publishes_a_release_that_verifies_and_replays(platform: Platform) -> None:
    candidate = head(platform, STUDY).candidate
    answer_as_script(platform, question(platform))
    wait("the release", lambda: head(platform, STUDY).status == "released", 180)
    quiet(platform, STUDY)
    (folder,) = (platform.coordinator.releases / STUDY).glob("*/")
    assert verified(verify_release(folder, release_key(platform.coordinator).public))
    (approval,) = read_manifest(folder).approvals
    assert (approval.candidate, approval.approved_by) == (candidate, "demo script, not a person")
    assert approval.user == approval.role == "clinician"
    names = [event.event for event in read_events(platform.coordinator, STUDY)]
    assert names[-4:] == ["verified", "candidate", "approved", "published"]
    assert all(r.matches for r in replay(platform.coordinator, STUDY))


def test_a_cleared_release_publishes_nothing_new(platform: Platform) -> None:
    airflow = platform.airflow
    run = airflow.runs(f"{STUDY}.release")[-1]
    before = head(platform, STUDY)
    airflow.clear_run(run.dag, run.id)
    quiet(platform, STUDY)
    assert head(platform, STUDY) == before
    assert len(list((platform.coordinator.releases / STUDY).glob("*/"))) == 1


def test_a_rejection_ends_the_study_without_a_release(platform: Platform) -> None:
    study = "heart-rejected"
    intake(platform, study)
    start(platform, study)
    wait("the question", lambda: question(platform, study) is not None, 240)
    answer_as_script(platform, question(platform, study), "Reject")
    wait("the rejection", lambda: head(platform, study).status == "rejected", 60)
    quiet(platform, study)
    assert "E704" in (head(platform, study).reason or "")
    assert not (platform.coordinator.releases / study).exists()
