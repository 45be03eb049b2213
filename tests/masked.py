"""Five tiny hospitals whose updates are summed under masks, and the two hops of an exchange."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consilium.simulation import Simulation, ask
from contracts.masking import UnmaskRequest
from contracts.plan import RoundPlan
from contracts.signing import parse_signed, to_text
from contracts.study import StudyProtocol
from site_runtime.steps import train, unmask
from strategies.interface import Admitted
from strategies.secure import Layout
from tasks.aggregate import Base, next_state
from tasks.central import Combined
from tasks.exchange import DirectoryExchange
from tasks.federation import coordinator_key
from tasks.rounds import ClosedRound, OpenedRound, close_round, open_round
from tasks.unmasking import open_unmasking
from tests.factories import STUDY, tiny_study
from tests.federations import four_hospitals

SITES = ("ash", "birch", "cedar", "dogwood", "elm")
SECURE = {"aggregation": {"method": "secure", "threshold": 0.6}}
DECLARED = STUDY["training"] | {"normalisation": "declared"}

Answers = dict[str, str | None]
Clear = dict[str, tuple[Layout, np.ndarray]]  # by hospital, what it has masked


def masked_study(**changes: Any) -> StudyProtocol:
    """The tiny study under secure aggregation: of five hospitals three must answer each hop."""
    return tiny_study(**({"strategy": SECURE, "training": DECLARED, "min_sites": 3} | changes))


def five_hospitals(root: Path, protocol: StudyProtocol, sites: tuple[str, ...] = SITES) -> Simulation:
    """Real sites and a real coordinator below `root`, after intake."""
    return four_hospitals(root, protocol, sites)


def exchange(simulation: Simulation) -> DirectoryExchange:
    """The coordinator's exchange."""
    return DirectoryExchange(simulation.coordinator.exchange)


def opened(simulation: Simulation, run: str = "run", present: Collection[str] = SITES) -> str:
    """Open the next exchange and return its signed plan."""
    found = open_round(simulation.coordinator, "tiny", run, set(present))
    assert found.plan is not None, found.reason
    return found.plan


def plan_of(text: str) -> tuple[RoundPlan, str]:
    """A signed plan and its digest."""
    signed = parse_signed(text)
    return RoundPlan.model_validate(signed.document), signed.digest


def request_of(text: str) -> UnmaskRequest:
    """What a signed request says."""
    return UnmaskRequest.model_validate(parse_signed(text).document)


def trained(simulation: Simulation, plan: str, silent: Collection[str] = ()) -> Answers:
    """What the roster answers in the first hop; the silent train, and their answer never arrives."""
    found: Answers = {}
    for entry in plan_of(plan)[0].roster:
        answer = ask(train, simulation.sites[entry.site], plan, exchange(simulation))
        found[entry.site] = None if entry.site in silent else answer
    return found


def asked(simulation: Simulation, answers: Answers, run: str = "run") -> OpenedRound:
    """Have the coordinator make its request."""
    return open_unmasking(simulation.coordinator, "tiny", run, answers)


def unmasked(simulation: Simulation, request: OpenedRound, silent: Collection[str] = ()) -> Answers:
    """What the alive sites answer in the second hop."""
    assert request.plan is not None, request.reason
    return {
        site: ask(unmask, simulation.sites[site], request.plan, exchange(simulation))
        for site in request.roster
        if site not in silent
    }


def closed(simulation: Simulation, answers: Answers, run: str = "run") -> ClosedRound:
    """Close the exchange."""
    return close_round(simulation.coordinator, "tiny", run, answers)


def run_exchange(
    simulation: Simulation, run: str, first: Collection[str] = (), second: Collection[str] = ()
) -> ClosedRound:
    """One whole exchange, in which `first` are silent in the first hop and `second` in the second."""
    plan = opened(simulation, run)
    request = asked(simulation, trained(simulation, plan, first), run)
    return closed(simulation, {} if request.plan is None else unmasked(simulation, request, second), run)


def resigned(simulation: Simulation, text: str, **changes: Any) -> str:
    """A plan or a request with some fields changed, signed by the coordinator again."""
    signed = parse_signed(text)
    kind = RoundPlan if signed.type == "RoundPlan" else UnmaskRequest
    document = kind.model_validate(signed.document).model_copy(update=changes)
    return to_text(coordinator_key(simulation.coordinator).sign(document))


def plain_model(simulation: Simulation, plan: str, clear: Clear, alive: list[str]) -> str | None:
    """The model that plain aggregation of the same fixed-point numbers gives."""
    layout = clear[alive[0]][0]
    total = np.zeros(layout.length, dtype=np.uint64)
    for site in alive:
        total += clear[site][1]
    mean = layout.decoded(total) / sum(layout.weights[site] for site in alive)
    update = Admitted("all", 1.0, Combined(layout.tensors(mean)))
    document, _ = plan_of(plan)
    base = Base(document.base_model, None)
    return next_state(simulation.coordinator, simulation.protocol, document, base, [update], len(alive)).model


def watched_encoding(monkeypatch: pytest.MonkeyPatch) -> Clear:
    """What each hospital encodes last from now on, before it is masked."""
    seen: Clear = {}
    encoded = Layout.encoded

    def watched(layout: Layout, update: dict[str, np.ndarray], site: str) -> Any:
        found = encoded(layout, update, site)
        seen[site] = (layout, found.copy())
        return found

    monkeypatch.setattr(Layout, "encoded", watched)
    return seen
