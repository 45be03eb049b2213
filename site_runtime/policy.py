"""The one question before data are touched: does this hospital allow it, for this study, now?"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from contracts.errors import ConsiliumError
from contracts.study import StudyProtocol
from durable.files import read_json
from site_runtime.config import SiteConfig
from site_runtime.consent import check_consent
from site_runtime.decisions import load_consent
from site_runtime.home import SiteHome
from site_runtime.policy_rules import Purpose, Verdict, first_refusal, hours_rule, study_rules, verdict
from site_runtime.policy_terms import utc_now


def sheet_path(home: SiteHome, study: str) -> Path:
    """Digest, cohort and policy of the newest data sheet that left for a study."""
    return home.state(study) / "sheet.json"


def check_policy(
    home: SiteHome,
    config: SiteConfig,
    protocol: StudyProtocol,
    purpose: Purpose,
    asked: str | None = None,
    moment: datetime | None = None,
) -> None:
    """Pass only if the hospital's policy and its decisions let data be touched for this purpose.

    Args:
        asked: hash of the version that a plan asks for; the approved one when not given.
        moment: the time, with a time zone; now when not given.

    Raises:
        ConsiliumError: E301 to E303, E321, E323, its decisions; E304, E307 to E320, its policy.
    """
    check_consent(home, config, protocol.study, asked or protocol.hash)
    if purpose != "intake":
        check_sheet_policy(home, config, protocol.study)
    moment = moment or utc_now()
    first_refusal([*study_rules(config, protocol, [purpose], moment), hours_rule(config, moment)])


def check_sheet_policy(home: SiteHome, config: SiteConfig, study: str) -> None:
    """Refuse plans for a data sheet that was made under another policy, until the next intake.

    Raises:
        ConsiliumError: E323. A study that was never taken in passes: its plans are refused by E511.
    """
    path = sheet_path(home, study)
    made = read_json(path).get("policy") if path.exists() else config.policy_digest
    if made != config.policy_digest:
        raise ConsiliumError(
            "E323",
            f"the data sheet was made under policy {str(made)[:12]}, now it is {config.policy_digest[:12]}: "
            "run intake again",
        )


def verdicts(
    home: SiteHome,
    config: SiteConfig,
    protocol: StudyProtocol,
    purposes: Sequence[Purpose],
    moment: datetime | None = None,
) -> list[Verdict]:
    """Every rule on a study, passed or refused, without touching data."""
    moment = moment or utc_now()
    version = f"version {protocol.hash[:12]}"

    def consent() -> None:
        check_consent(home, config, protocol.study, protocol.hash)

    def sheet() -> None:
        check_sheet_policy(home, config, protocol.study)

    return [
        verdict("approval", version, _said(home, protocol.study), consent),
        verdict("data sheet", "made under the policy of now", f"policy {config.policy_digest[:12]}", sheet),
        *study_rules(config, protocol, purposes, moment),
        hours_rule(config, moment),
    ]


def _said(home: SiteHome, study: str) -> str:
    """The decision that holds on a study, in a few words."""
    try:
        consent = load_consent(home, study)
    except ConsiliumError:
        return "its record cannot be read"
    if consent is None:
        return "never decided"
    last = consent.last
    return f"{last.state} by {last.by}, version {str(last.protocol_hash)[:12]}"
