"""The coordinator's half of intake: which hospitals' data sheets are admitted to the next plan."""

from __future__ import annotations

from typing import Any

from contracts.canonical import digest
from contracts.datasheet import DataSheet
from contracts.errors import ConsiliumError
from tasks.answers import open_answer
from tasks.events import record_event
from tasks.federation import Federation, load_federation
from tasks.head import load_protocol, now
from tasks.home import CoordinatorHome
from tasks.store import load_sheet, save_record, save_sheet


def admit_sheets(home: CoordinatorHome, study: str, results: dict[str, str | None]) -> dict[str, Any]:
    """Verify and keep the data sheets of an intake, and record who is in, who is out and why.

    A site whose sheet failed a blocking check (accepted: false), or who refused, is out of the next plan
    until a later intake; a silent site keeps its earlier sheet. Of one that is no active member nothing is
    read.
    """
    protocol = load_protocol(home, study)
    federation = load_federation(home)
    admitted: list[str] = []
    sheets: dict[str, str] = {}
    cohorts: dict[str, str] = {}
    refused: dict[str, str] = {}
    failed: dict[str, list[str]] = {}
    silent: list[str] = []
    for site in sorted({*federation.sites, *(name for name, text in results.items() if text)}):
        text = results.get(site)
        if not text:
            silent.append(site)
            continue
        if site not in federation.sites:
            refused[site] = _not_active(federation, site)
            continue
        try:
            sheet, sheet_digest = open_answer(federation, site, text, DataSheet, None)
            check_sheet(sheet, study, protocol.hash, site, federation.member(site).declared_size)
        except ConsiliumError as error:
            refused[site] = error.number
            (home.study(study) / "sheets" / f"{site}.json").unlink(missing_ok=True)
            continue
        save_sheet(home, study, site, text)
        if sheet.accepted:
            admitted.append(site)
            sheets[site], cohorts[site] = sheet_digest, sheet.cohort
        else:
            failed[site] = sorted(
                {
                    f"{c.check}({c.column})" if c.column else c.check
                    for c in sheet.checks
                    if not c.passed and c.severity == "blocking"
                }
            )
    record = {
        "study": study,
        "protocol_hash": protocol.hash,
        "admitted": admitted,
        "quality_failed": failed,
        "refused": refused,
        "silent": silent,
        "time": now(),
    }
    save_record(home, study, "intake", record)
    said: dict[str, Any] = {"sheets": sheets, "cohorts": cohorts, "out": sorted({*failed, *refused})}
    if sheets or said["out"]:
        record_event(home, study, "intake", digest(said), **said)
    return record


def _not_active(federation: Federation, site: str) -> str:
    """The number for whom is no member (E806), or was revoked (E808)."""
    try:
        federation.member(site)
    except ConsiliumError as error:
        return error.number
    raise AssertionError(site)


def check_sheet(sheet: DataSheet, study: str, protocol_hash: str, site: str, declared_size: int) -> None:
    """Check that a sheet speaks of this study, site and enrolled size.

    Raises:
        ConsiliumError: E511.
    """
    wanted = {
        "study": study,
        "protocol_hash": protocol_hash,
        "site": site,
        "declared_size": declared_size,
    }
    for field, value in wanted.items():
        if getattr(sheet, field) != value:
            raise ConsiliumError("E511", f"{field} is {getattr(sheet, field)!r}, expected {value!r}")


def admitted_sheets(
    home: CoordinatorHome, study: str, protocol_hash: str
) -> dict[str, tuple[DataSheet, str]]:
    """Return the accepted data sheets for this protocol with their digests, by site."""
    sheets = {}
    for member in load_federation(home).active:
        site, signed = member.site, load_sheet(home, study, member.site)
        if signed is None or not member.vouches(signed.key):
            continue
        sheet = DataSheet.model_validate(signed.document)
        if sheet.accepted and sheet.protocol_hash == protocol_hash:
            sheets[site] = (sheet, signed.digest)
    return sheets
