"""The signature of a directory: one key, one spelling, every file; and how trust moves to the next key."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts.canonical import canonical_json, sha256
from contracts.errors import ConsiliumError
from release.contents import SIGNATURE
from release.rotation import read_rotations, rotation, trusted_keys
from release.signature import ORDER, PublicKey, ReleaseKey, signed_digests
from release.verify import verified, verify_release
from tasks.home import CoordinatorHome
from tasks.release_key import release_key, rotate_release_key
from tests.full_release import Sealed, full_release

NOON, EVENING = "2026-01-01T12:00:00Z", "2026-01-01T18:00:00Z"


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Path, ReleaseKey]:
    folder = tmp_path / "1.0.0"
    (folder / "inner").mkdir(parents=True)
    (folder / ".hidden").write_text("hidden")
    (folder / ".gitignore").write_text("git")
    (folder / "inner" / "a.txt").write_text("a")
    key = ReleaseKey.make(tmp_path / "release.pem")
    key.sign_directory(folder)
    return folder, key


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    return full_release(tmp_path_factory.mktemp("signature"))


def test_every_file_is_covered_hidden_ones_and_those_of_git_too(signed: tuple[Path, ReleaseKey]) -> None:
    folder, key = signed
    digests = signed_digests((folder / SIGNATURE).read_bytes(), key.public)
    assert set(digests) == {".hidden", ".gitignore", "inner/a.txt"}
    assert digests["inner/a.txt"] == sha256(b"a")


def test_a_link_is_not_signed(signed: tuple[Path, ReleaseKey]) -> None:
    folder, key = signed
    (folder / "link").symlink_to(folder / "inner" / "a.txt")
    with pytest.raises(ConsiliumError, match="E703"):
        key.sign_directory(folder)


def test_model_signing_itself_verifies_a_release_as_it_lies_there(sealed: Sealed, tmp_path: Path) -> None:
    """Whoever distrusts our code checks the directory with the library's own defaults."""
    from model_signing import verifying

    public = tmp_path / "release.pub.pem"
    public.write_text(sealed.key.public.pem)
    copy = shutil.copytree(sealed.folder, tmp_path / "copy")
    verifying.Config().use_elliptic_key_verifier(public_key=public).verify(copy, copy / SIGNATURE)
    (copy / "README.txt").write_text("another")
    with pytest.raises(ValueError, match=r"README\.txt"):
        verifying.Config().use_elliptic_key_verifier(public_key=public).verify(copy, copy / SIGNATURE)


def test_the_lower_s_is_used_always(signed: tuple[Path, ReleaseKey]) -> None:
    _, key = signed
    signatures = [key.sign_bytes(bytes([i])) for i in range(40)]
    assert all(decode_dss_signature(s)[1] <= ORDER // 2 for s in signatures)
    assert all(key.public.verifies(bytes([i]), s) for i, s in enumerate(signatures))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_one_changed_byte_of_the_signature_is_refused(sealed: Sealed, where: float, flip: int) -> None:
    data = bytearray((sealed.folder / SIGNATURE).read_bytes())
    data[int(where * len(data))] ^= flip
    with pytest.raises(ConsiliumError, match="E702"):
        signed_digests(bytes(data), sealed.key.public)


def test_every_last_character_of_a_base64_text_counts(sealed: Sealed) -> None:
    """base64 spells the last bytes in several ways: only one of them verifies."""
    text = (sealed.folder / SIGNATURE).read_text()
    for end in (i for i in range(1, len(text)) if text[i] == "=" and text[i - 1] != "="):
        for other in "ABQgwxyz09+/=":
            if other != text[end - 1]:
                with pytest.raises(ConsiliumError, match="E702"):
                    signed_digests((text[: end - 1] + other + text[end:]).encode(), sealed.key.public)


def test_a_key_is_pem_of_p256_in_whatever_line_ends_and_nothing_else(signed: tuple[Path, ReleaseKey]) -> None:
    public = signed[1].public
    assert PublicKey.parse(public.pem.replace("\n", "\r\n")) == public
    assert public.fingerprint == sha256(public.pem.encode())
    spki = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    others = (
        ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(*spki),
        ec.generate_private_key(ec.SECP384R1()).public_key().public_bytes(*spki),
        b"A" * 43,
        b"",
    )
    for other in others:
        with pytest.raises(ConsiliumError, match="E801"):
            PublicKey.parse(other)
    with pytest.raises(ConsiliumError, match="E801"):
        ReleaseKey.load(signed[0] / SIGNATURE)


def test_a_homes_key_is_made_once_and_private_to_its_owner(tmp_path: Path) -> None:
    home = CoordinatorHome(tmp_path)
    public = release_key(home).public
    assert release_key(home).public == public
    assert stat.S_IMODE(home.release_key.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        ReleaseKey.make(home.release_key)


def test_rotation_leaves_one_key_and_a_chain_that_leads_to_it(tmp_path: Path) -> None:
    home = CoordinatorHome(tmp_path)
    first = release_key(home).public
    rotate_release_key(home, NOON, "yearly")
    rotate_release_key(home, EVENING, "again")
    chain = trusted_keys(first, read_rotations(home.rotations.read_bytes()))
    assert [one.until for one in chain] == [NOON, EVENING, None]
    assert chain[-1].key == release_key(home).public != first
    assert [p.name for p in home.release_key.parent.glob("*.pem")] == ["release.pem"]
    # Whoever trusts the second key needs only what comes after it.
    later = trusted_keys(chain[1].key, read_rotations(home.rotations.read_bytes()))
    assert [one.key for one in later] == [one.key for one in chain[1:]]


def test_a_rotation_that_was_interrupted_is_finished_or_forgotten(tmp_path: Path) -> None:
    home = CoordinatorHome(tmp_path)
    first = release_key(home)
    waiting = ReleaseKey.make(home.release_key.with_suffix(".next.pem"))
    assert release_key(home).public == first.public  # drawn, not yet recorded
    done = rotation(first, waiting.public, NOON, "yearly")
    home.rotations.write_bytes(canonical_json(done) + b"\n")
    assert release_key(home).public == waiting.public  # recorded, not yet in its place
    assert not waiting.path.exists()


def test_without_a_key_there_is_nothing_to_rotate(tmp_path: Path) -> None:
    with pytest.raises(ConsiliumError, match="E801"):
        rotate_release_key(CoordinatorHome(tmp_path), NOON, "yearly")


def test_a_release_by_the_successor_verifies_with_the_old_key_and_the_rotations(
    sealed: Sealed, tmp_path: Path
) -> None:
    old, new = ReleaseKey.make(tmp_path / "old.pem"), sealed.key
    rotated = [rotation(old, new.public, "2025-12-31T00:00:00Z", "yearly")]
    assert not verified(verify_release(sealed.folder, old.public))
    checks = verify_release(sealed.folder, old.public, rotated)
    assert verified(checks) and "successor" in checks[1].detail


@pytest.mark.parametrize(("time", "good"), [("2026-01-01T00:06:00Z", True), ("2026-01-01T00:05:59Z", False)])
def test_an_old_key_counts_for_what_was_published_before_it_was_replaced(
    sealed: Sealed, tmp_path: Path, time: str, good: bool
) -> None:
    new = ReleaseKey.make(tmp_path / "new.pem")
    checks = verify_release(
        sealed.folder, sealed.key.public, [rotation(sealed.key, new.public, time, "yearly")]
    )
    assert verified(checks) == good
    assert good or (checks[1].number, "was replaced" in checks[1].detail) == ("E702", True)


def test_only_the_key_that_is_replaced_may_name_its_successor(tmp_path: Path) -> None:
    a, b, c = (ReleaseKey.make(tmp_path / f"{name}.pem") for name in "abc")
    honest = rotation(a, b.public, NOON, "yearly")
    forged = rotation(c, b.public, NOON, "yearly").model_copy(update={"old": a.public.pem})
    changed = honest.model_copy(update={"new": c.public.pem})
    fork = rotation(a, c.public, EVENING, "another")
    backwards = rotation(b, c.public, "2026-01-01T11:00:00Z", "early")
    for wrong in ([forged], [changed], [honest, fork], [honest, backwards]):
        with pytest.raises(ConsiliumError, match="E803"):
            trusted_keys(a.public, wrong)
    with pytest.raises(ConsiliumError, match="E802"):
        read_rotations(canonical_json(honest).replace(b'"old"', b' "old"'))
