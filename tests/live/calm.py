"""The calm run of a federation that chaos went over: the same signed plans, in one process, undisturbed.

A site's sampling and noise are drawn from its own key and the plan's digest, and the digest holds the time at
which the plan was made. So a second federation would draw other noise; the same plans, put to copies of the
same hospitals, must give the same bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from consilium.up import Platform
from contracts.signing import SigningKey, parse_signed
from contracts.study import StudyProtocol
from contracts.update import UpdateEnvelope
from privacy.ledger import Ledger
from site_runtime.config import load_site
from site_runtime.home import SiteHome
from site_runtime.steps import train
from tasks.aggregate import Base, aggregate
from tasks.exchange import DirectoryExchange
from tasks.head import load_protocol
from tasks.home import CoordinatorHome
from tasks.store import load_answer, load_plan, load_record, plan_text

_NOT_COPIED = shutil.ignore_patterns("airflow", "tmp", "log", "exchange", "presence", "outbox")


def copy_homes(platform: Platform, target: Path) -> None:
    """Copy the hospitals, after intake and before any round, and the coordinator without its exchange."""
    for site in platform.sites:
        shutil.copytree(platform.site(site).root, target / "sites" / site, ignore=_NOT_COPIED)
    shutil.copytree(platform.coordinator.root, target / "coordinator", ignore=_NOT_COPIED)


def site_ledger(home: SiteHome) -> Ledger:
    """The ledger of a hospital, verified as it is opened."""
    config = load_site(home)
    lineage = config.governance.lineage
    key = SigningKey.load(config.site, home.signing_key)
    return Ledger(home.ledger(lineage), config.site, lineage, key)


def plans_of(record: dict[str, Any]) -> list[str]:
    """Digests of all plans of a round, the first attempt first."""
    return [attempt["plan"] for attempt in (*record["attempts"], record)]


def rounds(platform: Platform, study: str) -> Iterator[dict[str, Any]]:
    """Records of the rounds of training and of the statistics before them."""
    protocol = load_protocol(platform.coordinator, study)
    for number in range(protocol.first_round, protocol.rounds + 1):
        yield load_record(platform.coordinator, study, str(number))


def differences(platform: Platform, study: str, calm: Path) -> list[str]:
    """Put every plan again to the copies in `calm`; name each update and model with another digest."""
    coordinator = CoordinatorHome(calm / "coordinator")
    exchange = DirectoryExchange(coordinator.exchange)
    protocol: StudyProtocol = load_protocol(platform.coordinator, study)
    ledgers = {site: site_ledger(platform.site(site)) for site in platform.sites}
    base, found = Base(None, None), []
    for record in rounds(platform, study):
        answers: dict[str, UpdateEnvelope] = {}
        for digest in plans_of(record):
            plan = load_plan(platform.coordinator, study, digest)
            text = plan_text(platform.coordinator, study, digest)
            # Only who was reached by the plan in the chaos: another plan is another noise.
            reached = {e.site for e in plan.roster if ledgers[e.site].reserved(digest)}
            reached |= set(record["admitted"]) if digest == record["plan"] else set()
            for site in sorted(reached):
                sent = parse_signed(train(SiteHome(calm / "sites" / site), text, exchange))
                answers[site] = UpdateEnvelope.model_validate(sent.document)
        plan = load_plan(platform.coordinator, study, record["plan"])
        for line in record["updates"]:
            stored = parse_signed(load_answer(platform.coordinator, study, record["plan"], line["site"]))
            if stored.document["tensors"] != answers[line["site"]].tensors:
                found.append(f"update of {line['site']} in round {record['round']}")
        weights = {line["site"]: float(line["weight"]) for line in record["updates"]}
        updates = [answers[site] for site in weights]
        base = aggregate(coordinator, protocol, plan, record["plan"], base, updates, weights)
        if base.model != record["model"]:
            found.append(f"model of round {record['round']}")
            return found  # every later one starts from it
    return found
