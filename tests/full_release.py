"""A sealed release with every part that there is, and the means to change it as a coordinator could."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contracts.canonical import canonical_json, sha256
from contracts.datasheet import DataSheet
from contracts.release import Approval, Lineage, ReleaseFile, ReleaseManifest, RoundLineage, SiteData
from contracts.signing import SigningKey, parse_signed, to_text
from contracts.study import StudyProtocol
from release.contents import MANIFEST
from release.directory import read_manifest, seal, write_candidate
from release.events import GENESIS, Event
from release.facts import ReleaseFacts
from release.signature import ReleaseKey
from tests.dossiers import APPROVED, CREATED, PUBLISHED, metadata_of, site_key, tiny_facts, tiny_onnx
from tests.factories import ZERO, tiny_study

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
    """Facts with data sheets, lineage and event log."""
    study = full_study()
    sheets = {site: to_text(site_key(site).sign(_sheet(study, site))) for site in SITES}
    lineage = Lineage(
        data=[
            SiteData(
                site=site,
                data_sheet=parse_signed(text).digest,
                cohort=ZERO,
                data_version="a" * 40,
                policy=ZERO,
            )
            for site, text in sheets.items()
        ],
        rounds=[
            RoundLineage(round=1, kind="training", plan=ZERO, model=ZERO, updates=dict.fromkeys(SITES, ZERO))
        ],
        environment=ZERO,
    )
    fields = {
        "lineage": lineage,
        "data_sheets": sheets,
        "events": _events(),
        "triggered_by": "operator",
        "verified": VERIFIED,
    }
    return dataclasses.replace(tiny_facts(study), **fields | changes)


def _sheet(study: StudyProtocol, site: str) -> DataSheet:
    return DataSheet(
        study=study.study, protocol_hash=study.hash, site=site, connector="csv", cohort=ZERO,
        data_version="a" * 40, declared_size=400, holdout="keyed", checks=[], accepted=True, policy=ZERO,
        code_version="0.1.0", created=CREATED,
    )  # fmt: skip


def _events() -> bytes:
    lines, previous = [], GENESIS
    for n, name in enumerate(("registered", "intake", "round_opened", "round_closed", "verified"), 1):
        line = Event(n=n, time=CREATED, event=name, key=f"{name}/{n}", details={}, previous=previous).line
        lines.append(line)
        previous = sha256(line)
    return b"\n".join(lines) + b"\n"


def bills(facts: ReleaseFacts, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The smallest SBOM with a model card, and a VEX without a vulnerability."""
    head = {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1}
    model = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": facts.product,
        "version": facts.version,
        "hashes": [{"alg": "SHA-256", "content": sha256(files["model.onnx"])}],
        "modelCard": {"considerations": {"users": ["clinicians"]}},
    }
    return {
        "sbom.cdx.json": json.dumps(head | {"metadata": {"component": model}}).encode(),
        "vex.cdx.json": json.dumps(head | {"vulnerabilities": []}).encode(),
    }


def dossier(facts: ReleaseFacts, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The whole dossier as far as this version writes one, and the bills above where it does not."""
    small = bills(facts, files)
    if importlib.util.find_spec("release.dossier") is None:
        return small
    from release.dossier.assemble import dossier_files

    return small | dossier_files(facts, {**files, **small})


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
    manifest = write_candidate(root / "candidate", facts, model, dossier)
    seal(root / "candidate", root / facts.version, approvals_of(manifest), key, PUBLISHED)
    return Sealed(root / facts.version, key)
