"""A hospital's new signing key: every ledger is handed over to it, then it takes the old one's place.

The new key waits in `keys/sign-next.pem` while the ledgers are handed over one by one. A crash at any moment
leaves a home in which ledgers with either key in force open with theirs, and the same call completes it.
Meanwhile a ledger that was handed over refuses the old key (E402): nothing is trained.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from contracts.errors import ConsiliumError
from contracts.signing import SigningKey
from durable.files import locked, sync, write_atomic
from privacy.ledger import Ledger
from site_runtime.config import load_site
from site_runtime.home import SiteHome


@dataclass(frozen=True)
class Rotation:
    """What a rotation did: the public keys, the file that keeps the old one, the lineages handed over."""

    old_public: str
    new_public: str
    kept: Path
    lineages: tuple[str, ...]


def rotate_signing_key(home: SiteHome, *, officer: str, reason: str) -> Rotation:
    """Replace the key that signs what leaves and the ledgers, or complete what was interrupted.

    The coordinator has to learn the new key before it accepts anything more of this hospital.

    Args:
        officer: who decides; kept in every ledger's entry.
        reason: why.

    Raises:
        ConsiliumError: E402, a ledger does not verify; E417, officer or reason is not of the agreed form;
            E801, a key file is damaged.
    """
    site = load_site(home).site
    keys = home.signing_key.parent
    with locked(keys / ".rotate.lock"):
        old = SigningKey.load(site, home.signing_key)
        waiting = _waiting(home)
        new = _next_key(site, waiting)
        folder = home.ledger("any").parent
        lineages = sorted({p.stem for kind in ("jsonl", "head") for p in folder.glob(f"*.{kind}")})
        for lineage in lineages:
            _hand_over(home.ledger(lineage), site, lineage, old, new, officer, reason)
        kept = _keep_public(keys, old.public)
        os.replace(waiting, home.signing_key)
        sync(keys)
    return Rotation(old.public, new.public, kept, tuple(lineages))


def key_to_restore(home: SiteHome, site: str, lineage: str) -> SigningKey:
    """The key that continues a damaged ledger: of an interrupted rotation the new one, if that is in force.

    Raises:
        ConsiliumError: E402, neither key is, or the files cannot be read; E801, a key file is damaged.
    """
    old, waiting = SigningKey.load(site, home.signing_key), _waiting(home)
    if not waiting.exists():
        return old
    try:
        Ledger.loss(home.ledger(lineage), site, lineage, old)
    except ConsiliumError:
        new = SigningKey.load(site, waiting)
        Ledger.loss(home.ledger(lineage), site, lineage, new)
        return new
    return old


def _waiting(home: SiteHome) -> Path:
    return home.signing_key.parent / "sign-next.pem"


def _hand_over(
    path: Path, site: str, lineage: str, old: SigningKey, new: SigningKey, officer: str, reason: str
) -> None:
    try:
        ledger = Ledger(path, site, lineage, old)
    except ConsiliumError as error:
        try:
            Ledger(path, site, lineage, new)  # handed over before the interruption
        except ConsiliumError:
            raise error from None
        return
    ledger.rotate(new, officer=officer, reason=reason)


def _next_key(site: str, waiting: Path) -> SigningKey:
    """The new key, drawn once: a file that is whole or not there."""
    if not waiting.exists():
        draft = waiting.with_suffix(".draft")
        draft.unlink(missing_ok=True)
        SigningKey.generate(site).save(draft)
        sync(draft)
        os.replace(draft, waiting)
        sync(waiting.parent)
    return SigningKey.load(site, waiting)


def _keep_public(keys: Path, public: str) -> Path:
    """Write an old public key to `sign-<n>.pub`, n from 1, once."""
    number = 1
    while (path := keys / f"sign-{number}.pub").exists():
        if path.read_text().strip() == public:
            return path
        number += 1
    write_atomic(path, f"{public}\n".encode())
    return path
