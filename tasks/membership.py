"""Changing the federation: admit, rotate, revoke, remove. One change never touches another member's entry.

Every change is in the log of decisions before it is in the registry: after a crash between the two, the same
command completes it.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from contracts.enrolment import (
    COORDINATOR,
    MAX_ROTATIONS,
    KeyRotation,
    MemberCard,
    StartupKit,
    make_rotation,
    open_request,
    open_rotation,
)
from contracts.errors import ConsiliumError
from contracts.signing import Signed, SigningKey, first_problem, parse_signed, to_text
from durable.clock import now
from durable.files import locked
from privacy.handover import hand_over, ledgers_in, next_key, waiting
from tasks.decisions import decisions_head, record_decision
from tasks.federation import (
    FormerKey,
    Member,
    check_new_keys,
    coordinator_key,
    enrol,
    load_federation,
    registry_lock,
    save_federation,
)
from tasks.home import CoordinatorHome
from tasks.settings import accepted_versions, load_settings


def approve(home: CoordinatorHome, text: str | bytes, by: str) -> Member:
    """Admit the hospital whose request this is; the same request again changes nothing.

    Raises:
        ConsiliumError: E802, E803, the request does not prove itself; E808, E810, by the registry.
    """
    request, digest = open_request(text)
    card = request.model_dump(include={"site", "sign_key", "edge_key", "declared_size"})
    return enrol(home, card, by=by, key=digest)


def rotate(home: CoordinatorHome, text: str | bytes, by: str) -> Member:
    """Put a member's new keys in the place of the old ones, which open nothing from now on.

    Raises:
        ConsiliumError: E802, E803, the change does not prove itself; E806, E808, its owner is no active
            member; E812, it does not begin at the key in force; E810, E808, a new key is or was somebody's.
    """
    rotation, signed = open_rotation(text), parse_signed(text)
    signing = coordinator_key(home)
    with locked(registry_lock(home)):
        federation = load_federation(home)
        member = federation.member(rotation.owner)
        if rotation.edge_key is None:
            raise ConsiliumError("E812", f"the change of {rotation.owner!r} lacks a new edge key")
        if (rotation.new_key, rotation.edge_key) == (member.sign_key, member.edge_key):
            return member  # again
        if rotation.old_key != member.sign_key:
            raise ConsiliumError(
                "E812", f"the change begins at {rotation.old_key}, in force is {member.sign_key}"
            )
        check_new_keys(home, signing, federation, member.site, {rotation.new_key, rotation.edge_key})
        time = now()
        details = {"sign_key": rotation.new_key, "edge_key": rotation.edge_key, "by": by}
        record_decision(home, signing, "rotated", member.site, signed.digest, time, **details)
        former = FormerKey(
            sign_key=member.sign_key,
            edge_key=member.edge_key,
            until=time,
            ended="rotated",
            rotation=signed,
        )
        changed = {
            "sign_key": rotation.new_key,
            "edge_key": rotation.edge_key,
            "former": [*member.former, former],
        }
        member = member.model_copy(update=changed)
        save_federation(home, federation.with_member(member))
    return member


def revoke(home: CoordinatorHome, site: str, reason: str, by: str) -> Member:
    """End a membership at once: no request is let through any more, no plan names it. Again is harmless.

    Raises:
        ConsiliumError: E806, no such member.
    """
    signing = coordinator_key(home)
    with locked(registry_lock(home)):
        federation = load_federation(home)
        member = federation.known(site)
        if member.status == "revoked":
            return member
        time = now()
        details = {"sign_key": member.sign_key, "edge_key": member.edge_key, "reason": reason, "by": by}
        record_decision(home, signing, "revoked", site, member.sign_key, time, **details)
        member = member.model_copy(update={"status": "revoked", "since": time, "reason": reason})
        save_federation(home, federation.with_member(member))
    return member


def remove(home: CoordinatorHome, site: str, by: str) -> None:
    """Forget a member that never took part in a study, such as one that was approved by mistake.

    Raises:
        ConsiliumError: E806, no such member; E810, it took part: what it sent could not be verified any more.
    """
    signing = coordinator_key(home)
    with locked(registry_lock(home)):
        federation = load_federation(home)
        member = federation.known(site)
        studies = sorted({path.relative_to(home.studies).parts[0] for path in _documents(home, site)})
        if studies:
            raise ConsiliumError("E810", f"{site!r} took part in {', '.join(studies)}: revoke it instead")
        record_decision(home, signing, "removed", site, member.sign_key, now(), by=by)
        members = [m for m in federation.members if m.site != site]
        save_federation(home, federation.model_copy(update={"members": members}))


def _documents(home: CoordinatorHome, site: str) -> list[Path]:
    """What a site sent in any study and is kept."""
    found: list[Path] = []
    for pattern in ("*/sheets/{}.json", "*/answers/*/{}.json", "*/sealed/*/{}.json"):
        found += home.studies.glob(pattern.format(site))
    return found


def rotate_coordinator(home: CoordinatorHome, *, officer: str, reason: str) -> KeyRotation:
    """Replace the key that signs plans and the federation's ledger, or complete what was interrupted.

    Hospitals refuse what the new key signs (E814) until they have taken a kit that brings the change; what is
    open waits for them (`tasks.own_documents`).

    Raises:
        ConsiliumError: E402, the ledger does not verify; E417, officer or reason is not of the agreed form;
            E801, a key file is damaged; E813, the log of decisions.
    """
    with locked(registry_lock(home)):
        old = coordinator_key(home)
        federation = load_federation(home)
        new = next_key(COORDINATOR, home.signing_key)
        signed = _coordinator_rotation(federation.rotations, old, new)
        time = str(signed.document["created"])
        details = {"new_key": new.public, "by": officer, "reason": reason}
        record_decision(home, old, "rotated", COORDINATOR, new.public, time, **details)
        if signed not in federation.rotations:
            known = [*federation.rotations, signed]
            save_federation(home, federation.model_copy(update={"rotations": known}))
        with locked(home.root / ".key.lock"):
            ledgers = ledgers_in(home.ledger("any").parent)
            hand_over(home.signing_key, ledgers, old, new, officer, reason)
    return open_rotation(to_text(signed))


def _coordinator_rotation(known: list[Signed], old: SigningKey, new: SigningKey) -> Signed:
    """The change from `old` to `new`: the one that an interrupted call noted, or a new one."""
    if known and known[-1].document.get("new_key") == new.public:
        return known[-1]
    return old.sign(make_rotation(old, new, now()))


def interrupted(home: CoordinatorHome) -> bool:
    """Whether a change of the coordinator's key was begun and not completed."""
    return waiting(home.signing_key).exists()


def rotations(home: CoordinatorHome) -> list[Signed]:
    """Changes of the coordinator's and of active members' keys, in the order in which they took effect."""
    federation = load_federation(home)
    changes = [(f.until, f.rotation) for m in federation.active for f in m.former if f.rotation is not None]
    changes += [(str(r.document["created"]), r) for r in federation.rotations]
    return [rotation for _, rotation in sorted(changes, key=lambda change: change[0])]


def startup_kit(home: CoordinatorHome) -> str:
    """Return the signed kit: the same for every member, as things are now.

    Raises:
        ConsiliumError: E112, the settings do not say where hospitals reach the coordinator, or something else
            lies in the place of the authority's certificate; E812, a change of key was interrupted.
    """
    if interrupted(home):
        raise ConsiliumError("E812", "interrupted: run `consilium federation rotate --coordinator` again")
    settings, federation = load_settings(home), load_federation(home)
    if settings.url is None:
        raise ConsiliumError("E112", f"{home.settings}: field 'url': none, expected where hospitals reach it")
    fields = {
        "federation": settings.federation,
        "url": settings.url,
        "coordinator_key": coordinator_key(home).public,
        "ca": home.ca.read_text() if settings.tls.mode != "none" and home.ca.exists() else None,
        "exchange": settings.exchange.url,
        "members": [
            MemberCard(site=m.site, sign_key=m.sign_key, declared_size=m.declared_size)
            for m in federation.active
        ],
        "rotations": rotations(home)[-MAX_ROTATIONS:],
        "code_versions": accepted_versions(settings),
        "log_head": decisions_head(home),
        "created": now(),
    }
    try:
        kit = StartupKit.model_validate(fields)
    except ValidationError as error:
        raise ConsiliumError("E112", f"{home.settings}: {first_problem(error)}") from error
    return to_text(coordinator_key(home).sign(kit))
