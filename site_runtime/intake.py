"""Intake: source -> records in the protocol's units -> split -> data quality -> frozen, versioned cohort.

What the coordinator hears:

- The source cannot be read, or the cohort or its holdout is too small (E201, E202, E203, E205, E207): a
  `Refusal`, which is the same sentence for zero patients and for one too few.
- A check of the suite failed: a `DataSheet` with `accepted: false` that names the check and the column and no
  number; the cohort is not frozen and an earlier one stays as it was. The hospital's own log has the numbered
  error (E204, E206, E208, E209, E212) with counts and values.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from contracts.datasheet import DataSheet
from contracts.errors import ConsiliumError
from contracts.study import StudyProtocol
from contracts.version import CODE_VERSION
from site_runtime import connectors
from site_runtime.cohort import cohort_digest, convert_units, eligible, freeze, split_cohort
from site_runtime.config import SiteConfig, load_site
from site_runtime.decisions import now
from site_runtime.egress import write_log
from site_runtime.home import SiteHome
from site_runtime.masking import open_masks
from site_runtime.quality import Finding, first_blocking, public_checks, report_path, run_quality
from site_runtime.split import load_split_key
from site_runtime.versions import commit_cohort


@dataclass(frozen=True)
class Intake:
    """The outcome of an intake: what may leave, and what the hospital alone sees."""

    sheet: DataSheet
    findings: list[Finding]
    records: int
    training_patients: int
    holdout_patients: int

    @property
    def error(self) -> ConsiliumError | None:
        """Why the cohort was not accepted, with local detail; None when it was."""
        return first_blocking(self.findings)


def run_intake(home: SiteHome, study: str, protocol: StudyProtocol) -> DataSheet:
    """Run the intake of a study at an enrolled site and return its data sheet.

    Raises:
        ConsiliumError: E103, E201, E202, E203, E205, E207, E801.
    """
    assert study == protocol.study
    done = take_in(home, load_site(home), protocol)
    if done.error is not None:
        write_log(home, f"intake {study}: not accepted: {done.error}")
    return done.sheet


def take_in(home: SiteHome, config: SiteConfig, protocol: StudyProtocol) -> Intake:
    """Run the intake and return everything about it (see the module's docstring for what crosses).

    Raises:
        ConsiliumError: as `run_intake`.
    """
    key = load_split_key(home)
    records = read_records(config, protocol)
    cohort = split_cohort(records, protocol, config, key)
    findings = run_quality(records, protocol, report_path(home, protocol.study))
    accepted = first_blocking(findings) is None
    version = None
    if accepted:
        frozen = freeze(home, cohort, protocol, key)
        version = commit_cohort(
            home, protocol.study, f"{protocol.study} {frozen.digest[:12]}", config.data_remote
        )
    sheet = DataSheet(
        study=protocol.study,
        protocol_hash=protocol.hash,
        site=config.site,
        connector=config.source.connector,
        cohort=cohort_digest(cohort, protocol, key),
        data_version=version,
        declared_size=config.governance.declared_size,
        holdout=protocol.holdout.method,
        checks=public_checks(findings),
        accepted=accepted,
        policy=config.policy_digest,
        code_version=CODE_VERSION,
        mask=open_masks(home, config.site, protocol).next_key() if protocol.secure else None,
        created=now(),
    )
    latest = cohort[cohort["position"] == 0]
    return Intake(
        sheet=sheet,
        findings=findings,
        records=len(records),
        training_patients=int((~latest["holdout"]).sum()),
        holdout_patients=int(latest["holdout"].sum()),
    )


def read_records(config: SiteConfig, protocol: StudyProtocol) -> pd.DataFrame:
    """Read the source and return eligible records in the protocol's units.

    Raises:
        ConsiliumError: E103, E201, E202, E203.
    """
    return eligible(convert_units(connectors.read(config.source, protocol), config, protocol), protocol)
