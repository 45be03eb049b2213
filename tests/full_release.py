"""A sealed release with every part that there is, and the means to change it as a coordinator could."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contracts.canonical import canonical_json, sha256
from contracts.release import Approval, ReleaseFile, ReleaseManifest
from contracts.signing import SigningKey
from contracts.study import StudyProtocol
from release.contents import MANIFEST
from release.directory import read_manifest, seal, write_candidate
from release.facts import ReleaseFacts
from release.signature import ReleaseKey
from tests.dossiers import APPROVED, PUBLISHED, metadata_of, tiny_facts, tiny_onnx
from tests.factories import tiny_study

PRIVATE = {"mode": "patient", "epsilon": 3.0, "delta": 1e-4, "max_grad_norm": 0.7}
SITES = ("ash", "birch")
VERIFIED = "2026-01-01T00:02:00Z"
PERSON = SigningKey.generate("person")


def full_study(**changes: Any) -> StudyProtocol:
    """A private study with a gate and two people who sign off."""
    fields: dict[str, Any] = {
        "privacy": PRIVATE,
        "gates": [{"metric": "auroc", "at_least": 0.6}],
        "sign_off": {"roles": ["clinician", "quality"]},
    }
    return tiny_study(**fields | changes)


def full_facts(**changes: Any) -> ReleaseFacts:
    """Facts of a release that the operator started and two people signed off."""
    return dataclasses.replace(
        tiny_facts(full_study()), **{"triggered_by": "operator", "verified": VERIFIED} | changes
    )


def approvals_of(manifest: ReleaseManifest, **changes: Any) -> list[Approval]:
    """Two people approve, the first with a personal signature; `changes` are to the first."""
    fields = {
        "candidate": manifest.candidate_digest,
        "approved_by": "Dr Test",
        "user": "clinician",
        "role": "clinician",
        "time": APPROVED,
        "key": PERSON.public,
    }
    first = Approval.model_validate(fields | changes)
    if first.key is not None:
        first = first.model_copy(update={"signature": PERSON.sign_bytes(first.signed_bytes)})
    second = {"approved_by": "Q. Test", "user": "quality", "role": "quality", "key": None}
    return [first, Approval.model_validate(fields | second)]


@dataclass(frozen=True)
class Sealed:
    """A release directory and the coordinator's key."""

    folder: Path
    key: ReleaseKey

    def read(self) -> ReleaseManifest:
        """Its manifest."""
        return read_manifest(self.folder)

    def rewrite(
        self,
        files: Mapping[str, bytes] | None = None,
        *,
        approve: bool = True,
        key: ReleaseKey | None = None,
        **changes: Any,
    ) -> None:
        """What somebody with a release key could make: other files or facts, approved and signed anew.

        Args:
            files: new content by path.
            approve: bind the approvals to the changed candidate, as if people had approved it.
            key: whose signature; the coordinator's by default.
            changes: to fields of the manifest.
        """
        for path, data in (files or {}).items():
            (self.folder / path).parent.mkdir(exist_ok=True)
            (self.folder / path).write_bytes(data)
        listing = {f.path: f for f in self.read().files}
        listing |= {p: ReleaseFile(path=p, sha256=sha256(d), size=len(d)) for p, d in (files or {}).items()}
        kept = [listing[path] for path in sorted(listing) if (self.folder / path).exists()]
        manifest = self.read().model_copy(update={"files": kept} | changes)
        if approve and "approvals" not in changes:
            manifest = manifest.model_copy(update={"approvals": approvals_of(manifest)})
        (self.folder / MANIFEST).write_bytes(canonical_json(manifest))
        (key or self.key).sign_directory(self.folder)


def full_release(root: Path, facts: ReleaseFacts | None = None, key: ReleaseKey | None = None) -> Sealed:
    """Write and seal a release below `root`."""
    facts = facts or full_facts()
    root.mkdir(parents=True, exist_ok=True)
    key = key or ReleaseKey.make(root / "release.pem")
    model = tiny_onnx(root / "model.onnx", metadata=metadata_of(facts))
    manifest = write_candidate(root / "candidate", facts, model)
    seal(root / "candidate", root / facts.version, approvals_of(manifest), key, PUBLISHED)
    return Sealed(root / facts.version, key)
