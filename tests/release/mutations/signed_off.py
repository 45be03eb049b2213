"""With the key: a careless or dishonest coordinator signs a release that was not approved as it must be."""

from __future__ import annotations

from typing import Any

from tests.full_release import PERSON, approvals_of
from tests.release.mutations.world import World, mutation


def approvals(world: World, **changes: Any) -> None:
    manifest = world.it.read()
    world.it.rewrite(approvals=approvals_of(manifest, **changes))


@mutation("approvals", "E704", "clinician, quality")
def no_approval(world: World) -> None:
    world.it.rewrite(approvals=[])


@mutation("approvals", "E704", "no approval by role quality")
def one_role_did_not_approve(world: World) -> None:
    world.it.rewrite(approvals=approvals_of(world.it.read())[:1])


@mutation("approvals", "E704", "no approval by role clinician")
def an_approval_in_another_role(world: World) -> None:
    approvals(world, role="intern")


@mutation("approvers", "E709", "more than one role")
def the_same_user_twice(world: World) -> None:
    approvals(world, user="quality")


@mutation("approvers", "E709", "started the release run")
def the_user_who_started_the_run(world: World) -> None:
    approvals(world, user="operator")


@mutation("approvers", "E709", "which user")
def an_approval_by_nobody(world: World) -> None:
    approvals(world, user="")


@mutation("approvers", "E709", "one personal key")
def one_personal_key_in_two_roles(world: World) -> None:
    first, second = approvals_of(world.it.read())
    second = second.model_copy(update={"key": PERSON.public})
    second = second.model_copy(update={"signature": PERSON.sign_bytes(second.signed_bytes)})
    world.it.rewrite(approvals=[first, second])


@mutation("approval binding", "E705", "is for")
def an_approval_of_another_candidate(world: World) -> None:
    approvals(world, candidate=world.older.read().candidate_digest)


@mutation("approval binding", "E705", "before the last hospital")
def an_approval_before_the_last_verify(world: World) -> None:
    approvals(world, time="2026-01-01T00:01:59Z")


@mutation("approval binding", "E705", "before the candidate")
def an_approval_before_the_candidate(world: World) -> None:
    world.it.rewrite(created="2026-01-01T00:05:30Z")


@mutation("approval binding", "E705", "after publication")
def an_approval_after_publication(world: World) -> None:
    approvals(world, time="2026-01-01T00:06:01Z")


@mutation("approval binding", "E705", "after publication None")
def no_time_of_publication(world: World) -> None:
    world.it.rewrite(published=None)


@mutation("personal signatures", "E803", "Dr Test")
def a_personal_signature_under_another_reason(world: World) -> None:
    first, second = approvals_of(world.it.read())
    world.it.rewrite(approvals=[first.model_copy(update={"reason": "looks fine"}), second])


@mutation("personal signatures", "E803", "Dr Test")
def a_personal_key_without_its_signature(world: World) -> None:
    first, second = approvals_of(world.it.read())
    world.it.rewrite(approvals=[first.model_copy(update={"signature": None}), second])


@mutation("approval binding", "E705", "is for")
def facts_changed_after_the_approval(world: World) -> None:
    world.it.rewrite({"README.txt": b"Install me."}, approve=False)
