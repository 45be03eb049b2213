"""The two exchanges of a release, evaluation and verification: their plans, and the reports on them."""

from __future__ import annotations

from typing import Literal

from contracts.errors import ConsiliumError
from contracts.evaluation import EvaluationReport
from contracts.plan import RoundPlan
from tasks.answers import open_stored
from tasks.federation import load_federation
from tasks.head import Head, advance, load_protocol
from tasks.home import CoordinatorHome
from tasks.roster import eligible_sites, make_plan
from tasks.rounds import OpenedRound, roster_of, waiting
from tasks.store import load_plan, plan_text, save_plan

ENDED = ("released", "rejected")


def open_exchange(
    home: CoordinatorHome,
    head: Head,
    kind: Literal["evaluation", "verification"],
    present: set[str],
    *,
    artefact: str | None = None,
    anew: bool = False,
) -> OpenedRound:
    """Resume a planned exchange while its roster can reach the quorum; else plan it anew.

    Args:
        artefact: digest of the exported model, for verification.
        anew: plan it anew in any case.

    Raises:
        ConsiliumError: E506, fewer than `min_sites` hospitals are there.
    """
    protocol = load_protocol(home, head.study)
    planned = head.evaluation if kind == "evaluation" else head.verification
    eligible, absent = eligible_sites(home, protocol, present)
    attempt = 1
    if planned is not None:
        plan = load_plan(home, head.study, planned)
        reachable = sorted(set(roster_of(plan)) & set(eligible))
        if len(reachable) >= protocol.min_sites and plan.artefact == artefact and not anew:
            advance(home, head, plan=planned)
            return OpenedRound(plan_text(home, head.study, planned), reachable, f"{kind} resumed")
        attempt = plan.attempt + 1
    if len(eligible) < protocol.min_sites:
        raise ConsiliumError("E506", waiting(protocol, head.round, sorted(eligible), absent))
    plan = make_plan(home, protocol, head, kind, eligible, attempt=attempt, artefact=artefact)
    digest = save_plan(home, plan)
    advance(home, head, plan=digest, reason=None, **{kind: digest})
    return OpenedRound(plan_text(home, head.study, digest), roster_of(plan), f"{kind} opened")


def check_report(report: EvaluationReport, plan: RoundPlan, digest: str, site: str) -> None:
    """Check that a report answers this plan, about its model, for its own hospital.

    Raises:
        ConsiliumError: E504.
    """
    expected = {
        "study": plan.study,
        "protocol_hash": plan.protocol_hash,
        "plan": digest,
        "kind": plan.kind,
        "model": plan.artefact or plan.base_model,
        "site": site,
    }
    for name, value in expected.items():
        if getattr(report, name) != value:
            raise ConsiliumError("E504", f"{site}: {name} is {getattr(report, name)!r}, expected {value!r}")


def stored_reports(home: CoordinatorHome, study: str, digest: str) -> list[EvaluationReport]:
    """The reports that answered a plan, by site, with their signatures checked again."""
    federation, plan = load_federation(home), load_plan(home, study, digest)
    folder = home.study(study) / "answers" / digest
    return [
        open_stored(federation, path.stem, path.read_text(), EvaluationReport, plan)[0]
        for path in sorted(folder.glob("*.json"))
    ]
