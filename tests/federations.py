"""Four tiny hospitals whose study also trains local models and leaves each hospital out in turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from consilium.simulation import Simulation, prepare, run_intake
from contracts.plan import RoundPlan
from contracts.signing import SigningKey, parse_signed, to_text
from contracts.study import StudyProtocol
from privacy.ledger import Ledger
from site_runtime.steps import train
from tasks.exchange import DirectoryExchange
from tasks.federation import coordinator_key
from tasks.rounds import ClosedRound, close_round, open_round
from tests.factories import SITE, STUDY, tiny_rows, tiny_study, write_site
from tests.worlds import copied_world

SITES = ("ash", "birch", "cedar", "dogwood")
BUDGET = {"epsilon": 60.0, "delta": 1e-3}
# With rate 1 every patient is in every batch: without privacy nothing is random.
WHOLE = STUDY["training"] | {"sample_rate": 1.0}


def planned_study(**changes: Any) -> StudyProtocol:
    """The tiny study with local models and leave-one-site-out among at most four hospitals."""
    fields = {
        "validation": {
            "local_model": True,
            "leave_one_site_out": len(SITES),
            "diagnostics": {"minimum_events": 1},  # holdouts are drawn anew each time
        },
        "min_sites": 3,
        "training": WHOLE,
        "cohort": STUDY["cohort"] | {"max_records": 1},
    }
    return tiny_study(**(fields | changes))


def rows_of(site: str, shift: float = 0.0) -> list[dict[str, Any]]:
    """Rows that differ from hospital to hospital; `shift` years older."""
    number = SITES.index(site) if site in SITES else len(SITES)
    rows = tiny_rows(90)
    return [row | {"age": row["age"] + 2 * number + shift} for row in rows]


def four_hospitals(root: Path, protocol: StudyProtocol, sites: tuple[str, ...] = SITES) -> Simulation:
    """Real sites and a real coordinator below `root`, after intake."""

    def made(folder: Path, protocol: StudyProtocol) -> Simulation:
        for site in sites:
            governance = {**SITE["governance"], "lineage": site}
            changes = {"site": site, "governance": governance, "budget": BUDGET}
            write_site(folder / "federation" / site, rows_of(site), **changes)
        simulation = prepare(folder, protocol, folder / "federation")
        assert run_intake(simulation, lambda text: None)["admitted"] == sorted(sites)
        return simulation

    return copied_world(root, made, protocol, sites=sites)


def exchange(simulation: Simulation) -> DirectoryExchange:
    """The coordinator's exchange."""
    return DirectoryExchange(simulation.coordinator.exchange)


def opened(simulation: Simulation, run_id: str = "run", without: str | None = None) -> tuple[str, RoundPlan]:
    """Open the next exchange, with every hospital there but one: its signed text and its plan."""
    found = open_round(simulation.coordinator, "tiny", run_id, set(simulation.sites) - {without})
    assert found.plan is not None, found.reason
    return found.plan, RoundPlan.model_validate(parse_signed(found.plan).document)


def run_one(simulation: Simulation, run_id: str, without: str | None = None) -> tuple[RoundPlan, ClosedRound]:
    """Open an exchange, have its whole roster answer, and close it."""
    text, plan = opened(simulation, run_id, without)
    answers: dict[str, str | None] = {
        e.site: train(simulation.sites[e.site], text, exchange(simulation)) for e in plan.roster
    }
    return plan, close_round(simulation.coordinator, "tiny", run_id, answers)


def run_all(simulation: Simulation, until: int | None = None) -> list[RoundPlan]:
    """Run every exchange, or those before the number `until`; returns their plans."""
    plans: list[RoundPlan] = []
    while until is None or not plans or plans[-1].round + 1 < until:
        plan, closed = run_one(simulation, f"run-{len(plans)}")
        plans.append(plan)
        if closed.next != "round":
            break
    return plans


def ledger(simulation: Simulation, site: str = "ash") -> Ledger:
    """A hospital's ledger, opened with its own key."""
    home = simulation.sites[site]
    return Ledger(home.ledger(site), site, site, SigningKey.load(site, home.signing_key))


def resigned(simulation: Simulation, plan: str, **changes: Any) -> str:
    """A plan with some fields changed, signed by the coordinator again."""
    document = RoundPlan.model_validate(parse_signed(plan).document).model_copy(update=changes)
    return to_text(coordinator_key(simulation.coordinator).sign(document))
