"""The signature is by the trusted key, and what it covers is exactly what is there."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from contracts.canonical import canonical_json
from contracts.errors import ConsiliumError
from contracts.release import ReleaseManifest
from release.contents import MANIFEST, REQUIRED, SIGNATURE
from release.directory import read_bounded
from release.rotation import Rotation, trusted_keys
from release.signature import MAX_BYTES, PublicKey, library_agrees, signed_digests, signer_of
from release.verify.check import Check


def check_signature(
    folder: Path, manifest: ReleaseManifest, trusted: PublicKey, rotations: Sequence[Rotation] = ()
) -> tuple[Check, PublicKey | None]:
    """Check `release.sig` against the trusted key and its successors (E702); return the key that signed.

    Raises:
        ConsiliumError: E803, the rotations do not follow from the trusted key.
    """
    keys = {one.key.fingerprint: one for one in trusted_keys(trusted, rotations)}
    try:
        data = read_signature(folder)
        one = keys.get(signer_of(data))
        signed_digests(data, trusted if one is None else one.key)
    except ConsiliumError as error:
        return Check("signature", False, error.detail, error.number), None
    assert one is not None  # else the line before had raised
    name = one.key.fingerprint[:12]
    if one.until is not None and (manifest.published or "") > one.until:
        detail = f"the key {name}... was replaced {one.until}, before this was published"
        return Check("signature", False, detail, "E702"), None
    detail = f"by the trusted key {name}..."
    if one.key != trusted:
        detail = f"by {name}..., successor of the trusted key {trusted.fingerprint[:12]}..."
    return Check("signature", True, detail, "E702"), one.key


def read_signature(folder: Path) -> bytes:
    """Read `release.sig`.

    Raises:
        ConsiliumError: E702, it is missing or too large to be one.
    """
    return read_bounded(folder / SIGNATURE, MAX_BYTES, "E702")


def check_files(folder: Path, manifest: ReleaseManifest, key: PublicKey | None = None) -> list[Check]:
    """Check that exactly the named files are there (E703) and hold the named bytes (E701).

    Args:
        folder: the release, or a candidate.
        manifest: names every file but itself and the signature.
        key: whose signature must cover the same files with the same digests; None for a candidate.
    """
    named = {file.path: file.sha256 for file in manifest.files}
    own = {MANIFEST} if key is None else {MANIFEST, SIGNATURE}
    found = _everything(folder, set(named))
    problems = _misnamed(manifest, found, own)
    signed = {} if key is None else signed_digests(read_signature(folder), key)
    if key is not None:
        beside = set(signed) ^ {*named, MANIFEST}
        problems += [f"{name} is signed or named, not both" for name in sorted(beside)]
    names = Check("files", not problems, "; ".join(problems) or f"{len(found)} files, none extra", "E703")

    changed = []
    if key is not None and signed.get(MANIFEST) != hashlib.sha256(canonical_json(manifest)).hexdigest():
        changed.append(f"{MANIFEST} is not the file that was signed")  # nor the one that was read first
    for name, path in sorted(found.items()):
        expected = {digests[name] for digests in (named, signed) if name in digests}
        if expected and path.is_file() and not path.is_symlink():
            with path.open("rb") as stream:
                same = {hashlib.file_digest(stream, "sha256").hexdigest()} == expected
                if not same and f"{name} is not the file that was signed" not in changed:
                    changed.append(f"{name} is not the file that was signed")
    changed += [
        f"{file.path}: its size is not the {file.size} bytes of the manifest"
        for file in manifest.files
        if file.path in found and found[file.path].lstat().st_size != file.size and not changed
    ]
    if key is not None and not changed and not problems:
        disagreement = library_agrees(folder, key)
        changed += [disagreement] if disagreement else []
    what = f"{len(named)} digests match" + (", model-signing agrees" if key is not None else "")
    return [names, Check("digests", not changed, "; ".join(changed) or what, "E701")]


def _everything(folder: Path, named: set[str]) -> dict[str, Path]:
    """All that lies in the folder, but the folders that named files need."""
    folders = {parent.as_posix() for name in named for parent in PurePosixPath(name).parents}
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    return {n: p for n, p in paths.items() if p.is_symlink() or not p.is_dir() or n not in folders}


def _misnamed(manifest: ReleaseManifest, found: dict[str, Path], own: set[str]) -> list[str]:
    listed = [file.path for file in manifest.files]
    named = set(listed)
    problems = [f"{name} is named twice" for name in sorted(named) if listed.count(name) > 1]
    problems += [f"{name} is missing" for name in sorted((named | own | REQUIRED) - set(found))]
    problems += [f"{name} is not in the manifest" for name in sorted(set(found) - named - own)]
    problems += [
        f"{name} is no ordinary file"
        for name, path in sorted(found.items())
        if not path.is_symlink() and not path.is_file()
    ]
    problems += [f"{name} is a link" for name, path in sorted(found.items()) if path.is_symlink()]
    return problems + [f"{name} must not name itself" for name in sorted(named & {MANIFEST, SIGNATURE})]
