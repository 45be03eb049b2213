"""`dossier/governance.json`: who must approve, who started the release, and what each hospital agreed to."""

from __future__ import annotations

from typing import Any

from contracts.release import GateResult
from release.dossier.pointers import open_value
from release.dossier.split_attestation import sheet_of
from release.dossier.writing import json_bytes
from release.facts import ReleaseFacts

FILE = "dossier/governance.json"

_SIGN_OFF = (
    "Each role is answered by another person, none of whom started the release run, after the last hospital "
    "had verified the exported model and before publication. An approval names the digest of this candidate; "
    "it is in manifest.json, since this file is older than it."
)
_COUNTERSIGNED = (
    "The coordinator countersigns every approval by signing the release as a whole: its signature covers "
    "manifest.json with the approvals in it. An approval with a key of its own is signed by the person as "
    "well."
)
_HOSPITALS = (
    "A hospital trains, evaluates and verifies only under a current approval of exactly this protocol by its "
    "own governance and within its own policy; who approved there stays at the hospital. Its policy is named "
    "by digest."
)


def governance(facts: ReleaseFacts) -> bytes:
    """Return the record of governance: roles, who started the release, every hospital's part."""
    hospitals = [_hospital(facts, site) for site in facts.sites]
    return json_bytes(
        {
            "protocol": facts.protocol.hash,
            "regulatory_status": facts.regulatory,
            "sign_off": {
                "roles": list(facts.protocol.sign_off.roles),
                "rule": _SIGN_OFF,
                "countersignature": _COUNTERSIGNED,
                "triggered_by": facts.triggered_by
                or open_value("Who started the release run is not recorded.", "the coordinator"),
            },
            "hospitals": hospitals,
            "hospitals_rule": _HOSPITALS,
            "withdrawn": [
                {"site": site, "since_exchange": since} for site, since in sorted(facts.withdrawn.items())
            ],
            "approvals_current": _current(facts, hospitals),
        }
    )


def _hospital(facts: ReleaseFacts, site: str) -> dict[str, Any]:
    sheet = sheet_of(facts, site)
    data = next((d for d in facts.lineage.data if d.site == site), None)
    policy = data.policy if data else sheet[1].policy if sheet else None
    verified = any(r.site == site and r.parity is not None for r in facts.verification)
    return {
        "site": site,
        "policy": policy or open_value("The digest of the hospital's policy.", f"the hospital {site}"),
        "data_sheet_for_this_protocol": sheet is not None and sheet[1].protocol_hash == facts.protocol.hash,
        "verified_the_exported_model": verified,
    }


def _current(facts: ReleaseFacts, hospitals: list[dict[str, Any]]) -> Any:
    """What shows that every hospital's approval is current: its verification, and the gate if any."""
    silent = [h["site"] for h in hospitals if not h["verified_the_exported_model"]]
    gate = _approvals_gate(facts)
    if silent or not hospitals or (gate is not None and gate.passed is not True):
        who = ", ".join(silent) or "every hospital"
        return open_value(f"That the approval of the study is current is not shown by {who}.", "the hospital")
    shown = "Every hospital verified the exported model, which it does only under a current approval."
    return shown if gate is None else f"{shown} The gate on approvals passed: {gate.detail}"


def _approvals_gate(facts: ReleaseFacts) -> GateResult | None:
    """The result of the gate on approvals, found by its title; None when the protocol has no such gate."""
    title = next((g.title for g in facts.protocol.gates if g.metric == "approvals"), None)
    return next((r for r in facts.gates if r.gate == title), None)
