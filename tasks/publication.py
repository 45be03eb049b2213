"""From a signed-off candidate to a published release, or to its end. All is checked here, not in Airflow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from contracts.errors import ConsiliumError
from contracts.release import Approval
from release.directory import read_manifest, seal
from release.registry import register, releases
from release.verify import verified, verify_release
from tasks.approvals import Answer, approvals_of, rejection
from tasks.evaluation import end_without_release
from tasks.events import record_event
from tasks.head import Head, advance, load_head, now
from tasks.home import CoordinatorHome
from tasks.release_key import release_key
from tasks.stopped import release_folder


def publish(
    home: CoordinatorHome,
    study: str,
    run_id: str,
    answers: Mapping[str, Answer | None],
    triggered_by: Iterable[str] = (),
) -> Path:
    """Decide on the sign-off; seal, sign and register the candidate if every role approved it.

    Published once, however often asked. A rejection by any role ends the study, whatever the others said.

    Args:
        answers: what each role of the protocol's `sign_off` answered; None where nobody answered.
        triggered_by: users who started this run; they may not have signed off.

    Raises:
        ConsiliumError: E704, there is no candidate, somebody rejected it, or a role did not answer; E705, an
            answer is not for this candidate; E709, somebody answered who may not; E701, the sealed release
            does not verify.
    """
    head = load_head(home, study)
    if head.candidate is None:
        raise ConsiliumError("E704", f"study {study} has no candidate")
    if head.status not in ("finished", "released"):
        raise ConsiliumError("E704", f"study {study} is {head.status}: {head.reason}")
    published = published_release(home, study, head.candidate)
    if published is None:
        _end_if_rejected(home, head, answers)
        published = _sealed(home, head, answers, triggered_by)
    checks = verify_release(published, release_key(home).public)
    if not verified(checks):
        failed = [f"{c.name}: {c.detail}" for c in checks if c.passed is False]
        raise ConsiliumError("E701", "; ".join(failed))
    register(home.registry, published)
    manifest = read_manifest(published)
    for approval in manifest.approvals:
        _record(home, study, approval)
    record_event(home, study, "published", head.candidate, version=manifest.version)
    if head.status != "released":
        advance(home, head, status="released", plan=None, reason=None)
    return published


def published_release(home: CoordinatorHome, study: str, candidate: str) -> Path | None:
    """The published release of a candidate, if publishing was interrupted after it was sealed."""
    for release in releases(home.releases):
        if release.manifest.study == study and release.manifest.candidate_digest == candidate:
            return release.path
    return None


def _end_if_rejected(home: CoordinatorHome, head: Head, answers: Mapping[str, Answer | None]) -> None:
    """End the study if somebody who was asked said no to this candidate.

    Raises:
        ConsiliumError: E704.
    """
    assert head.candidate is not None
    said = rejection(answers, head.candidate)
    if said is None:
        return
    role, answer = said
    because = f", because: {answer.reason}" if answer.reason else ""
    reason = ConsiliumError("E704", f"the {role} (user {answer.user!r}) rejected {head.candidate}{because}")
    end_without_release(home, head, reason)
    raise reason


def _sealed(
    home: CoordinatorHome, head: Head, answers: Mapping[str, Answer | None], triggered_by: Iterable[str]
) -> Path:
    """Check the sign-off and seal the candidate under its product and version."""
    candidate = release_folder(home, head.study) / "candidate"
    manifest = read_manifest(candidate)
    if manifest.candidate_digest != head.candidate:
        raise ConsiliumError("E705", f"the candidate's files are {manifest.candidate_digest}")
    time = now()
    approvals = approvals_of(home, manifest, answers, triggered_by, time)
    target = home.releases / manifest.product / manifest.version
    seal(candidate, target, approvals, release_key(home), time)
    return target


def _record(home: CoordinatorHome, study: str, approval: Approval) -> None:
    record_event(
        home,
        study,
        "approved",
        f"{approval.candidate} {approval.role}",
        role=approval.role,
        user=approval.user,
        time=approval.time,
        signed_with=approval.key,
    )
