"""From a judged model to a release candidate: export it, have every site verify it, decide what is a fact."""

from __future__ import annotations

from dataclasses import replace

from contracts.canonical import digest as digest_of
from contracts.errors import ConsiliumError
from contracts.evaluation import EvaluationReport
from contracts.release import GateResult
from contracts.study import StudyProtocol, threshold_of
from release.directory import write_candidate
from release.export import export_onnx, model_metadata, parity, require_parity
from release.facts import ReleaseFacts, largest_epsilon
from release.golden import golden_rows
from tasks.answers import gather
from tasks.evaluation import end_without_release
from tasks.events import events_until, read_events, record_event
from tasks.exchange import DirectoryExchange
from tasks.fact_gates import evidence_times, fact_verdicts
from tasks.head import Head, advance, load_head, load_protocol, now
from tasks.home import CoordinatorHome
from tasks.lineage import admitted_under, lineage_of
from tasks.release_facts import release_facts, version_of
from tasks.reports import ENDED, check_report, open_exchange, stored_reports
from tasks.rounds import OpenedRound, roster_of
from tasks.spending import site_privacy
from tasks.stopped import clear_stopped, release_folder, write_stopped
from tasks.store import get_model, load_plan, load_record, save_answer, save_record
from validation.gates import in_protocol_order, judge_facts, require


def export(home: CoordinatorHome, study: str, run_id: str, present: set[str]) -> OpenedRound:
    """Export the final model to ONNX, check it against the trained one, and plan its verification.

    Raises:
        ConsiliumError: E603, the export disagrees with the trained model; E506, too few hospitals.
    """
    head, protocol = load_head(home, study), load_protocol(home, study)
    if head.status in ENDED:
        return OpenedRound(plan=None, reason=f"study {study} is {head.status}")
    record = load_record(home, study, "evaluation")
    if head.model is None or head.evaluation is None or record["model"] != head.model:
        raise ConsiliumError("E706", f"study {study} has not been judged")
    require([GateResult.model_validate(gate) for gate in record["gates"]])
    model = get_model(home, protocol, head.model)
    target = release_folder(home, study) / "model.onnx"
    target.parent.mkdir(parents=True, exist_ok=True)
    privacy = site_privacy(home, protocol, stored_reports(home, study, head.evaluation))
    threshold = threshold_of(protocol, head.threshold)
    sheets = admitted_under(home, protocol, load_plan(home, study, head.evaluation))
    version, _ = version_of(home, protocol, lineage_of(home, protocol, sheets))
    facts = model_metadata(
        protocol,
        release_id=f"{protocol.product_name}@v{version}",
        model=head.model,
        epsilon=largest_epsilon(protocol, privacy),
        threshold=threshold,
    )
    export_onnx(model, protocol, target, facts)
    _, rows = golden_rows(protocol)
    require_parity(parity(model, target, rows, threshold))
    artefact = DirectoryExchange(home.exchange).put(target)
    record_event(home, study, "exported", artefact, model=head.model)
    return open_exchange(home, head, "verification", present, artefact=artefact)


def collect_verification(
    home: CoordinatorHome,
    study: str,
    run_id: str,
    results: dict[str, str | None],
    triggered_by: str | None = None,
) -> str | None:
    """Check every hospital's verification, write the candidate and return the digest to approve.

    Collected again from the same reports it is the same candidate, so that a sign-off stays valid. None when
    the study is released or rejected: there is nothing to approve then.

    Args:
        triggered_by: the Airflow user who started the release run; they may not sign off.

    Raises:
        ConsiliumError: E601, E602, a gate on a fact stops the study; E603, the exported model disagrees at a
            hospital; E506, too few reports.
    """
    head, protocol = load_head(home, study), load_protocol(home, study)
    if head.status in ENDED:
        return None
    if head.verification is None or head.evaluation is None or head.model is None:
        raise ConsiliumError("E706", f"study {study} has no export to verify")
    verification = _verified_reports(home, protocol, head.verification, results)
    answered = {report.site: digest_of(report) for report in verification}
    key = digest_of({"plan": head.verification, "reports": answered})
    record_event(home, study, "verified", key, plan=head.verification, reports=dict(answered))
    collected = next(e.time for e in read_events(home, study) if (e.event, e.key) == ("verified", key))
    # A hospital's clock may be ahead of the coordinator's: the later of both is when all had verified.
    verified = max([collected, *(report.created for report in verification)])
    facts = release_facts(
        home,
        protocol,
        gates=[GateResult.model_validate(g) for g in load_record(home, study, "evaluation")["gates"]],
        created=verified,
        verification=verification,
        verified=verified,
        triggered_by=triggered_by,
        events=events_until(home, study, "verified", key),
    )
    facts = replace(facts, created=max([verified, *evidence_times(facts.evidence)]))
    facts = _decided(home, head, facts)
    for report in verification:
        if report.parity is None:
            raise ConsiliumError("E603", f"{report.site} reports no parity")
        require_parity(report.parity, report.site)
    folder = release_folder(home, study)
    manifest = write_candidate(folder / "candidate", facts, folder / "model.onnx")
    candidate = manifest.candidate_digest
    clear_stopped(home, study)
    record_event(home, study, "candidate", candidate, version=manifest.version, triggered_by=triggered_by)
    advance(home, head, plan=None, candidate=candidate, reason=None)
    return candidate


def _verified_reports(
    home: CoordinatorHome, protocol: StudyProtocol, digest: str, results: dict[str, str | None]
) -> list[EvaluationReport]:
    """Open the reports on the verification's plan, keep those that answer it, and record who did not.

    A hospital that is silent now but delivered under this plan before has delivered; one that refuses not.
    """
    plan = load_plan(home, protocol.study, digest)
    folder = home.study(protocol.study) / "answers" / digest
    before = {path.stem: path.read_text() for path in sorted(folder.glob("*.json"))}
    given = {site: text for site, text in results.items() if text}
    answers = gather(home, plan, {**before, **given}, EvaluationReport)
    for site, report in list(answers.documents.items()):
        try:
            check_report(report, plan, digest, site)
        except ConsiliumError as error:
            answers.refuse(site, error)
            continue
        save_answer(home, protocol.study, digest, site, answers.texts[site])
    record = {
        "study": protocol.study,
        "protocol_hash": protocol.hash,
        "plan": digest,
        "expected": roster_of(plan),
        "verified": sorted(answers.documents),
        "refused": answers.reasons(),
        "silent": answers.silent,
        "time": now(),
    }
    save_record(home, protocol.study, "verification", record)
    if len(answers.documents) < protocol.min_sites:
        raise ConsiliumError("E506", f"verification: {answers.summary()}")
    return list(answers.documents.values())


def _decided(home: CoordinatorHome, head: Head, facts: ReleaseFacts) -> ReleaseFacts:
    """Decide the gates on facts.

    One that failed ends the study as any other does. One that could not be decided (a hospital is silent, the
    scan is too old) leaves it as it was, without a candidate: what is missing can be brought, and nothing
    about the model is learnt or chosen by asking again.

    Raises:
        ConsiliumError: E601, E602.
    """
    protocol = facts.protocol
    decided = judge_facts(protocol, fact_verdicts(home, facts))
    facts = replace(facts, gates=in_protocol_order(protocol, facts.gates, decided))
    try:
        require(decided)
    except ConsiliumError as stopped:
        write_stopped(home, facts)
        if stopped.number == "E601":
            end_without_release(home, head, stopped)
        else:
            advance(home, head, plan=None, candidate=None, reason=str(stopped)[:500])
        raise
    return facts
