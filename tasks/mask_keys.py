"""Which mask key of each hospital the coordinator knows: the one that the next plan names for it.

A key comes with a data sheet, with the envelope of the exchange before, or with the refusal of a hospital
whose envelope got lost. It masks once, in the exchange that it names or, if the hospital missed that, in a
later one. So nobody is kept out for good: whoever was silent has a key here that is still unused, whoever
used it tells the next one.
"""

from __future__ import annotations

from collections.abc import Mapping

from contracts.datasheet import DataSheet
from contracts.errors import ConsiliumError
from contracts.masking import MaskKey
from contracts.refusal import Refusal
from contracts.schedule import Slot
from contracts.signing import open_signed
from contracts.study import StudyProtocol
from contracts.update import UpdateEnvelope
from durable.files import locked, read_json, write_json
from strategies.secure import is_masked
from tasks.federation import Federation, load_federation
from tasks.home import CoordinatorHome

Eligible = dict[str, tuple[DataSheet, str]]


def with_mask_keys(
    home: CoordinatorHome, protocol: StudyProtocol, slot: Slot, eligible: Eligible
) -> tuple[Eligible, dict[str, MaskKey], dict[str, str]]:
    """Return who of the eligible can be summed under masks with their keys, and why each other is absent.

    For an exchange without masks everybody can.
    """
    if not is_masked(protocol, slot.kind):
        return eligible, {}, {}
    federation = load_federation(home)
    sheets = {site: sheet.mask for site, (sheet, _) in eligible.items() if sheet.mask is not None}
    known = _newest(_learnt(home, protocol), _signed(federation, protocol, sheets))
    keys = {site: key for site, key in known.items() if site in eligible and key.exchange <= slot.number}
    absent = {site: "no mask key yet" for site in eligible if site not in keys}
    return {site: eligible[site] for site in eligible if site in keys}, keys, absent


def learn_keys(
    home: CoordinatorHome,
    protocol: StudyProtocol,
    envelopes: Mapping[str, UpdateEnvelope],
    results: Mapping[str, str | None],
) -> None:
    """Remember the keys that answers to a plan brought, admitted or not, and those that refusals brought."""
    federation = load_federation(home)
    found = {site: e.next_mask for site, e in envelopes.items() if e.next_mask is not None}
    for site in set(results) & set(federation.sites) - set(found):
        try:
            refusal = open_signed(results[site] or "", Refusal, site, federation.member(site).sign_key)
        except ConsiliumError:
            continue
        if refusal.site == site and refusal.study == protocol.study and refusal.next_mask is not None:
            found[site] = refusal.next_mask
    with locked(home.study(protocol.study) / ".mask_keys.lock"):
        known = _newest(_learnt(home, protocol), _signed(federation, protocol, found))
        body = {site: key.model_dump(mode="json") for site, key in known.items()}
        write_json(home.study(protocol.study) / "mask_keys.json", body)


def _learnt(home: CoordinatorHome, protocol: StudyProtocol) -> dict[str, MaskKey]:
    path = home.study(protocol.study) / "mask_keys.json"
    found = read_json(path) if path.exists() else {}
    # Looked at again: a key signed before its hospital's signing key was rotated would be refused by all.
    keys = {site: MaskKey.model_validate(key) for site, key in found.items()}
    return _signed(load_federation(home), protocol, keys)


def _signed(
    federation: Federation, protocol: StudyProtocol, keys: Mapping[str, MaskKey]
) -> dict[str, MaskKey]:
    """Those that their own hospitals signed for this version of the study."""
    good = {}
    for site, key in keys.items():
        try:
            public = federation.member(site).sign_key
            key.check(protocol.study, protocol.hash, site, key.exchange, public)
        except ConsiliumError:
            continue
        good[site] = key
    return good


def _newest(known: Mapping[str, MaskKey], more: Mapping[str, MaskKey]) -> dict[str, MaskKey]:
    found = dict(known)
    for site, key in more.items():
        if site not in found or key.exchange > found[site].exchange:
            found[site] = key
    return found
