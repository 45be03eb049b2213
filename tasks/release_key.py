"""The key with which a coordinator signs releases: made on first use, replaced on demand."""

from __future__ import annotations

from contracts.canonical import canonical_json
from contracts.errors import ConsiliumError
from durable.files import append_line, locked, sync
from release.rotation import Rotation, read_rotations, rotation
from release.signature import ReleaseKey
from tasks.home import CoordinatorHome


def release_key(home: CoordinatorHome) -> ReleaseKey:
    """The coordinator's release key, drawn at first use; a rotation that was interrupted is finished.

    Raises:
        ConsiliumError: E801, the file holds no such key.
    """
    with locked(home.root / ".release-key.lock"):
        return _current(home)


def rotate_release_key(home: CoordinatorHome, time: str, reason: str) -> Rotation:
    """Replace the release key; the old one signs the new one and is then gone from this home.

    Releases that it signed stay verifiable with its public half, which the record of the rotation holds.

    Args:
        time: UTC.
        reason: of whoever does it, kept in the record.

    Raises:
        ConsiliumError: E801, there is no key to replace.
    """
    with locked(home.root / ".release-key.lock"):
        if not home.release_key.exists():
            raise ConsiliumError("E801", f"{home.release_key}: there is no release key to replace")
        old, waiting = _current(home), home.release_key.with_suffix(".next.pem")
        waiting.unlink(missing_ok=True)  # of a rotation that died before it was recorded
        made = rotation(old, ReleaseKey.make(waiting).public, time, reason)
        append_line(home.rotations, canonical_json(made).decode())
        _take(home)
    return made


def _current(home: CoordinatorHome) -> ReleaseKey:
    waiting = home.release_key.with_suffix(".next.pem")
    if not home.release_key.exists():
        return ReleaseKey.make(home.release_key)
    if waiting.exists() and home.rotations.exists():
        recorded = read_rotations(home.rotations.read_bytes())
        if recorded and recorded[-1].new == ReleaseKey.load(waiting).public.pem:
            _take(home)
    return ReleaseKey.load(home.release_key)


def _take(home: CoordinatorHome) -> None:
    """The recorded successor comes into force: one rename, after which the old key is gone."""
    home.release_key.with_suffix(".next.pem").replace(home.release_key)
    sync(home.release_key.parent)
