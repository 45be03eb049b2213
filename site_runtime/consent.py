"""A hospital's own say in a study: approve one version of its protocol, pause, withdraw, resume.

    (none) --approve--> approved <--resume-- paused
                        approved ---pause--> paused
                        any ------withdraw-> withdrawn --approve--> approved

A withdrawn study is not resumed: it is approved again, by whoever approves.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from contracts.canonical import canonical_json
from contracts.errors import ConsiliumError
from contracts.study import HospitalPrivacy, NoPrivacy, StudyProtocol, parse_study
from durable.files import locked, write_atomic
from site_runtime.config import SiteConfig, load_site
from site_runtime.home import SiteHome
from site_runtime.preflight import check_layers, check_promise

State = Literal["approved", "paused", "withdrawn"]


class Decision(BaseModel):
    """One decision of the hospital on a study."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: State
    protocol_hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    time: str
    by: str


class Consent(BaseModel):
    """Every decision on one study, oldest first; the last one holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    decisions: list[Decision]

    @property
    def state(self) -> State:
        """What holds now."""
        return self.decisions[-1].state


def now() -> str:
    """The time as contracts write it: UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _record(home: SiteHome, study: str) -> Path:
    return home.approval(study).with_suffix(".consent.json")


def load_consent(home: SiteHome, study: str) -> Consent | None:
    """The hospital's decisions on a study, or None when it never decided.

    Raises:
        ConsiliumError: E301, the record cannot be read (which is never taken for consent).
    """
    path = _record(home, study)
    if not path.exists():
        return None
    try:
        consent = Consent.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ConsiliumError("E301", f"{path} cannot be read: {type(error).__name__}") from error
    return consent if consent.decisions else None


def decided_studies(home: SiteHome) -> list[str]:
    """Names of the studies on which the hospital ever decided, sorted."""
    ending = ".consent.json"
    return sorted(path.name.removesuffix(ending) for path in home.approval("any").parent.glob("*" + ending))


def _decide(home: SiteHome, study: str, state: State, protocol_hash: str, by: str) -> None:
    path = _record(home, study)
    with locked(path.with_suffix(".lock")):
        consent = load_consent(home, study)
        past = consent.decisions if consent else []
        last = past[-1] if past else None
        if last and (last.state, last.protocol_hash) == (state, protocol_hash):
            return
        decision = Decision(state=state, protocol_hash=protocol_hash, time=now(), by=by)
        write_atomic(path, Consent(decisions=[*past, decision]).model_dump_json(indent=1).encode())


def check_policy(config: SiteConfig, protocol: StudyProtocol) -> None:
    """Refuse a study that asks for more than the hospital's policy lets out, or promises what cannot be kept.

    Raises:
        ConsiliumError: E304; E4xx of `site_runtime.preflight.check_promise`.
    """
    check_promise(config, protocol)
    if config.policy.lets_exact_leave(protocol):
        return
    if isinstance(protocol.privacy, HospitalPrivacy):
        raise ConsiliumError(
            "E304",
            f"study {protocol.study!r} sends exact updates to the coordinator, which adds the noise "
            "(privacy.mode site); site.yaml would have to say policy.exact_updates: true",
        )
    if isinstance(protocol.privacy, NoPrivacy):
        raise ConsiliumError(
            "E304",
            f"study {protocol.study!r} trains without differential privacy (privacy.mode none); "
            "site.yaml would have to say policy.exact_updates: true",
        )


def approve(home: SiteHome, protocol: StudyProtocol, by: str | None = None) -> None:
    """Approve exactly this version of the protocol. Approving it again changes nothing.

    Raises:
        ConsiliumError: E304, the study does not fit the hospital's policy; E4xx, it promises what cannot be
            kept here; E103.
    """
    config = load_site(home)
    check_policy(config, protocol)
    check_layers(protocol)
    write_atomic(home.approval(protocol.study), canonical_json(protocol))
    _decide(home, protocol.study, "approved", protocol.hash, by or config.governance.approved_by)


def approve_unless_declined(home: SiteHome, protocol: StudyProtocol) -> bool:
    """Approve for a hospital that runs on this machine (demo, simulation) and return whether it takes part.

    A pause or a withdrawal stands: starting everything again is no decision of the hospital's.

    Raises:
        ConsiliumError: E304, E103.
    """
    consent = load_consent(home, protocol.study)
    if consent is not None and consent.state != "approved":
        return False
    approve(home, protocol)
    return True


def load_approved(home: SiteHome, study: str) -> StudyProtocol:
    """The protocol that this hospital approved, whatever its state now.

    Raises:
        ConsiliumError: E301, there is none.
    """
    path = home.approval(study)
    if not path.exists():
        raise ConsiliumError("E301", f"study {study!r}: no approved protocol at this site")
    try:
        return parse_study(json.loads(path.read_bytes()), str(path))
    except (OSError, ValueError) as error:
        raise ConsiliumError("E301", f"{path} cannot be read: {error}") from error


def check_consent(home: SiteHome, study: str, protocol_hash: str) -> None:
    """Pass only if the hospital takes part in exactly this version of the study.

    Raises:
        ConsiliumError: E301 not approved (or another version was), E302 paused, E303 withdrawn.
    """
    consent = load_consent(home, study)
    if consent is None:
        raise ConsiliumError("E301", f"study {study!r} was never approved at this site")
    if consent.state == "withdrawn":
        raise ConsiliumError("E303", f"study {study!r}, since {consent.decisions[-1].time}")
    if consent.state == "paused":
        raise ConsiliumError("E302", f"study {study!r}, since {consent.decisions[-1].time}")
    approved = load_approved(home, study).hash
    if approved != protocol_hash or consent.decisions[-1].protocol_hash != protocol_hash:
        raise ConsiliumError(
            "E301", f"study {study!r}: approved version {approved[:12]}, asked for {protocol_hash[:12]}"
        )


def pause(home: SiteHome, study: str, by: str = "site") -> None:
    """Take no part until `resume`.

    Raises:
        ConsiliumError: E301 never approved, E303 withdrawn.
    """
    _decide(home, study, "paused", _active(home, study), by)


def resume(home: SiteHome, study: str, by: str = "site") -> None:
    """End a pause.

    Raises:
        ConsiliumError: E301 never approved, E303 withdrawn (approve it again instead).
    """
    _decide(home, study, "approved", _active(home, study), by)


def withdraw(home: SiteHome, study: str, by: str = "site") -> None:
    """Leave the study. What was sent stays sent, and its privacy stays spent.

    Raises:
        ConsiliumError: E301, it was never approved.
    """
    consent = load_consent(home, study)
    if consent is None:
        raise ConsiliumError("E301", f"study {study!r} was never approved at this site")
    _decide(home, study, "withdrawn", consent.decisions[-1].protocol_hash, by)


def _active(home: SiteHome, study: str) -> str:
    consent = load_consent(home, study)
    if consent is None:
        raise ConsiliumError("E301", f"study {study!r} was never approved at this site")
    if consent.state == "withdrawn":
        raise ConsiliumError("E303", f"study {study!r}: approve it again to take part")
    return consent.decisions[-1].protocol_hash
