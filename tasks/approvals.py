"""Who signed off a candidate: answers from Airflow, one for each role, with personal signatures beside them.

An answer in Airflow says that a user signed in as somebody said yes; the coordinator's code vouches for it by
signing the release (its countersignature). A personal signature is made with a key that the person alone
holds. It comes beside the answer and never in its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from contracts.canonical import canonical_json
from contracts.errors import ConsiliumError
from contracts.release import Approval, ReleaseManifest
from contracts.signing import SigningKey, first_problem, verify_bytes
from durable.files import write_atomic
from tasks.head import load_head, load_protocol, now
from tasks.home import CoordinatorHome

APPROVE, REJECT = "Approve", "Reject"


@dataclass(frozen=True)
class Answer:
    """What a person answered to the question about a candidate.

    Attributes:
        candidate: digest that the question showed.
        choice: `Approve` or `Reject`.
        user: the Airflow user who answered, as Airflow knows them.
        name: what the person typed as their name.
        reason: what the person typed as their reason.
        time: when they answered, UTC.
    """

    candidate: str
    choice: str
    user: str
    name: str
    reason: str
    time: str


def rejection(answers: Mapping[str, Answer | None], candidate: str) -> tuple[str, Answer] | None:
    """Return the first role, with its answer, that said anything but yes to this candidate."""
    for role, answer in sorted(answers.items()):
        if answer is not None and answer.candidate == candidate and answer.choice != APPROVE:
            return role, answer
    return None


def approvals_of(
    home: CoordinatorHome,
    manifest: ReleaseManifest,
    answers: Mapping[str, Answer | None],
    triggered_by: Iterable[str],
    published: str,
) -> list[Approval]:
    """Turn the answers into the approvals of a release, or say why they are none.

    Args:
        manifest: of the candidate.
        answers: role -> answer, None where nobody answered.
        triggered_by: users who started the candidate's or the present run.
        published: UTC, the time of publication.

    Raises:
        ConsiliumError: E704, a role did not approve; E705, an answer is for another candidate, older than it
            or younger than its publication, or contradicts the personal signature beside it; E709, a wrong
            user, one user for two roles, or the user who started the run; E803, a personal signature does not
            verify.
    """
    forbidden = {user for user in (*triggered_by, manifest.triggered_by) if user}
    approvals: list[Approval] = []
    for role in manifest.sign_off:
        answer = answers.get(role)
        if answer is None or answer.choice != APPROVE:
            raise ConsiliumError("E704", f"the {role} has not approved")
        if answer.user != role or answer.user in {a.user for a in approvals}:
            raise ConsiliumError("E709", f"{role} was answered by user {answer.user!r}")
        if answer.user in forbidden:
            raise ConsiliumError("E709", f"user {answer.user!r} started the run of this release")
        approval = Approval(
            candidate=answer.candidate,
            approved_by=answer.name or f"user {answer.user}",
            user=answer.user,
            role=role,
            reason=answer.reason,
            time=answer.time,
        )
        _require_bound(approval, manifest, published)
        approvals.append(_signed(home, manifest, approval, published))
    keys = [approval.key for approval in approvals if approval.key]
    if len(set(keys)) < len(keys):
        raise ConsiliumError("E709", "one personal key signed in two roles")
    return approvals


def _require_bound(approval: Approval, manifest: ReleaseManifest, published: str) -> None:
    """Check that an approval is of this candidate, after it was verified and before it is published."""
    if approval.candidate != manifest.candidate_digest:
        raise ConsiliumError(
            "E705", f"approved {approval.candidate}, the candidate is {manifest.candidate_digest}"
        )
    least = max(manifest.verified, manifest.created)
    if not least <= approval.time <= published:
        raise ConsiliumError("E705", f"dated {approval.time}, expected between {least} and {published}")


def _signed(home: CoordinatorHome, manifest: ReleaseManifest, approval: Approval, published: str) -> Approval:
    """Return the person's own signed approval if there is one for this candidate, else the given one."""
    personal = personal_approval(home, manifest.study, approval.role)
    if personal is None or personal.candidate != approval.candidate:
        return approval
    _require_bound(personal, manifest, published)
    for name in ("user", "role", "approved_by"):
        signed, answered = getattr(personal, name), getattr(approval, name)
        if signed != answered:
            raise ConsiliumError("E705", f"{approval.role}: {name} {signed!r} signed, {answered!r} answered")
    return personal


def personal_path(home: CoordinatorHome, study: str, role: str) -> Path:
    """Where the personally signed approval of a role waits for publication."""
    return home.study(study) / "approvals" / f"{role}.json"


def personal_approval(home: CoordinatorHome, study: str, role: str) -> Approval | None:
    """Read the personally signed approval of a role, or None.

    Raises:
        ConsiliumError: E802, it is no approval; E803, its signature does not match it.
    """
    path = personal_path(home, study, role)
    if not path.exists():
        return None
    try:
        found = Approval.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ConsiliumError("E802", f"{path.name}: {first_problem(error)}") from error
    if not found.key or not found.signature:
        raise ConsiliumError("E803", f"the personal approval of {role} is not signed")
    if not verify_bytes(found.signed_bytes, found.signature, found.key):
        raise ConsiliumError("E803", f"the personal signature of {role} does not match")
    return found


def sign_personally(
    home: CoordinatorHome, study: str, key: SigningKey, *, role: str, name: str, reason: str
) -> Approval:
    """Sign the waiting candidate with a person's own key and leave it for publication.

    It has no effect without the answer in Airflow, where the same name must be given.

    Raises:
        ConsiliumError: E704, no candidate waits, or the protocol asks no such role.
    """
    head, protocol = load_head(home, study), load_protocol(home, study)
    if head.status != "finished" or head.candidate is None:
        raise ConsiliumError("E704", f"study {study} has no candidate that waits ({head.status})")
    if role not in protocol.sign_off.roles:
        raise ConsiliumError("E704", f"role {role!r}; the protocol asks {', '.join(protocol.sign_off.roles)}")
    approval = Approval(
        candidate=head.candidate,
        approved_by=name,
        user=role,
        role=role,
        reason=reason,
        time=now(),
        key=key.public,
    )
    signed = approval.model_copy(update={"signature": key.sign_bytes(approval.signed_bytes)})
    write_atomic(personal_path(home, study, role), canonical_json(signed))
    return signed
