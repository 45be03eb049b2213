"""The sign-off: every role, different people, this very candidate, after verification, before publication."""

from __future__ import annotations

from contracts.errors import ConsiliumError
from contracts.signing import verify_bytes
from release.verify.check import Opened


def approvals(release: Opened) -> str:
    """Every role of the study's sign-off approved once, and nobody else did (E704)."""
    manifest = release.manifest
    roles = [approval.role for approval in manifest.approvals]
    missing = sorted(set(manifest.sign_off) - set(roles))
    if missing:
        raise ConsiliumError("E704", f"no approval by role {', '.join(missing)}")
    if sorted(roles) != sorted(manifest.sign_off):
        raise ConsiliumError(
            "E704", f"roles {roles}, asked for is one approval by each of {manifest.sign_off}"
        )
    return "; ".join(f"{a.approved_by} ({a.role}), {a.time}" for a in manifest.approvals)


def people(release: Opened) -> str:
    """Two approvals are by two users, and none is by the user who started the release run (E709)."""
    manifest = release.manifest
    users = [approval.user for approval in manifest.approvals]
    if manifest.triggered_by is not None and manifest.triggered_by in users:
        raise ConsiliumError(
            "E709", f"user {manifest.triggered_by!r} started the release run and approved it"
        )
    if "" in users and (len(users) > 1 or manifest.triggered_by is not None):
        raise ConsiliumError("E709", "an approval does not say which user gave it")
    if len(set(users)) < len(users):
        raise ConsiliumError("E709", f"user {users[0]!r} approved in more than one role")
    keys = [approval.key for approval in manifest.approvals if approval.key is not None]
    if len(set(keys)) < len(keys):
        raise ConsiliumError("E709", "one personal key signed in more than one role")
    return f"users {', '.join(user or 'not named' for user in users)}"


def binding(release: Opened) -> str:
    """Each approval names this candidate, after the last verification and before publication (E705)."""
    manifest = release.manifest
    for approval in manifest.approvals:
        who = f"by {approval.approved_by}"
        if approval.candidate != manifest.candidate_digest:
            raise ConsiliumError(
                "E705",
                f"{who} is for {approval.candidate[:12]}..., this is {manifest.candidate_digest[:12]}...",
            )
        if approval.time < manifest.verified:
            raise ConsiliumError(
                "E705", f"{who}, {approval.time}, before the last hospital's verify of {manifest.verified}"
            )
        if approval.time < manifest.created:
            raise ConsiliumError(
                "E705", f"{who}, {approval.time}, before the candidate of {manifest.created}"
            )
        if manifest.published is None or manifest.published < approval.time:
            raise ConsiliumError("E705", f"{who}, {approval.time}, after publication {manifest.published}")
    return f"for candidate {manifest.candidate_digest[:12]}..., published {manifest.published}"


def personal_signatures(release: Opened) -> str:
    """An approval with a personal key is signed with it (E803); the others the coordinator vouches for."""
    manifest = release.manifest
    signed = []
    for approval in manifest.approvals:
        if approval.key is None and approval.signature is None:
            continue
        if (
            approval.key is None
            or approval.signature is None
            or not verify_bytes(approval.signed_bytes, approval.signature, approval.key)
        ):
            raise ConsiliumError("E803", f"the approval of {approval.approved_by} is not signed by its key")
        signed.append(f"{approval.approved_by} with {approval.key[:8]}...")
    return ", ".join(signed) or "none: countersigned by the coordinator alone"
