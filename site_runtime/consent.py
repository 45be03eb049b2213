"""A hospital's own say in a study: approve one version of its protocol, pause, withdraw, resume.

    (none) --approve--> proposed --approve, by another person--> approved <--resume-- paused
                                                                 approved ---pause--> paused
                        any ------withdraw-> withdrawn --approve, by two--> approved

Two people approve (unless the policy asks for one), each from the protocol's own page: a code on it follows
from the protocol's hash and the policy's digest, so that both have seen this version under this policy. A
proposal of another version changes nothing in the one that holds. A withdrawn study is not resumed: it is
approved again.
"""

from __future__ import annotations

import base64
import hashlib
import json
import unicodedata

from contracts.canonical import canonical_json
from contracts.errors import ConsiliumError
from contracts.study import StudyProtocol, parse_study
from durable.files import write_atomic
from site_runtime.config import SiteConfig, load_site
from site_runtime.decisions import Consent, Decision, decide, load_consent, now
from site_runtime.home import SiteHome
from site_runtime.policy_rules import first_refusal, study_purposes, study_rules
from site_runtime.policy_terms import utc_now
from site_runtime.preflight import check_layers, check_promise

SCRIPTS = ("script, not a person", "second script, not a person")


def approval_code(protocol_hash: str, policy_digest: str) -> str:
    """The code on a protocol's page, such as `K7QM-3T9P`: 40 bits that follow from version and policy."""
    found = hashlib.sha256(f"consilium/approval/1 {protocol_hash} {policy_digest}".encode()).digest()
    text = base64.b32encode(found[:5]).decode()
    return f"{text[:4]}-{text[4:]}"


def check_study(config: SiteConfig, protocol: StudyProtocol) -> None:
    """Refuse a study that does not fit the hospital's policy, or promises what cannot be kept here.

    Raises:
        ConsiliumError: E304, E307 to E320; E4xx of `site_runtime.preflight`.
    """
    first_refusal(study_rules(config, protocol, study_purposes(protocol), utc_now()))
    check_promise(config, protocol)
    check_layers(protocol)


def approve(home: SiteHome, protocol: StudyProtocol, by: str, code: str) -> Decision:
    """Approve exactly this version of the protocol under the policy of now, as one person.

    The first of two people proposes, and the hospital takes no part yet; the second approves. Approving what
    is approved changes nothing.

    Returns:
        the decision that this person's word comes to.

    Raises:
        ConsiliumError: E322, the person or the code is not the right one, or the same person said so before;
            as `check_study`; E301, the record of decisions is damaged; E103.
    """
    config = load_site(home)
    named = config.governance.approvers or [config.governance.approved_by]
    if not any(_same_person(by, name) for name in named):
        raise ConsiliumError(
            "E322", f"{by!r} is not named in site.yaml, governance.approvers: {', '.join(named)}"
        )
    expected = approval_code(protocol.hash, config.policy_digest)
    if code.strip().upper() != expected:
        raise ConsiliumError(
            "E322",
            f"code {code!r} is not that of version {protocol.hash[:12]} under this policy; "
            "`consilium site protocol` shows the page with it",
        )
    return _approve(home, config, protocol, by, script=False)


def approve_by_scripts(home: SiteHome, protocol: StudyProtocol) -> None:
    """Approve for a hospital that runs on this machine, in the name of nobody: the record says so.

    Raises:
        ConsiliumError: as `check_study`; E301, E103.
    """
    config = load_site(home)
    for by in SCRIPTS:
        consent = load_consent(home, protocol.study)
        said = consent.proposals(protocol.hash, config.policy_digest) if consent else []
        if not any(_same_person(by, proposal.by) for proposal in said):
            _approve(home, config, protocol, by, script=True)


def approve_unless_declined(home: SiteHome, protocol: StudyProtocol) -> bool:
    """Approve by scripts (demo, up, simulate) and return whether the hospital takes part.

    A pause or a withdrawal stands: starting everything again is no decision of the hospital's.

    Raises:
        ConsiliumError: as `approve_by_scripts`.
    """
    consent = load_consent(home, protocol.study)
    if consent is not None and consent.state in ("paused", "withdrawn"):
        return False
    approve_by_scripts(home, protocol)
    return True


def _approve(home: SiteHome, config: SiteConfig, protocol: StudyProtocol, by: str, script: bool) -> Decision:
    check_study(config, protocol)
    policy = config.policy_digest

    def choose(consent: Consent | None) -> Decision | None:
        holds = consent.holds if consent else None
        if holds and (holds.state, holds.protocol_hash, holds.policy) == ("approved", protocol.hash, policy):
            return None
        said = consent.proposals(protocol.hash, policy) if consent else []
        if any(_same_person(by, proposal.by) for proposal in said):
            raise ConsiliumError(
                "E322", f"{by} has approved {protocol.study!r} already: a second person has to"
            )
        enough = bool(said) or not config.policy.require_two_approvals
        if enough or not home.approval(protocol.study).exists():
            # Of a proposal too, so that the hospital can answer a plan with its refusal (E321).
            write_atomic(home.approval(protocol.study), canonical_json(protocol))
        return Decision(
            state="approved" if enough else "proposed",
            protocol_hash=protocol.hash,
            policy=policy,
            time=now(),
            by=by,
            script=script,
        )

    made = decide(home, protocol.study, choose)
    if made is None:
        consent = load_consent(home, protocol.study)
        assert consent is not None
        return consent.last
    return made


def _same_person(one: str, other: str) -> bool:
    """Whether two names are one but for case, spacing and the spelling of accents."""
    first, second = (
        " ".join(unicodedata.normalize("NFKC", name).casefold().split()) for name in (one, other)
    )
    return first == second


def load_approved(home: SiteHome, study: str) -> StudyProtocol:
    """The protocol that this hospital approved (or of which it has only the first proposal), whatever its
    state now.

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


def check_consent(home: SiteHome, config: SiteConfig, study: str, protocol_hash: str) -> None:
    """Pass only if the hospital takes part in exactly this version of the study, under the policy of now.

    Raises:
        ConsiliumError: E301 not approved (or another version was), E302 paused, E303 withdrawn, E321 approved
            by one person alone, E323 approved under another policy.
    """
    whole = load_consent(home, None)
    if whole is not None and whole.state == "paused":
        raise ConsiliumError("E302", f"this hospital as a whole, since {whole.last.time}")
    consent = load_consent(home, study)
    if consent is None:
        raise ConsiliumError("E301", f"study {study!r} was never approved at this site")
    holds = consent.holds
    if holds is not None and holds.state in ("withdrawn", "paused"):
        number = "E303" if holds.state == "withdrawn" else "E302"
        raise ConsiliumError(number, f"study {study!r}, since {holds.time}")
    if holds is None or holds.protocol_hash != protocol_hash:
        proposals = consent.proposals(protocol_hash)
        if proposals:
            raise ConsiliumError("E321", f"study {study!r}, version {protocol_hash[:12]}: {proposals[-1].by}")
    approved = load_approved(home, study).hash
    if holds is None or approved != protocol_hash or holds.protocol_hash != protocol_hash:
        raise ConsiliumError(
            "E301", f"study {study!r}: approved version {approved[:12]}, asked for {protocol_hash[:12]}"
        )
    if holds.policy != config.policy_digest:
        raise ConsiliumError(
            "E323",
            f"study {study!r} was approved under policy {str(holds.policy)[:12]}, "
            f"now it is {config.policy_digest[:12]}: approve it again",
        )


def pause(home: SiteHome, study: str | None, by: str = "site") -> None:
    """Take no part until `resume`: in a study, or (None) in any.

    Raises:
        ConsiliumError: E301 never approved, E303 withdrawn.
    """
    _turn(home, study, "paused", by)


def resume(home: SiteHome, study: str | None, by: str = "site") -> None:
    """End a pause of a study, or (None) of the hospital as a whole.

    Raises:
        ConsiliumError: E301 never approved, E303 withdrawn (approve it again instead).
    """
    _turn(home, study, "resumed" if study is None else "approved", by)


def withdraw(home: SiteHome, study: str, by: str = "site") -> None:
    """Leave the study. What was sent stays sent, and its privacy stays spent.

    Raises:
        ConsiliumError: E301, it was never approved.
    """
    _turn(home, study, "withdrawn", by)


def _turn(home: SiteHome, study: str | None, state: str, by: str) -> None:
    """Change the state and keep the version and the policy that were approved."""

    def choose(consent: Consent | None) -> Decision | None:
        holds = consent.holds if consent else None
        if study is not None:
            if holds is None:
                raise ConsiliumError("E301", f"study {study!r} was never approved at this site")
            if holds.state == "withdrawn" and state != "withdrawn":
                raise ConsiliumError("E303", f"study {study!r}: approve it again to take part")
        if (holds.state if holds else "resumed") == state:
            return None
        kept = {} if holds is None else {"protocol_hash": holds.protocol_hash, "policy": holds.policy}
        return Decision.model_validate({"state": state, "time": now(), "by": by, **kept})

    decide(home, study, choose)
