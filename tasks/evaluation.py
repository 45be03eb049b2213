"""From a finished study to a verdict: evaluate at every site, open what is sealed, judge the gates.

As with rounds, every step acts on the head and on stored documents, so that a step can be repeated.
"""

from __future__ import annotations

from contracts.canonical import digest as digest_of
from contracts.errors import ConsiliumError
from contracts.evaluation import EvaluationReport
from contracts.plan import RoundPlan
from contracts.release import GateResult
from contracts.study import StudyProtocol, threshold_of
from tasks.answers import Answers
from tasks.events import record_event
from tasks.head import Head, advance, load_head, load_protocol, now
from tasks.home import CoordinatorHome
from tasks.ledgers import check_ledger
from tasks.release_facts import release_facts
from tasks.reports import ENDED, check_report, open_exchange, stored_reports
from tasks.rounds import OpenedRound, roster_of
from tasks.sealed import gather_sealed, require_holdouts, unseal
from tasks.spending import site_privacy
from tasks.stopped import write_stopped
from tasks.store import load_plan, save_answer, save_record
from tasks.versions import earlier_looks, earlier_releases
from validation.gates import judge as judge_gates
from validation.gates import require
from validation.pooling import metrics_tree


def open_evaluation(home: CoordinatorHome, study: str, run_id: str, present: set[str]) -> OpenedRound:
    """Plan the evaluation of the final model on every hospital's holdout, or resume it.

    After diagnostics that did not hold (E606) it is planned anew, since a hospital's data sheet may have
    changed since: see `tasks.sealed`.

    Raises:
        ConsiliumError: E506, fewer than `min_sites` hospitals are there; E706, the study is not finished;
            E426, its threshold is not locked.
    """
    head = load_head(home, study)
    if head.status in ENDED:
        return OpenedRound(plan=None, reason=f"study {study} is {head.status}")
    if head.status != "finished" or head.model is None:
        raise ConsiliumError("E706", f"study {study} is {head.status}")
    threshold_of(load_protocol(home, study), head.threshold)  # locked before any holdout is read
    anew = head.reason is not None and head.reason.startswith("E606")
    opened = open_exchange(home, head, "evaluation", present, anew=anew)
    plan = load_head(home, study).evaluation
    assert plan is not None
    record_event(home, study, "evaluation_opened", plan, model=head.model, sites=list(opened.roster))
    return opened


def judge(home: CoordinatorHome, study: str, run_id: str, results: dict[str, str | None]) -> list[GateResult]:
    """Check the diagnostics, open the reports, and decide the protocol's gates on them.

    A gate that fails ends the study without a release; the page beside it says which, by how much and where.
    Of a study that is released or rejected nothing is decided again. Gates on facts (parity, ledgers,
    approvals, vulnerabilities) are decided after verification: `tasks.candidate`.

    Raises:
        ConsiliumError: E606, the diagnostics do not hold: everything stays sealed; E601, a gate failed; E602,
            one could not be decided; E506, too few reports.
    """
    head, protocol = load_head(home, study), load_protocol(home, study)
    if head.status in ENDED:
        return []
    if head.evaluation is None:
        raise ConsiliumError("E706", f"study {study} has no evaluation")
    plan = load_plan(home, study, head.evaluation)
    answers = _opened(home, protocol, head, plan, results)
    reports = stored_reports(home, study, head.evaluation)
    spent = {p.site: p.epsilon_study for p in site_privacy(home, protocol, reports)}
    gates = judge_gates(
        protocol,
        reports,
        spent,
        earlier_releases=earlier_releases(home, protocol),
        earlier_looks=earlier_looks(home, protocol),
    )
    record = {
        "study": study,
        "protocol_hash": protocol.hash,
        "model": head.model,
        "plan": head.evaluation,
        "expected": roster_of(plan),
        "evaluated": sorted(answers.documents),
        "refused": answers.reasons(),
        "silent": answers.silent,
        "metrics": metrics_tree(reports),
        "gates": [gate.model_dump(mode="json") for gate in gates],
        "time": now(),
    }
    save_record(home, study, "evaluation", record)
    decided = {gate.gate: gate.passed for gate in gates}
    verdict = digest_of({"plan": head.evaluation, "gates": decided})
    record_event(home, study, "judged", verdict, plan=head.evaluation, gates=decided)
    try:
        require(gates)
    except ConsiliumError as stopped:
        write_stopped(home, release_facts(home, protocol, gates=gates, created=now()))
        end_without_release(home, head, stopped)
        raise
    return gates


def end_without_release(home: CoordinatorHome, head: Head, reason: ConsiliumError) -> Head:
    """End the study: nothing of it is released, whatever is repeated afterwards."""
    key = head.candidate or head.verification or head.evaluation or head.protocol_hash
    record_event(home, head.study, "rejected", key, reason=str(reason)[:500])
    return advance(home, head, status="rejected", plan=None, reason=str(reason)[:500])


def _opened(
    home: CoordinatorHome,
    protocol: StudyProtocol,
    head: Head,
    plan: RoundPlan,
    results: dict[str, str | None],
) -> Answers[EvaluationReport]:
    """Keep the sealed reports, open them once the diagnostics hold, and keep those that answer the plan."""
    assert head.evaluation is not None
    study, digest = protocol.study, head.evaluation
    sealed = gather_sealed(home, plan, digest, results)
    if len(sealed.documents) < protocol.min_sites:
        raise ConsiliumError("E506", f"evaluation: {sealed.summary()}")
    try:
        require_holdouts(home, protocol, digest, sealed)
    except ConsiliumError as closed:
        advance(home, head, plan=None, reason=str(closed)[:500])
        raise
    record_event(home, study, "unsealed", digest, sites=sorted(sealed.documents))
    answers = unseal(home, plan, digest, sealed)
    for site, report in list(answers.documents.items()):
        try:
            check_report(report, plan, digest, site)
            check_ledger(home, protocol, report)
        except ConsiliumError as error:
            answers.refuse(site, error)
            continue
        save_answer(home, study, digest, site, answers.texts[site])
    if len(answers.documents) < protocol.min_sites:
        raise ConsiliumError("E506", f"evaluation: {answers.summary()}")
    return answers
