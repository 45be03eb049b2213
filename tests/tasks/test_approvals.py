"""Who may sign off, when, and what a personal signature adds. `publish` relies on nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from contracts.errors import ConsiliumError
from contracts.release import ReleaseManifest
from contracts.signing import SigningKey, verify_bytes
from tasks.approvals import (
    APPROVE,
    REJECT,
    Answer,
    approvals_of,
    personal_path,
    rejection,
    sign_personally,
)
from tasks.head import advance, load_head
from tests.dossiers import APPROVED, PUBLISHED, tiny_candidate
from tests.factories import TinyFederation, tiny_study

ROLES = ["clinician", "quality"]
STUDY = tiny_study(sign_off={"roles": ROLES})


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> ReleaseManifest:
    return tiny_candidate(tmp_path_factory.mktemp("made"), study=STUDY)[1]


@pytest.fixture
def federation(tmp_path: Path, manifest: ReleaseManifest) -> TinyFederation:
    """A study whose candidate waits for its sign-off."""
    found = TinyFederation(tmp_path, STUDY)
    advance(found.home, load_head(found.home, "tiny"), status="finished", candidate=manifest.candidate_digest)
    return found


def yes(manifest: ReleaseManifest, role: str, **changes: str) -> Answer:
    answer = Answer(manifest.candidate_digest, APPROVE, role, f"Dr {role}", "good", APPROVED)
    return replace(answer, **changes)


def both(manifest: ReleaseManifest, **changes: str) -> dict[str, Answer | None]:
    """Two approvals, the second with changes."""
    return {"clinician": yes(manifest, "clinician"), "quality": yes(manifest, "quality", **changes)}


def number(federation, manifest, answers, triggered_by=(), published=PUBLISHED) -> str:
    with pytest.raises(ConsiliumError) as refused:
        approvals_of(federation.home, manifest, answers, triggered_by, published)
    return refused.value.number


def test_both_roles_by_their_own_users_make_the_approvals(federation, manifest) -> None:
    made = approvals_of(federation.home, manifest, both(manifest), ["operator"], PUBLISHED)
    assert [(a.role, a.user, a.approved_by) for a in made] == [
        ("clinician", "clinician", "Dr clinician"),
        ("quality", "quality", "Dr quality"),
    ]
    assert {a.candidate for a in made} == {manifest.candidate_digest}


def test_a_role_that_did_not_answer_or_not_yes_has_not_approved(federation, manifest) -> None:
    for quality in (None, yes(manifest, "quality", choice=REJECT), yes(manifest, "quality", choice="")):
        assert number(federation, manifest, {**both(manifest), "quality": quality}) == "E704"
    assert number(federation, manifest, {"quality": yes(manifest, "quality")}) == "E704"


def test_nobody_answers_for_another_role_or_twice(federation, manifest) -> None:
    for user in ("clinician", "operator", ""):
        assert number(federation, manifest, both(manifest, user=user)) == "E709"


def test_who_started_the_run_may_not_sign_off(federation, manifest) -> None:
    assert number(federation, manifest, both(manifest), ["quality"]) == "E709"
    started = manifest.model_copy(update={"triggered_by": "clinician"})
    answers = both(started)
    assert number(federation, started, answers) == "E709"


def test_an_answer_is_for_this_candidate_after_it_was_verified_and_before_publication(
    federation, manifest
) -> None:
    assert number(federation, manifest, both(manifest, candidate="0" * 64)) == "E705"
    assert number(federation, manifest, both(manifest, time="2025-12-31T23:59:59Z")) == "E705"
    assert number(federation, manifest, both(manifest, time="2026-01-01T00:06:01Z")) == "E705"
    late = manifest.model_copy(update={"verified": "2026-01-01T00:05:30Z"})
    assert number(federation, late, both(late)) == "E705"


def test_a_rejection_is_heard_from_any_role_and_only_of_this_candidate(manifest) -> None:
    digest = manifest.candidate_digest
    assert rejection(both(manifest), digest) is None
    assert rejection({"clinician": None, "quality": yes(manifest, "quality", choice=REJECT)}, digest)
    assert rejection(both(manifest, choice=REJECT, candidate="0" * 64), digest) is None


def test_a_personal_signature_comes_beside_the_answer(federation, manifest, monkeypatch) -> None:
    monkeypatch.setattr("tasks.approvals.now", lambda: APPROVED)
    key = SigningKey.generate("person")
    sign_personally(federation.home, "tiny", key, role="quality", name="Dr quality", reason="reviewed")
    _, quality = approvals_of(federation.home, manifest, both(manifest), [], PUBLISHED)
    assert quality.key == key.public and quality.reason == "reviewed"
    assert verify_bytes(quality.signed_bytes, quality.signature, key.public)
    # Alone it approves nothing, and it does not outvote a rejection.
    assert number(federation, manifest, {"clinician": yes(manifest, "clinician")}) == "E704"
    assert number(federation, manifest, both(manifest, choice=REJECT)) == "E704"
    # Who signs and who answers is the same person.
    assert number(federation, manifest, both(manifest, name="Dr Other")) == "E705"


def test_one_key_does_not_sign_for_two_people(federation, manifest, monkeypatch) -> None:
    monkeypatch.setattr("tasks.approvals.now", lambda: APPROVED)
    key = SigningKey.generate("person")
    for role in ROLES:
        sign_personally(federation.home, "tiny", key, role=role, name=f"Dr {role}", reason="")
    assert number(federation, manifest, both(manifest)) == "E709"


def test_a_changed_personal_approval_is_refused(federation, manifest, monkeypatch) -> None:
    monkeypatch.setattr("tasks.approvals.now", lambda: APPROVED)
    key = SigningKey.generate("person")
    sign_personally(federation.home, "tiny", key, role="quality", name="Dr quality", reason="reviewed")
    path = personal_path(federation.home, "tiny", "quality")
    path.write_bytes(path.read_bytes().replace(b"reviewed", b"rejected"))
    assert number(federation, manifest, both(manifest)) == "E803"


def test_a_signature_of_another_candidate_is_not_taken_for_this_one(
    federation, manifest, monkeypatch
) -> None:
    monkeypatch.setattr("tasks.approvals.now", lambda: APPROVED)
    advance(federation.home, load_head(federation.home, "tiny"), candidate="0" * 64)
    key = SigningKey.generate("person")
    sign_personally(federation.home, "tiny", key, role="quality", name="Dr quality", reason="old")
    _, quality = approvals_of(federation.home, manifest, both(manifest), [], PUBLISHED)
    assert quality.key is None


def test_only_a_waiting_candidate_in_a_role_of_the_protocol_can_be_signed(federation) -> None:
    key = SigningKey.generate("person")
    with pytest.raises(ConsiliumError, match=r"E704.*nurse"):
        sign_personally(federation.home, "tiny", key, role="nurse", name="N", reason="")
    advance(federation.home, load_head(federation.home, "tiny"), status="rejected")
    with pytest.raises(ConsiliumError, match=r"E704.*rejected"):
        sign_personally(federation.home, "tiny", key, role="quality", name="Q", reason="")
