"""Verify a release offline, trusting one public key that the verifier brings and nothing in the release."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

from contracts.errors import ConsiliumError
from contracts.release import ReleaseManifest
from release.contents import MANIFEST
from release.directory import read_manifest
from release.rotation import Rotation
from release.signature import PublicKey
from release.verify import documents, model, origin, promise
from release.verify.approvals import approvals, binding, people, personal_signatures
from release.verify.check import Check, Opened, made
from release.verify.files import check_files, check_signature

__all__ = ["Check", "check_approvals", "check_files", "check_gates", "verified", "verify_release"]

_NEEDED = ("onnx", "onnxruntime", "model_signing", "cyclonedx")

# What a signed release must say, in the order in which a reader wants to know.
_CONTENT: tuple[tuple[str, str, Callable[[Opened], str]], ...] = (
    ("protocol", "E701", promise.protocol_is_named),
    ("manifest and protocol", "E701", promise.manifest_follows),
    ("lineage", "E701", origin.lineage),
    ("events", "E712", origin.events),
    ("approvals", "E704", approvals),
    ("approvers", "E709", people),
    ("approval binding", "E705", binding),
    ("personal signatures", "E803", personal_signatures),
    ("gates", "E601", promise.gates),
    ("ledgers", "E402", origin.ledgers),
    ("conformance", "E711", documents.conformance),
    ("schemas", "E713", documents.schemas),
    ("regulatory status", "E714", documents.regulatory),
)
# These parse and run the model, so only when all that was signed holds.
_MODEL: tuple[tuple[str, str, Callable[[Opened], str]], ...] = (
    ("model file", "E802", model.form),
    ("model facts", "E701", model.facts),
    ("golden rows", "E603", model.golden),
)


def verify_release(folder: Path, trusted: PublicKey, rotations: Sequence[Rotation] = ()) -> list[Check]:
    """Check a sealed release directory.

    A check that follows a failed group is not made: the first failure is the reason, and nothing is parsed
    that was not signed.

    Args:
        folder: the release.
        trusted: the coordinator's public release key, obtained apart from the release.
        rotations: of `rotations.jsonl`: the trusted key's successors then count as well.

    Returns:
        The checks in order.

    Raises:
        ConsiliumError: E110, a package of the `verify` extra is missing; E803, the rotations do not follow
            from the trusted key.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConsiliumError("E110", f"install consilium[verify]: {', '.join(missing)}")
    try:
        manifest = read_manifest(folder)
    except ConsiliumError as error:
        return [Check("manifest", False, error.detail, error.number)]
    checks = [Check("manifest", True, f"{manifest.release_id}, study {manifest.study}", "E802")]
    signature, key = check_signature(folder, manifest, trusted, rotations)
    checks.append(signature)
    if key is not None:
        checks += check_files(folder, manifest, key)
    opened = Opened(folder, manifest)
    for group, why in ((_CONTENT, "the files are not the signed ones"), (_MODEL, "the model is not trusted")):
        sound = verified(checks)
        for name, number, check in group:
            checks.append(
                made(name, number, lambda check=check: check(opened))  # type: ignore[misc]
                if sound
                else Check(name, None, f"not checked: {why}", number)
            )
    return checks


def verified(checks: Sequence[Check]) -> bool:
    """Say whether every check was made and passed."""
    return all(check.passed is True for check in checks)


def check_approvals(manifest: ReleaseManifest) -> list[Check]:
    """Check the sign-off of a candidate that is about to be sealed (E704, E709, E705, E803)."""
    opened = Opened(Path(MANIFEST), manifest)
    return [
        made(name, number, lambda check=check: check(opened))  # type: ignore[misc]
        for name, number, check in _CONTENT
        if check in (approvals, people, binding, personal_signatures)
    ]


def check_gates(manifest: ReleaseManifest) -> Check:
    """Check that every gate of the manifest was decided and passed (E601, E602)."""
    return made("gates", "E601", lambda: promise.decided(manifest))
