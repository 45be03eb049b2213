"""The one door out of a hospital: re-validate, check against the policy, sign, log, hand over one string."""

from __future__ import annotations

import json
import os
import traceback
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ValidationError

from contracts.canonical import canonical_json
from contracts.datasheet import DataSheet
from contracts.enrolment import JoinRequest, KeyRotation
from contracts.errors import ConsiliumError
from contracts.evaluation import EvaluationReport, SealedReport, one_bit
from contracts.masking import MaskKey, UnmaskShares
from contracts.plan import RoundPlan
from contracts.refusal import Refusal
from contracts.sealing import seal
from contracts.signing import MAX_DOCUMENT_BYTES, SigningKey, first_problem, to_text
from contracts.update import UpdateEnvelope
from durable.files import append_line, is_full, read_lines
from site_runtime.cells import check_cells
from site_runtime.config import SiteConfig
from site_runtime.decisions import now
from site_runtime.home import SiteHome
from site_runtime.kit import allowed_bucket

DOCUMENTS: tuple[type[BaseModel], ...] = (
    DataSheet,
    UpdateEnvelope,
    UnmaskShares,
    EvaluationReport,
    SealedReport,
    Refusal,
    JoinRequest,
    KeyRotation,
)


def check(config: SiteConfig, document: BaseModel) -> None:
    """Say whether `document` may leave under the hospital's policy.

    Raises:
        ConsiliumError: E304, naming the field and the rule.
    """
    if type(document) not in DOCUMENTS:
        raise ConsiliumError("E304", f"{type(document).__name__} is no document that may leave")
    try:
        again = type(document).model_validate_json(canonical_json(document))
    except (ValidationError, ValueError) as error:
        what = first_problem(error) if isinstance(error, ValidationError) else str(error)
        raise ConsiliumError("E304", f"{type(document).__name__}: {what}") from error
    site = getattr(again, "site", config.site)
    if site != config.site:
        raise ConsiliumError("E304", f"field 'site': {site!r}, expected {config.site!r}")
    if isinstance(again, DataSheet):
        _same("declared_size", again.declared_size, config.governance.declared_size)
        _same("policy", again.policy, config.policy_digest)
    elif isinstance(again, JoinRequest):
        _same("declared_size", again.declared_size, config.governance.declared_size)
    elif isinstance(again, KeyRotation):
        _same("owner", again.owner, config.site)
    elif isinstance(again, UpdateEnvelope):
        _same("policy", again.policy, config.policy_digest)
        # Whether the study is one whose updates are only summed, `site_runtime.policy` has asked.
        if again.noise_multiplier is None and config.policy.exact_updates is False:
            raise ConsiliumError("E304", "an update without noise, expected policy.exact_updates: true")
    elif isinstance(again, UnmaskShares):
        # The mask of a pair may be opened for a site alive and one dead, never for two alive.
        pairs = [tuple(pair.split()) for pair in again.pairs]
        if again.site not in again.own or any(a not in again.own or d in again.own for a, d in pairs):
            raise ConsiliumError("E304", "shares that open more than the masks left in a sum")
    elif isinstance(again, EvaluationReport):
        check_cells(again, config.policy.minimum_cell)
        if again.parity is not None and again.parity != one_bit(again.parity):
            raise ConsiliumError("E304", "parity says more than whether it holds")


def _same(field: str, value: object, expected: object) -> None:
    if value != expected:
        raise ConsiliumError("E304", f"field {field!r}: {value!r}, expected {expected!r}")


def _sign_and_log(home: SiteHome, site: str, document: BaseModel) -> str:
    signed = SigningKey.load(site, home.signing_key).sign(document)
    text = to_text(signed)
    if len(text) > MAX_DOCUMENT_BYTES:
        raise ConsiliumError("E304", f"{len(text)} bytes, expected at most {MAX_DOCUMENT_BYTES}")
    line = {
        "time": now(),
        "type": signed.type,
        "digest": signed.digest,
        "bytes": len(text),
        "to": recipient(home),
        **_way_of_tensors(home, document),
        "document": signed.document,
        "signature": signed.signature,
    }
    append_line(home.egress_log, json.dumps(line, sort_keys=True))
    return text


def recipient(home: SiteHome) -> str:
    """To whom documents go: where the coordinator answers, if that is known, and its pinned key."""
    url = os.environ.get("CONSILIUM_COORDINATOR_URL", "coordinator")
    try:
        return f"{url} (key {home.coordinator_key.read_text().strip()[:12]})"
    except OSError:
        return url


def _way_of_tensors(home: SiteHome, document: BaseModel) -> dict[str, str]:
    """The bucket in which the tensors or the ledger lie that a document names, where that is allowed."""
    named = any(getattr(document, name, None) is not None for name in ("tensors", "ledger"))
    bucket = allowed_bucket(home) if named else None
    return {} if bucket is None else {"tensors_to": bucket}


def send(home: SiteHome, config: SiteConfig, document: BaseModel) -> str:
    """Return the signed canonical JSON of `document`, after writing it to the hospital's record.

    Raises:
        ConsiliumError: E304, the document is not of a kind, form or content that may leave; E801.
    """
    check(config, document)
    return _sign_and_log(home, config.site, document)


def send_sealed(
    home: SiteHome, config: SiteConfig, plan: RoundPlan, plan_digest: str, report: EvaluationReport
) -> str:
    """Return the report sealed to the plan's key, its diagnostics readable.

    The hospital's record shows both: the report as it can be read once opened, and what left.

    Raises:
        ConsiliumError: E304, E801; E802, the plan has no key to seal to, or the report no diagnostics.
    """
    if plan.seal_key is None or report.diagnostics is None:
        raise ConsiliumError("E802", "an evaluation needs the plan's seal_key and the holdout's diagnostics")
    sealed = SealedReport(
        study=report.study,
        protocol_hash=report.protocol_hash,
        plan=plan_digest,
        site=config.site,
        cohort=report.cohort,
        created=report.created,
        diagnostics=report.diagnostics,
        sealed=seal(send(home, config, report), plan.seal_key, plan_digest),
    )
    return send(home, config, sealed)


def refuse(
    home: SiteHome,
    site: str,
    error: Exception,
    study: str,
    stage: str,
    plan: str | None = None,
    next_mask: MaskKey | None = None,
) -> str:
    """Return the signed `Refusal` for an error; its detail goes to the hospital's own log and nowhere else.

    An error without a number crosses as E899. Works without a readable `site.yaml`.

    Raises:
        ConsiliumError: E801, the signing key cannot be read.
    """
    numbered = as_refusal(error)
    write_log(home, f"{stage} {study}: {numbered}", error)
    refusal = Refusal.of(numbered, study=study, site=site, stage=stage, plan=plan, next_mask=next_mask)
    return _sign_and_log(home, site, refusal)


def as_refusal(error: Exception) -> ConsiliumError:
    """The numbered refusal for an error: a full disk has its own, any other without a number is E899."""
    if isinstance(error, ConsiliumError):
        return error
    return ConsiliumError("E122" if is_full(error) else "E899")


def write_log(home: SiteHome, message: str, error: Exception | None = None) -> None:
    """Write to the hospital's own log: the only place for details."""
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    home.log.parent.mkdir(parents=True, exist_ok=True)
    append_line(home.log, f"{stamp} {message}")
    if error is not None and not isinstance(error, ConsiliumError):
        append_line(home.log, "".join(traceback.format_exception(error)).rstrip())


def egress_records(home: SiteHome) -> list[dict[str, Any]]:
    """Everything that left, oldest first."""
    return [json.loads(line) for line in read_lines(home.egress_log)]
