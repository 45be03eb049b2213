"""The hospital's record of its own decisions: appended to, never changed, and sealed with a key of its own.

Every decision carries a code (HMAC-SHA256, RFC 2104) over itself and the code before. Who has the file but
not the hospital's key can neither add a decision nor take one back that later ones follow; a record that does
not verify is no consent.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from contracts.canonical import canonical_json
from contracts.errors import ConsiliumError
from contracts.fields import Digest
from durable.files import locked, write_atomic
from site_runtime.home import SiteHome

# `proposed`: approved by one of two people. `resumed` ends a pause of the hospital as a whole.
State = Literal["proposed", "approved", "paused", "resumed", "withdrawn"]


class Decision(BaseModel):
    """One decision of the hospital: on a study, or on its part in the federation as a whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: State
    protocol_hash: Digest | None = None  # None: of the hospital as a whole
    policy: Digest | None = None  # under which it was taken
    time: str
    by: str
    script: bool = False  # no person decided: demo, up and simulate approve for themselves
    code: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = "0" * 64


class Consent(BaseModel):
    """Every decision on one study, oldest first. A proposal changes nothing before a second person's word."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    decisions: Annotated[list[Decision], Field(min_length=1)]

    @property
    def holds(self) -> Decision | None:
        """The decision that holds now; None while there are proposals alone."""
        return next((d for d in reversed(self.decisions) if d.state != "proposed"), None)

    @property
    def last(self) -> Decision:
        """The decision that holds, or else the newest proposal."""
        return self.holds or self.decisions[-1]

    @property
    def state(self) -> State:
        """What holds now."""
        return self.last.state

    def proposals(self, protocol_hash: str, policy: str | None = None) -> list[Decision]:
        """Proposals of a version since the last decision; of those, only under `policy` if one is given."""
        found: list[Decision] = []
        for decision in reversed(self.decisions):
            if decision.state != "proposed":
                break
            if decision.protocol_hash == protocol_hash and policy in (None, decision.policy):
                found.insert(0, decision)
        return found

    @property
    def people(self) -> str:
        """Whose word the last decision is: both names where it took two."""
        last = self.last
        at = self.decisions.index(last)
        if last.state != "approved" or at == 0:
            return last.by
        before = self.decisions[at - 1]
        two = (before.state, before.protocol_hash) == ("proposed", last.protocol_hash)
        return f"{before.by} and {last.by}" if two else last.by


def now() -> str:
    """The time as contracts write it: UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def record_path(home: SiteHome, study: str | None) -> Path:
    """Where decisions on a study are written; on the hospital as a whole with None."""
    return home.root / "pause.json" if study is None else home.approval(study).with_suffix(".consent.json")


def load_consent(home: SiteHome, study: str | None) -> Consent | None:
    """The hospital's decisions on a study (on itself as a whole with None), or None when it never decided.

    Raises:
        ConsiliumError: E301, the record cannot be read or verified (which is never taken for consent).
    """
    path = record_path(home, study)
    if not path.exists():
        return None
    try:
        consent = Consent.model_validate_json(path.read_bytes())
        key, before = home.consent_key.read_bytes(), ""
    except (OSError, ValidationError) as error:
        raise ConsiliumError("E301", f"{path} cannot be read: {type(error).__name__}") from error
    for number, decision in enumerate(consent.decisions, 1):
        if not hmac.compare_digest(decision.code, _code(key, before, decision, study)):
            raise ConsiliumError("E301", f"{path}: decision {number} is not as this hospital wrote it")
        before = decision.code
    return consent


def decide(
    home: SiteHome, study: str | None, choose: Callable[[Consent | None], Decision | None]
) -> Decision | None:
    """Append what `choose` decides in view of the record, if it decides anything.

    Raises:
        ConsiliumError: E301, the record or its key cannot be read; what `choose` raises.
    """
    path = record_path(home, study)
    with locked(path.with_suffix(".lock")):
        consent = load_consent(home, study)
        chosen = choose(consent)
        if chosen is None:
            return None
        try:
            key = home.consent_key.read_bytes()
        except OSError as error:
            raise ConsiliumError("E301", f"{home.consent_key}: {error}") from error
        past = consent.decisions if consent else []
        sealed = chosen.model_copy(update={"code": _code(key, past[-1].code if past else "", chosen, study)})
        write_atomic(path, Consent(decisions=[*past, sealed]).model_dump_json(indent=1).encode())
        return sealed


def decided_studies(home: SiteHome) -> list[str]:
    """Names of the studies on which the hospital ever decided, sorted."""
    ending = ".consent.json"
    return sorted(path.name.removesuffix(ending) for path in home.approval("any").parent.glob("*" + ending))


def _code(key: bytes, before: str, decision: Decision, study: str | None) -> str:
    body = decision.model_dump(mode="json", exclude={"code"}, exclude_none=True)
    text = canonical_json({"consent": 1, "study": study or "", "before": before, "decision": body})
    return hmac.new(key, text, hashlib.sha256).hexdigest()
