"""The calm run of a federation that chaos went over: the same signed plans, in one process, undisturbed.

A site's sampling and noise are drawn from its own key and the plan's digest, and the digest holds the time at
which the plan was made. So a second federation would draw other noise; the same plans, put to copies of the
same hospitals, must give the same bytes.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from consilium.platform import Platform
from contracts.canonical import sha256
from contracts.signing import SigningKey, parse_signed
from contracts.update import UpdateEnvelope
from durable.files import write_atomic
from privacy.ledger import Ledger
from site_runtime.cohort import load_cohort
from site_runtime.config import load_site
from site_runtime.consent import load_approved
from site_runtime.home import SiteHome
from site_runtime.outbox import tensor_bytes
from site_runtime.training import base_model, compute
from tasks.aggregate import Base, aggregate
from tasks.exchange import DirectoryExchange
from tasks.head import load_protocol
from tasks.home import CoordinatorHome
from tasks.store import load_answer, load_plan, load_record

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
    """Compute every admitted update and every model again in `calm`; name each that has another digest."""
    coordinator = CoordinatorHome(calm / "coordinator")
    exchange = DirectoryExchange(coordinator.exchange)
    ledgers = {site: site_ledger(platform.site(site)) for site in platform.sites}
    protocol = load_protocol(platform.coordinator, study)
    base, found = Base(None, None), []
    for record in rounds(platform, study):
        updates = []
        for line in record["updates"]:
            site = line["site"]
            # A round that was planned anew is answered with what its first plan drew.
            drawn = next(plan for plan in plans_of(record) if ledgers[site].reserved(plan))
            tensors = computed(SiteHome(calm / "sites" / site), platform.coordinator, study, drawn, exchange)
            answer = parse_signed(load_answer(platform.coordinator, study, record["plan"], site))
            envelope = UpdateEnvelope.model_validate(answer.document)
            if envelope.tensors != sha256(tensors):
                found.append(f"update of {site} in round {record['round']}")
            put(exchange, tensors)
            updates.append(envelope.model_copy(update={"tensors": sha256(tensors)}))
        plan = load_plan(platform.coordinator, study, record["plan"])
        weights = {line["site"]: float(line["weight"]) for line in record["updates"]}
        base = aggregate(coordinator, protocol, plan, record["plan"], base, updates, weights)
        if base.model != record["model"]:
            found.append(f"model of round {record['round']}")
            return found  # every later one starts from it
    return found


def computed(
    home: SiteHome, coordinator: CoordinatorHome, study: str, digest: str, exchange: DirectoryExchange
) -> bytes:
    """What an undisturbed hospital computes for a plan; its ledger is not asked, which holds other times."""
    config, protocol = load_site(home), load_approved(home, study)
    plan = load_plan(coordinator, study, digest)
    cohort = load_cohort(home, config, protocol, "training")
    start = base_model(plan, exchange)
    update = compute(home, config, protocol, plan, digest, cohort, start)
    if update.kept:
        kept = home.state(study) / "kept" / protocol.hash[:16] / f"round-{plan.round}.safetensors"
        write_atomic(kept, tensor_bytes(update.kept))
    return tensor_bytes(update.sent)


def put(exchange: DirectoryExchange, tensors: bytes) -> None:
    """Store an update's bytes in the calm exchange."""
    exchange.root.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=exchange.root) as file:
        file.write(tensors)
        file.flush()
        exchange.put(Path(file.name))
