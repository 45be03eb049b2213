"""From a signed-off candidate to a published release, or to its end. All is checked here, not in Airflow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from contracts.errors import ConsiliumError
from contracts.release import Approval, ReleaseManifest
from durable.files import locked
from release.directory import read_manifest, seal
from release.registry import register, releases
from release.rotation import read_rotations
from release.signature import PublicKey
from release.verify import verified, verify_release
from tasks.amendments import check_amendment
from tasks.approvals import Answer, approvals_of, rejection
from tasks.evaluation import end_without_release
from tasks.events import read_events, record_event
from tasks.head import Head, advance, load_head, load_protocol, now
from tasks.home import CoordinatorHome
from tasks.release_key import release_key
from tasks.stopped import release_folder
from tasks.versions import earlier, previous_release


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
            answer is not for this candidate or older than it; E709, somebody answered who may not; E707 or
            E111, the product has another release in use than when the candidate was made; E701, the sealed
            release does not verify.
    """
    with locked(home.root / ".publish.lock"):  # one at a time: versions of a product follow each other
        return _published(home, study, answers, triggered_by)


def _published(
    home: CoordinatorHome, study: str, answers: Mapping[str, Answer | None], triggered_by: Iterable[str]
) -> Path:
    head = load_head(home, study)
    if head.candidate is None:
        raise ConsiliumError("E704", f"study {study} has no candidate")
    if head.status not in ("finished", "released"):
        raise ConsiliumError("E704", f"study {study} is {head.status}: {head.reason}")
    published = published_release(home, study, head.candidate)
    if published is None:
        _end_if_rejected(home, head, answers)
        published = _sealed(home, head, answers, triggered_by)
    else:
        _verify(home, published)
    register(home.registry, published)
    manifest = read_manifest(published)
    for approval in manifest.approvals:
        _record(home, study, approval)
    record_event(home, study, "published", head.candidate, version=manifest.version)
    if head.status != "released":
        advance(home, head, status="released", plan=None, reason=None)
    return published


def _verify(home: CoordinatorHome, folder: Path) -> None:
    """Check a signed directory as a deployment team will.

    Raises:
        ConsiliumError: E701.
    """
    rotations = read_rotations(home.rotations.read_bytes()) if home.rotations.exists() else []
    current = release_key(home).public
    first = PublicKey.parse(rotations[0].old) if rotations else current
    checks = verify_release(folder, first, rotations)
    if not verified(checks):
        failed = [f"{c.name}: {c.detail}" for c in checks if c.passed is False]
        raise ConsiliumError("E701", "; ".join(failed))


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
    _require_current(home, manifest)
    time = now()
    approvals = approvals_of(home, manifest, answers, triggered_by, time)
    _require_younger(home, head, approvals)
    target = home.releases / manifest.product / manifest.version
    seal(candidate, target, approvals, release_key(home), time, lambda folder: _verify(home, folder))
    return target


def _require_current(home: CoordinatorHome, manifest: ReleaseManifest) -> None:
    """Check that the product is where it was when the candidate was made.

    Another study may have released, or somebody gone back, since: then the version, the change and what an
    amendment must keep are others than the approvers saw.

    Raises:
        ConsiliumError: E707; E111, the release that is now in use asks for more than this study did.
    """
    protocol = load_protocol(home, manifest.study)
    previous = previous_release(home, protocol)
    since = None if previous is None else previous.manifest.version
    taken = [release.manifest.version for release in earlier(home, protocol)]
    if since != manifest.change.since or manifest.version in taken:
        raise ConsiliumError(
            "E707",
            f"{manifest.release_id} follows {manifest.change.since}; in use is {since}, released are "
            f"{', '.join(taken) or 'none'}",
        )
    check_amendment(home, protocol)


def _require_younger(home: CoordinatorHome, head: Head, approvals: Iterable[Approval]) -> None:
    """Check that nobody approved before the candidate was there; its own dates may be older (E705)."""
    key = head.candidate
    made = [e.time for e in read_events(home, head.study) if (e.event, e.key) == ("candidate", key)]
    for approval in approvals:
        if not made or approval.time < made[0]:
            when = made[0] if made else "never"
            raise ConsiliumError(
                "E705", f"{approval.role}: dated {approval.time}, the candidate was made {when}"
            )


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
