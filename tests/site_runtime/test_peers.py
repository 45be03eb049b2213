"""A hospital pins the others' keys itself, and follows a change only where the pinned key signed it."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.enrolment import make_rotation
from contracts.errors import ConsiliumError
from contracts.signing import Signed, SigningKey
from site_runtime.home import SiteHome
from site_runtime.peers import follow_rotations, keys_for, load_peers, peer_key, pin_peer

TIME = "2026-01-01T00:00:00Z"


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    return SiteHome(tmp_path / "ash")


def birch() -> SigningKey:
    return SigningKey.generate("birch")


def change(old: SigningKey, new: SigningKey) -> Signed:
    return old.sign(make_rotation(old, new, TIME, SigningKey.generate(old.owner)))


def test_a_key_is_pinned_once_and_another_needs_a_persons_word(home: SiteHome) -> None:
    first, second = birch().public, birch().public
    with pytest.raises(ConsiliumError, match="E807"):
        peer_key(home, "birch")
    pin_peer(home, "birch", first)
    pin_peer(home, "birch", first)
    with pytest.raises(ConsiliumError, match="E807"):
        pin_peer(home, "birch", second)
    assert peer_key(home, "birch") == first
    pin_peer(home, "birch", second, replace=True)
    assert load_peers(home) == {"birch": second}


def test_a_change_that_the_pinned_key_signed_is_followed_to_its_end(home: SiteHome) -> None:
    a, b, c = birch(), birch(), birch()
    pin_peer(home, "birch", a.public)
    assert follow_rotations(home, [change(a, b), change(b, c)]) == ["birch"]
    assert peer_key(home, "birch") == c.public
    assert follow_rotations(home, [change(a, b), change(b, c)]) == []


def test_a_change_by_any_other_key_is_not_followed(home: SiteHome) -> None:
    pinned, thief, own = birch(), birch(), birch()
    cedar = SigningKey.generate("cedar")
    pin_peer(home, "birch", pinned.public)
    # By a key that is not pinned, by another hospital, of a hospital that is not pinned.
    as_birch = SigningKey("birch", cedar._private)
    changes = [change(thief, own), change(as_birch, own), change(cedar, SigningKey.generate("cedar"))]
    assert follow_rotations(home, changes) == []
    assert load_peers(home) == {"birch": pinned.public}
    real = change(pinned, own)
    forged = real.model_copy(update={"document": {**real.document, "new_key": thief.public}})
    with pytest.raises(ConsiliumError, match="E803"):
        follow_rotations(home, [forged])
    assert load_peers(home) == {"birch": pinned.public}


def test_a_damaged_file_is_never_taken_for_nobody_pinned(home: SiteHome) -> None:
    pin_peer(home, "birch", birch().public)
    home.peers.write_text('{"birch": "short"}')
    for step in (lambda: load_peers(home), lambda: pin_peer(home, "cedar", birch().public)):
        with pytest.raises(ConsiliumError, match="E801"):
            step()


def at(monkeypatch: pytest.MonkeyPatch, time: str) -> None:
    """Set this hospital's clock."""
    monkeypatch.setattr("site_runtime.peers.now", lambda: time)


def test_a_replaced_key_counts_for_plans_from_before_and_not_for_long(
    home: SiteHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = birch(), birch(), birch()
    pin_peer(home, "birch", a.public)
    assert keys_for(home, "birch", "2026-03-01T12:00:00Z") == [a.public]
    at(monkeypatch, "2026-03-02T12:00:00Z")
    follow_rotations(home, [change(a, b)])
    at(monkeypatch, "2026-03-05T12:00:00Z")
    follow_rotations(home, [change(a, b), change(b, c)])
    assert keys_for(home, "birch", "2026-03-01T12:00:00Z") == [c.public, a.public, b.public]
    assert keys_for(home, "birch", "2026-03-04T12:00:00Z") == [c.public, b.public]
    assert keys_for(home, "birch", "2026-03-05T12:03:00Z") == [c.public]
    at(monkeypatch, "2026-03-17T12:00:00Z")
    assert keys_for(home, "birch", "2026-03-01T12:00:00Z") == [c.public, b.public]
    at(monkeypatch, "2026-03-20T12:00:00Z")  # whatever date a plan bears
    assert keys_for(home, "birch", "2026-03-01T12:00:00Z") == [c.public]


def test_after_a_persons_word_no_earlier_key_counts(home: SiteHome) -> None:
    a, b, c = birch(), birch(), birch()
    pin_peer(home, "birch", a.public)
    follow_rotations(home, [change(a, b)])
    assert keys_for(home, "birch", TIME) == [b.public, a.public]
    pin_peer(home, "birch", c.public, replace=True)
    assert keys_for(home, "birch", TIME) == [c.public]
