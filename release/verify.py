"""Verify a release offline, trusting one public key that the verifier brings and nothing in the release."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from contracts.canonical import canonical_json
from contracts.errors import ConsiliumError
from contracts.release import ReleaseManifest
from contracts.signing import verify_bytes
from release.directory import MANIFEST, SIGNATURE, read_manifest, signed_bytes

_REQUIRED = {
    "model.onnx",
    "study.json",
    "validation.json",
    "validation.html",
    "dp_statement.md",
    "dp_statement.json",
    "golden.json",
    "README.txt",
}


@dataclass(frozen=True)
class Check:
    """One check: `passed` is None when it could not be made (an optional package is missing)."""

    name: str
    passed: bool | None
    detail: str
    number: str = "E701"  # the refusal that a failure means

    def require(self) -> None:
        """Raise the check's numbered error unless it passed."""
        if self.passed is not True:
            raise ConsiliumError(self.number, f"{self.name}: {self.detail}")


def verify_release(folder: Path, trusted_public: str) -> list[Check]:
    """Check a sealed release directory.

    Args:
        folder: the release.
        trusted_public: the coordinator's public key (43 characters), obtained apart from the release.

    Returns:
        The checks in order: manifest, signature, files, digests, protocol, approval, gates, ledgers, golden
        rows. The golden rows run only after everything else held, since they run the model.
    """
    try:
        manifest = read_manifest(folder)
    except ConsiliumError as error:
        return [Check("manifest", False, error.detail, error.number)]
    checks = [Check("manifest", True, f"{manifest.study} {manifest.version}", "E802")]
    checks.append(check_signature(folder, manifest, trusted_public))
    checks += check_files(folder, manifest, sealed=True)
    checks.append(_check_protocol(folder, manifest))
    checks += check_approval(manifest)
    checks.append(check_gates(manifest))
    checks.append(_check_ledgers(folder, manifest))
    if all(check.passed for check in checks):
        checks.append(_check_golden(folder))
    else:
        checks.append(Check("golden rows", None, "not checked: the model is not to be trusted", "E603"))
    return checks


def verified(checks: list[Check]) -> bool:
    """Say whether nothing failed; a check that could not be made (None) must come after a full pass."""
    return all(check.passed is not False for check in checks)


def check_signature(folder: Path, manifest: ReleaseManifest, trusted_public: str) -> Check:
    """Check `manifest.sig` against the trusted key alone (E702)."""
    try:
        data = (folder / SIGNATURE).read_bytes()
    except OSError as error:
        return Check("signature", False, f"{SIGNATURE}: {error.strerror}", "E702")
    text = data.decode("ascii", errors="replace").removesuffix("\n")
    # 86 base64url characters hold 4 bits more than a signature: only the canonical spelling counts.
    if data != f"{text}\n".encode() or len(text) != 86 or text[-1] not in "AQgw":
        return Check("signature", False, f"{SIGNATURE} is not one signature and a newline", "E702")
    if not verify_bytes(signed_bytes(manifest), text, trusted_public):
        return Check("signature", False, f"not by the trusted key {trusted_public[:8]}...", "E702")
    return Check("signature", True, f"by the trusted key {trusted_public[:8]}...", "E702")


def check_files(folder: Path, manifest: ReleaseManifest, *, sealed: bool) -> list[Check]:
    """Check that exactly the named files are there (E703) and hold the named bytes (E701)."""
    own = {MANIFEST, SIGNATURE} if sealed else {MANIFEST}
    named = [file.path for file in manifest.files]
    folders = {parent.as_posix() for name in named for parent in PurePosixPath(name).parents}
    found = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir() or path.relative_to(folder).as_posix() not in folders
    }
    problems = [f"{name} is named twice" for name in sorted({n for n in named if named.count(n) > 1})]
    problems += [f"{name} is missing" for name in sorted((set(named) | own | _REQUIRED) - set(found))]
    problems += [f"{name} is not in the manifest" for name in sorted(set(found) - set(named) - own)]
    problems += [f"{name} is a link" for name, path in sorted(found.items()) if path.is_symlink()]
    names = Check("files", not problems, "; ".join(problems) or f"{len(found)} files, none extra", "E703")

    changed = []
    for file in manifest.files:
        path = found.get(file.path)
        if path is None or not path.is_file() or path.is_symlink():
            continue  # already a problem above
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != file.sha256:
                changed.append(f"{file.path} is not the file that was signed")
            elif path.stat().st_size != file.size:
                changed.append(f"{file.path} has {path.stat().st_size} bytes, the manifest says {file.size}")
    digests = Check("digests", not changed, "; ".join(changed) or f"{len(named)} digests match", "E701")
    return [names, digests]


def check_approval(manifest: ReleaseManifest) -> list[Check]:
    """Check that the candidate was approved (E704), and this candidate, after it was made (E705)."""
    approval = manifest.approvals[0] if manifest.approvals else None
    if approval is None:
        return [Check("approval", False, "the manifest holds no approval", "E704")]
    present = Check("approval", True, f"by {approval.approved_by} ({approval.role}), {approval.time}", "E704")
    if approval.candidate != manifest.candidate_digest:
        detail = f"is for {approval.candidate[:12]}..., this candidate is {manifest.candidate_digest[:12]}..."
        return [present, Check("approval binding", False, detail, "E705")]
    if approval.time < manifest.created:
        detail = f"dated {approval.time}, before the candidate of {manifest.created}"
        return [present, Check("approval binding", False, detail, "E705")]
    detail = f"for candidate {manifest.candidate_digest[:12]}..."
    return [present, Check("approval binding", True, detail, "E705")]


def check_gates(manifest: ReleaseManifest) -> Check:
    """Check that every acceptance gate was decided and passed (E601, E602)."""
    for number, verdict, word in (("E601", False, "failed"), ("E602", None, "not testable")):
        stopped = [gate.gate for gate in manifest.gates if gate.passed is verdict]
        if stopped:
            return Check("gates", False, f"{word}: {'; '.join(stopped)}", number)
    return Check("gates", True, f"{len(manifest.gates)} passed", "E601")


def _check_protocol(folder: Path, manifest: ReleaseManifest) -> Check:
    """The protocol in the release is the one whose hash everything else names."""
    import json

    from contracts.study import parse_study

    try:
        data = (folder / "study.json").read_bytes()
        protocol = parse_study(json.loads(data), "study.json")
    except (OSError, ValueError, ConsiliumError) as error:
        return Check("protocol", False, str(error), "E701")
    if canonical_json(protocol) != data or protocol.hash != manifest.protocol_hash:
        return Check("protocol", False, "study.json is not the protocol of the manifest", "E701")
    return Check("protocol", True, f"hash {manifest.protocol_hash[:12]}...", "E701")


def _check_ledgers(folder: Path, manifest: ReleaseManifest) -> Check:
    """The ledgers verify, and compose to the epsilon that the manifest states for each hospital."""
    from contracts.study import load_study
    from release.ledgers import FOLDER, check_exchanges, check_replay, keeper

    if manifest.privacy_mode == "none":
        return Check("ledgers", True, "none: no differential privacy is claimed", "E402")
    try:
        protocol = load_study(folder / "study.json")
        shown = [p for p in manifest.site_privacy if p.ledger_key is not None]
        replayed = []
        for stated in shown:
            data = (folder / FOLDER / f"{keeper(protocol, stated.site)}.jsonl").read_bytes()
            replayed.append(check_replay(protocol, stated, data))
        if len(shown) == len(manifest.site_privacy):
            check_exchanges(protocol, replayed)
    except OSError as error:
        return Check("ledgers", False, f"{error.filename}: {error.strerror}", "E402")
    except ConsiliumError as error:
        return Check("ledgers", False, error.detail, error.number)
    silent = [p.site for p in manifest.site_privacy if p.ledger_key is None]
    detail = f"{len(shown)} replayed: the stated epsilon follows from their entries"
    if silent:
        detail += f"; charged for every plan, as they showed none: {', '.join(silent)}"
    return Check("ledgers", True, detail, "E402")


def _check_golden(folder: Path) -> Check:
    """The model answers the golden rows as it did when it was released (E603)."""
    if importlib.util.find_spec("onnxruntime") is None:
        return Check(
            "golden rows", None, "not checked: onnxruntime is not installed (extra `verify`)", "E603"
        )
    from release.golden import TOLERANCE, golden_difference

    try:
        difference, flags = golden_difference(folder / "golden.json", folder / "model.onnx")
    except Exception as error:  # onnxruntime raises its own types, one per cause
        return Check("golden rows", False, f"the model does not run: {type(error).__name__}", "E603")
    detail = (
        f"largest difference {difference:.1e} (at most {TOLERANCE:.0e}), {flags} flags or decisions differ"
    )
    return Check("golden rows", difference <= TOLERANCE and flags == 0, detail, "E603")
