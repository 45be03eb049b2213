"""Where a release comes from: its data, its history, and the privacy that was spent."""

from __future__ import annotations

from contracts.datasheet import DataSheet
from contracts.errors import ConsiliumError
from contracts.release import SiteData
from contracts.signing import open_signed, parse_signed
from privacy.excerpt import read_excerpt
from release.contents import DATA_SHEETS, EVENTS
from release.ledgers import FOLDER, check_exchanges, check_replay, keeper
from release.verify.check import Opened


def lineage(release: Opened) -> str:
    """Each hospital's data sheet is the one that the lineage names, and accepted for this protocol (E701)."""
    data = release.manifest.lineage.data
    sheets = {file.path for file in release.manifest.files if file.path.startswith(f"{DATA_SHEETS}/")}
    if sheets != {f"{DATA_SHEETS}/{one.site}.json" for one in data}:
        raise ConsiliumError("E703", f"the lineage names {[d.site for d in data]}, there is {sorted(sheets)}")
    absent = sorted(set(release.manifest.sites) - {one.site for one in data})
    if absent:
        raise ConsiliumError("E703", f"no data sheet of {', '.join(absent)}")
    for one in data:
        _sheet(release, one)
    return f"data sheets of {len(data)} hospitals, {len(release.manifest.lineage.rounds)} rounds"


def _sheet(release: Opened, named: SiteData) -> None:
    """Open one data sheet; its key is one of the hospital's as far as its ledger shows them."""
    text = release.read(f"{DATA_SHEETS}/{named.site}.json")
    signed = parse_signed(text)
    keys = {p.site: p.ledger_key for p in release.manifest.site_privacy if p.ledger_key is not None}
    key = signed.key
    if release.manifest.privacy_mode == "patient" and named.site in keys:
        key = keys[named.site]
        if signed.key != key:
            ledger = read_excerpt(release.read(f"{FOLDER}/{named.site}.jsonl"), key)
            key = signed.key if signed.key in ledger.keys else key
    sheet = open_signed(text, DataSheet, named.site, key)
    found = {
        "data_sheet": signed.digest,
        "site": sheet.site,
        "cohort": sheet.cohort,
        "data_version": sheet.data_version,
        "policy": sheet.policy,
    }
    wrong = [name for name, value in found.items() if getattr(named, name) != value]
    if wrong:
        raise ConsiliumError(
            "E701", f"data sheet of {named.site}: another {', '.join(wrong)} than the lineage"
        )
    if not sheet.accepted or sheet.protocol_hash != release.manifest.protocol_hash:
        raise ConsiliumError("E701", f"data sheet of {named.site}: not accepted for this protocol")


def events(release: Opened) -> str:
    """The event log is unbroken and ends in the head that the manifest names (E712)."""
    head = release.manifest.events
    if head is None:
        raise ConsiliumError("E712", f"the manifest names no head of {EVENTS}")
    from release.events import check_events

    data = release.read(EVENTS)
    check_events(data, head)
    return f"{len(data.splitlines())} events, head {head[:12]}..."


def ledgers(release: Opened) -> str:
    """The ledgers verify, and compose to the epsilon that the manifest states (E402, E407, E408, E418)."""
    manifest, protocol = release.manifest, release.protocol
    if manifest.privacy_mode == "none":
        return "none: no differential privacy is claimed"
    shown = [p for p in manifest.site_privacy if p.ledger_key is not None]
    paths = {p.site: f"{FOLDER}/{keeper(protocol, p.site)}.jsonl" for p in shown}
    there = {file.path for file in manifest.files if file.path.startswith(f"{FOLDER}/")}
    if there != set(paths.values()):
        raise ConsiliumError("E402", f"ledgers {sorted(there)}, expected {sorted(set(paths.values()))}")
    replayed = [check_replay(protocol, one, release.read(paths[one.site])) for one in shown]
    if len(shown) == len(manifest.site_privacy):
        check_exchanges(protocol, replayed, manifest.lineage.rounds)
    silent = [p.site for p in manifest.site_privacy if p.ledger_key is None]
    detail = f"{len(shown)} replayed: the stated epsilon follows from their entries"
    if silent:
        detail += f"; charged for every plan, as they showed none: {', '.join(silent)}"
    return detail
