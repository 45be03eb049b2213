"""`dossier/split_attestation.json`: the holdout of every hospital was fixed before its first round."""

from __future__ import annotations

import json
from typing import Any

from contracts.datasheet import DataSheet
from contracts.signing import parse_signed
from release.dossier.pointers import open_value
from release.dossier.writing import json_bytes
from release.facts import ReleaseFacts

FILE = "dossier/split_attestation.json"

_METHODS = {
    "keyed": (
        "A patient is in the holdout when HMAC-SHA256 of the patient's identifier, under a key that only the "
        "hospital has and bound to this product, falls below the protocol's fraction. It depends on no other "
        "patient and on no outcome, and stays the same after every later intake."
    ),
    "list": (
        "A fixed list of patients at the hospital, the declared exception: used where a published split must "
        "be kept. The protocol names it, and the cohort's digest covers who is on it."
    ),
}
_CLOCKS = (
    "Times of data sheets are by the hospitals' clocks and signed by them; the plan's time is by the "
    "coordinator's. The digest of a cohort is keyed by the hospital: it names the cohort, including who is "
    "in the holdout, and cannot be guessed from outside."
)


def split_attestation(facts: ReleaseFacts) -> bytes:
    """Return the attestation, from the hospitals' signed data sheets, the lineage and the event log.

    A hospital whose data sheet is missing, or dated after the first plan that asks it, is open: nothing is
    assumed.
    """
    plan, time = first_plan(facts)
    holdout = facts.protocol.holdout
    hospitals = [_hospital(facts, site, first_plan(facts, site)[1]) for site in facts.sites]
    held = all(h["frozen_before_first_round"] is True for h in hospitals)
    attestation: Any = (
        f"The holdout of every hospital ({len(hospitals)}) was fixed before its first round was planned."
        if hospitals and held
        else open_value(
            "That every holdout was fixed before its first round is not shown for all hospitals.",
            "the hospital that is marked below, by its signed data sheet",
        )
    )
    return json_bytes(
        {
            "source": "TRIPOD+AI (BMJ 2024;385:e078378) item 12a; Regulation (EU) 2024/1689 Annex IV 2(d)",
            "method": {
                "name": holdout.method,
                "fraction": holdout.fraction if holdout.method == "keyed" else None,
                "description": _METHODS[holdout.method],
            },
            "clocks": _CLOCKS,
            "first_plan": {
                "digest": plan or open_value("The first round's plan.", "the coordinator, in the lineage"),
                "time": time or open_value("The time of the first plan.", "the coordinator, in events.jsonl"),
            },
            "hospitals": hospitals,
            "attestation": attestation,
        }
    )


def first_plan(facts: ReleaseFacts, site: str | None = None) -> tuple[str | None, str | None]:
    """Return digest and time of the study's first plan, or the first that asks `site`; None if not known.

    It may have missed its quorum and been planned anew: a hospital read its data for it all the same.
    """
    for line in facts.events.splitlines():  # whether its chain holds is the verifier's question
        event = json.loads(line)
        if event["event"] == "round_opened" and (
            site is None or site in event["details"].get("sites", [site])
        ):
            return event["key"], event["time"]
    return None, None


def sheet_of(facts: ReleaseFacts, site: str) -> tuple[str, DataSheet] | None:
    """Return digest and content of a hospital's data sheet, or None where there is none."""
    text = facts.data_sheets.get(site)
    if text is None:
        return None
    signed = parse_signed(text)
    return signed.digest, DataSheet.model_validate(signed.document)


def _hospital(facts: ReleaseFacts, site: str, first: str | None) -> dict[str, Any]:
    found = sheet_of(facts, site)
    if found is None:
        missing = open_value("The hospital's signed data sheet.", f"the hospital {site}, by an intake")
        return {"site": site, "data_sheet": missing, "frozen_before_first_round": missing}
    digest, sheet = found
    named = next((d for d in facts.lineage.data if d.site == site), None)
    failed = [c for c in sheet.checks if not c.passed]
    return {
        "site": site,
        "data_sheet": digest,
        "data_sheet_time": sheet.created,
        "cohort": sheet.cohort,
        "connector": sheet.connector,
        "data_version": sheet.data_version,
        "declared_size": sheet.declared_size,
        "holdout": sheet.holdout,
        "accepted": sheet.accepted,
        "quality_checks": {"made": len(sheet.checks), "failed": len(failed)},
        "frozen_before_first_round": _frozen(digest, sheet, named.data_sheet if named else None, first),
    }


def _frozen(digest: str, sheet: DataSheet, named: str | None, first: str | None) -> bool | dict[str, str]:
    who = f"the hospital {sheet.site} and the coordinator"
    if named != digest:
        return open_value("The lineage does not name this data sheet.", who)
    if first is None:
        return open_value("When its first round was planned is not known.", who)
    if sheet.created > first:
        return open_value("This data sheet is younger than the hospital's first plan.", who)
    return True
