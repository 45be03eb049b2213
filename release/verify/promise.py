"""What was promised before training: the protocol, and the gates that it froze."""

from __future__ import annotations

from typing import Any

from contracts.canonical import canonical_json
from contracts.errors import ConsiliumError
from contracts.gates import Gate
from contracts.privacy import NoPrivacy
from contracts.release import ReleaseManifest
from contracts.study import threshold_of
from release.directory import model_inputs
from release.facts import largest_epsilon
from release.verify.check import Opened


def protocol_is_named(release: Opened) -> str:
    """`study.json` is the protocol whose hash everything else names (E701)."""
    protocol, manifest = release.protocol, release.manifest
    if canonical_json(protocol) != release.read("study.json") or protocol.hash != manifest.protocol_hash:
        raise ConsiliumError("E701", "study.json is not the protocol of the manifest")
    return f"hash {manifest.protocol_hash[:12]}..."


def manifest_follows(release: Opened) -> str:
    """What the manifest repeats of the protocol and of the reports is what they say (E701)."""
    protocol, manifest = release.protocol, release.manifest
    privacy = protocol.privacy
    threshold = manifest.decision_threshold
    expected: dict[str, Any] = {
        "study": protocol.study,
        "product": protocol.product_name,
        "title": protocol.title,
        "intended_use": protocol.intended_use,
        "inputs": model_inputs(protocol),
        "outputs": ["probability", "out_of_range"],
        # Where the protocol has a rule, the number is the one that was locked after training.
        "decision_threshold": threshold_of(protocol, threshold),
        "rounds": protocol.rounds,
        "privacy_mode": privacy.mode,
        "delta": None if isinstance(privacy, NoPrivacy) else privacy.delta,
        "epsilon": largest_epsilon(protocol, manifest.site_privacy),
        "sign_off": list(protocol.sign_off.roles),
    }
    wrong = [name for name, value in expected.items() if getattr(manifest, name) != value]
    if wrong:
        raise ConsiliumError("E701", f"manifest.json and study.json differ in {', '.join(wrong)}")
    golden, said = release.json("golden.json"), release.json("validation.json")["_study"]
    same = {
        "golden.json": (golden["decision_threshold"], threshold),
        "validation.json": (
            (said["version"], said["protocol_hash"], said["model"], said["decision_threshold"]),
            (manifest.version, manifest.protocol_hash, manifest.model, threshold),
        ),
        "dp_statement.json": (release.json("dp_statement.json").get("epsilon"), manifest.epsilon),
    }
    for path, (found, wanted) in same.items():
        if found != wanted:
            raise ConsiliumError("E701", f"{path} says {found!r}, the manifest {wanted!r}")
    return f"{len(expected)} fields agree"


def gates(release: Opened) -> str:
    """Every gate of the protocol was decided and passed, as the validation report says (E601, E602)."""
    manifest = release.manifest
    results = [gate.model_dump(mode="json") for gate in manifest.gates]
    if release.json("validation.json")["_gates"] != results:
        raise ConsiliumError("E601", "validation.json tells of other gates than the manifest")
    judged = [gate.gate for gate in manifest.gates]
    silent = [gate.title for gate in release.protocol.gates if gate.title not in judged]
    if silent:
        raise ConsiliumError("E602", f"not decided: {'; '.join(silent)}")
    said = decided(manifest)
    outside = [gate.title for gate in release.protocol.gates if not _within(gate, manifest)]
    if outside:
        raise ConsiliumError("E601", f"said to have passed, outside its limit: {'; '.join(outside)}")
    return said


def _within(gate: Gate, manifest: ReleaseManifest) -> bool:
    """Say whether every value under which a gate passed lies in the limits that the protocol froze."""
    if gate.at_least is None and gate.at_most is None:
        return True
    low = float("-inf") if gate.at_least is None else gate.at_least
    high = float("inf") if gate.at_most is None else gate.at_most
    # Without a value it passes by definition only: the first release becomes the reference of later ones.
    by_definition = gate.against in ("first", "previous") and manifest.change.level == "first"
    values = [result.value for result in manifest.gates if result.gate == gate.title]
    return all(by_definition if value is None else low <= value <= high for value in values)


def decided(manifest: ReleaseManifest) -> str:
    """No gate of a manifest failed (E601) or was left open (E602), and each passed on its own numbers."""
    for number, verdict, word in (("E601", False, "failed"), ("E602", None, "not testable")):
        stopped = [gate.gate for gate in manifest.gates if gate.passed is verdict]
        if stopped:
            raise ConsiliumError(number, f"{word}: {'; '.join(stopped)}")
    flipped = [gate.gate for gate in manifest.gates if gate.margin is not None and gate.margin < 0]
    if flipped:
        raise ConsiliumError("E601", f"said to have passed, outside its limit: {'; '.join(flipped)}")
    return f"{len(manifest.gates)} passed"
