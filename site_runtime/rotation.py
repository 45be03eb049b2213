"""A hospital's new keys: asked for first, in force when the coordinator has answered (or a person says so).

The new keys wait beside the old ones in `keys/`. The change that the old key signed (`rotation-next.json`)
goes to the coordinator, for whom the old keys end at that moment. The kit that comes back completes it here:
the ledgers are handed over, then the new keys take the old ones' place. A crash at any moment leaves what the
same call completes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from contracts.enrolment import KeyRotation, make_rotation, open_rotation
from contracts.errors import ConsiliumError
from contracts.fields import Contract
from contracts.signing import SigningKey, first_problem
from durable.clock import now
from durable.files import locked, sync, write_atomic, write_json
from privacy.handover import hand_over, ledgers_in, next_key, replace_key, waiting
from privacy.ledger import Ledger
from site_runtime.config import load_site
from site_runtime.egress import send
from site_runtime.home import SiteHome


class Pending(Contract):
    """A change that was asked for, and who decided it: the latter stays here."""

    document: str  # the signed `KeyRotation`
    officer: Annotated[str, Field(min_length=1, max_length=100)]  # as the ledger's openings hold them
    reason: Annotated[str, Field(min_length=1, max_length=500)]


@dataclass(frozen=True)
class Rotation:
    """What a completed rotation did: the public keys, the files that keep the old one and the change."""

    old_public: str
    new_public: str
    kept: Path
    document: Path
    lineages: tuple[str, ...]


def begin_rotation(home: SiteHome, *, officer: str, reason: str) -> str:
    """Draw new keys and return the change for the coordinator; asked again, the same one.

    Args:
        officer: who decides; kept in every ledger's entry.
        reason: why.

    Raises:
        ConsiliumError: E801, a key file is damaged; E417, officer or reason is not of the agreed form.
    """
    config = load_site(home)
    with locked(_lock(home)):
        pending = pending_rotation(home)
        if pending is not None:
            return pending.document
        try:
            pending = Pending(document="", officer=officer, reason=reason)
        except ValidationError as error:
            raise ConsiliumError("E417", first_problem(error)) from error
        old = SigningKey.load(config.site, home.signing_key)
        new, edge = next_key(config.site, home.signing_key), next_key(config.site, home.edge_key)
        document = send(home, config, make_rotation(old, new, now(), edge))
        write_json(home.rotation, {**pending.model_dump(), "document": document})
    return document


def pending_rotation(home: SiteHome) -> Pending | None:
    """The change that was asked for and is not complete, or None.

    Raises:
        ConsiliumError: E801, its file is damaged.
    """
    try:
        return Pending.model_validate_json(home.rotation.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise ConsiliumError("E801", f"{home.rotation}: {type(error).__name__}") from error


def pending_keys(home: SiteHome) -> KeyRotation | None:
    """The keys of the change that is not complete, or None.

    Raises:
        ConsiliumError: E801, E802, E803, its file is damaged.
    """
    pending = pending_rotation(home)
    return None if pending is None else open_rotation(pending.document)


def finish_rotation(home: SiteHome) -> Rotation:
    """Put the new keys in force, or complete what was interrupted.

    Raises:
        ConsiliumError: E812, no change was asked for; E402, a ledger does not verify; E417, officer or reason
            is not of the agreed form; E801, a key file is damaged.
    """
    site = load_site(home).site
    with locked(_lock(home)):
        pending, change = pending_rotation(home), pending_keys(home)
        if pending is None or change is None:
            raise ConsiliumError("E812", "no change of keys is waiting: `consilium site rotate` begins one")
        ledgers = _ledgers(home)
        kept = _kept(home, change.old_key)
        if waiting(home.signing_key).exists():
            old, new = SigningKey.load(site, home.signing_key), next_key(site, home.signing_key)
            kept = hand_over(home.signing_key, ledgers, old, new, pending.officer, pending.reason)
        if waiting(home.edge_key).exists():
            replace_key(home.edge_key)
        document = kept.with_suffix(".json")
        write_atomic(document, pending.document.encode())  # as the coordinator takes it
        home.rotation.unlink()
        sync(document.parent)
    return Rotation(change.old_key, change.new_key, kept, document, tuple(sorted(ledgers)))


def rotate_signing_key(home: SiteHome, *, officer: str, reason: str) -> Rotation:
    """Ask for new keys and put them in force at once, whatever the coordinator knows; or complete that.

    The coordinator has to learn the change before it accepts anything more of this hospital.

    Raises:
        ConsiliumError: as `begin_rotation` and `finish_rotation`.
    """
    begin_rotation(home, officer=officer, reason=reason)
    return finish_rotation(home)


def key_to_restore(home: SiteHome, site: str, lineage: str) -> SigningKey:
    """The key that continues a damaged ledger: of an interrupted rotation the new one, if that is in force.

    Raises:
        ConsiliumError: E402, neither key is, or the files cannot be read; E801, a key file is damaged.
    """
    old, successor = SigningKey.load(site, home.signing_key), waiting(home.signing_key)
    if not successor.exists():
        return old
    try:
        Ledger.loss(home.ledger(lineage), site, lineage, old)
    except ConsiliumError:
        new = SigningKey.load(site, successor)
        Ledger.loss(home.ledger(lineage), site, lineage, new)
        return new
    return old


def _lock(home: SiteHome) -> Path:
    return home.signing_key.parent / ".rotate.lock"


def _ledgers(home: SiteHome) -> dict[str, Path]:
    """The ledgers of this hospital; its own lineage's is begun if there is none, so that it knows both keys.

    What a key signed before the first reservation (a data sheet) can then be verified by the ledger.
    """
    own = load_site(home).governance.lineage
    return ledgers_in(home.ledger("any").parent) | {own: home.ledger(own)}


def _kept(home: SiteHome, public: str) -> Path:
    """The file that keeps an old public key, if an interrupted call wrote it."""
    files = home.signing_key.parent.glob(f"{home.signing_key.stem}-*.pub")
    return next((path for path in files if path.read_text().strip() == public), home.rotation)
