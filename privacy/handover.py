"""A party's new signing key: every ledger is handed over to it, then it takes the old one's place.

The new key waits as `sign-next.pem` beside the old one while the ledgers are handed over one by one. A crash
at any moment leaves files in which ledgers with either key in force open with theirs, and the same call
completes it. Meanwhile a ledger that was handed over refuses the old key (E402): nothing is trained.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from contracts.errors import ConsiliumError
from contracts.signing import SigningKey
from durable.files import sync, write_atomic
from privacy.ledger import Ledger


def waiting(path: Path) -> Path:
    """Where the successor of the key at `path` waits."""
    return path.with_name(f"{path.stem}-next.pem")


def next_key(owner: str, path: Path) -> SigningKey:
    """The successor of the key at `path`, drawn once: a file that is whole or not there.

    Raises:
        ConsiliumError: E801, it is damaged.
    """
    target = waiting(path)
    if not target.exists():
        draft = target.with_suffix(".draft")
        draft.unlink(missing_ok=True)
        SigningKey.generate(owner).save(draft)
        sync(draft)
        os.replace(draft, target)
        sync(target.parent)
    return SigningKey.load(owner, target)


def hand_over(
    path: Path, ledgers: Mapping[str, Path], old: SigningKey, new: SigningKey, officer: str, reason: str
) -> Path:
    """Hand every ledger over and put the key that waits in the place of the one at `path`.

    Args:
        ledgers: by lineage.
        officer, reason: who decides and why; kept in every ledger's entry.

    Returns:
        The file that keeps the old public key.

    Raises:
        ConsiliumError: E402, a ledger does not verify with either key; E417, officer or reason is not of the
            agreed form. The key at `path` is the old one then.
    """
    for lineage, ledger in sorted(ledgers.items()):
        _hand_over(ledger, lineage, old, new, officer, reason)
    kept = _keep_public(path, old.public)
    replace_key(path)
    return kept


def replace_key(path: Path) -> None:
    """Put the key that waits in the place of the one at `path`."""
    os.replace(waiting(path), path)
    sync(path.parent)


def ledgers_in(folder: Path) -> dict[str, Path]:
    """The ledgers of a folder by lineage; a head without its ledger is a ledger that was deleted."""
    lineages = {p.stem for kind in ("jsonl", "head") for p in folder.glob(f"*.{kind}")}
    return {lineage: folder / f"{lineage}.jsonl" for lineage in lineages}


def _hand_over(path: Path, lineage: str, old: SigningKey, new: SigningKey, officer: str, reason: str) -> None:
    try:
        ledger = Ledger(path, old.owner, lineage, old)
    except ConsiliumError as error:
        try:
            Ledger(path, old.owner, lineage, new)  # handed over before the interruption
        except ConsiliumError:
            raise error from None
        return
    ledger.rotate(new, officer=officer, reason=reason)


def _keep_public(path: Path, public: str) -> Path:
    """Write an old public key to `sign-<n>.pub`, n from 1, once."""
    number = 1
    while (kept := path.with_name(f"{path.stem}-{number}.pub")).exists():
        if kept.read_text().strip() == public:
            return kept
        number += 1
    write_atomic(kept, f"{public}\n".encode())
    return kept
