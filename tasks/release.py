"""From a finished study to a release: evaluate at every site, judge, export, verify, approve, publish.

As with rounds, every step acts on the head and on stored documents, so that a step can be repeated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from contracts.errors import ConsiliumError
from contracts.evaluation import EvaluationReport, SealedReport
from contracts.plan import RoundPlan
from contracts.release import Approval, Change, GateResult, Lineage, RoundLineage, SitePrivacy
from contracts.signing import open_signed
from contracts.study import HospitalPrivacy, PatientPrivacy, StudyProtocol, threshold_of
from contracts.version import CODE_VERSION
from durable.files import read_json
from privacy.accountant import Spend, epsilon
from privacy.calibration import spend_of
from release.directory import read_manifest, seal, write_candidate
from release.export import export_onnx, model_metadata, parity, require_parity
from release.facts import ReleaseFacts, largest_epsilon
from release.golden import golden_rows
from release.registry import register, releases
from release.verify import verified, verify_release
from tasks.answers import Answers, gather
from tasks.central import COORDINATOR
from tasks.exchange import DirectoryExchange
from tasks.federation import load_federation
from tasks.federation_ledger import federation_ledger, hospitals_privacy
from tasks.folds import exchange_records
from tasks.head import Head, advance, load_head, load_protocol, now
from tasks.home import CoordinatorHome
from tasks.ledgers import check_ledger, excerpt_bytes
from tasks.release_key import release_key
from tasks.roster import eligible_sites, make_plan, study_noise
from tasks.rounds import OpenedRound, roster_of, waiting
from tasks.sealed import unseal
from tasks.store import (
    get_model,
    load_plan,
    load_record,
    plan_text,
    save_answer,
    save_plan,
    save_record,
)
from tasks.versions import data_of, previous_release, release_folder, version_and_change
from validation.gates import judge as judge_gates
from validation.gates import require
from validation.pooling import metrics_tree

ENDED = ("released", "rejected")


def open_evaluation(home: CoordinatorHome, study: str, run_id: str, present: set[str]) -> OpenedRound:
    """Plan the evaluation of the final model on every hospital's holdout, or resume it.

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
    return _open(home, head, "evaluation", present, head.evaluation, None)


def _open(
    home: CoordinatorHome,
    head: Head,
    kind: Any,
    present: set[str],
    planned: str | None,
    artefact: str | None,
) -> OpenedRound:
    """Resume a planned exchange while its roster can reach the quorum; else plan it anew."""
    protocol = load_protocol(home, head.study)
    eligible, absent = eligible_sites(home, protocol, present)
    attempt = 1
    if planned is not None:
        plan = load_plan(home, head.study, planned)
        reachable = sorted(set(roster_of(plan)) & set(eligible))
        if len(reachable) >= protocol.min_sites and plan.artefact == artefact:
            advance(home, head, plan=planned)
            return OpenedRound(plan_text(home, head.study, planned), reachable, f"{kind} resumed")
        attempt = plan.attempt + 1
    if len(eligible) < protocol.min_sites:
        raise ConsiliumError("E506", waiting(protocol, head.round, sorted(eligible), absent))
    plan = make_plan(home, protocol, head, kind, eligible, attempt=attempt, artefact=artefact)
    digest = save_plan(home, plan)
    advance(home, head, plan=digest, **{kind: digest})
    return OpenedRound(plan_text(home, head.study, digest), roster_of(plan), f"{kind} opened")


def _collect(
    home: CoordinatorHome, protocol: StudyProtocol, digest: str, results: dict[str, str | None]
) -> tuple[RoundPlan, Answers[EvaluationReport]]:
    """Open the reports on a plan and keep those that answer it.

    Raises:
        ConsiliumError: E506, fewer than `min_sites` reports.
    """
    plan = load_plan(home, protocol.study, digest)
    if plan.kind == "evaluation":
        answers = unseal(home, plan, digest, gather(home, plan, results, SealedReport))
    else:
        answers = gather(home, plan, results, EvaluationReport)
    expected = {
        "study": plan.study,
        "protocol_hash": plan.protocol_hash,
        "plan": digest,
        "kind": plan.kind,
        "model": plan.artefact or plan.base_model,
    }
    for site, report in list(answers.documents.items()):
        try:
            if report.site != site or any(getattr(report, k) != v for k, v in expected.items()):
                raise ConsiliumError("E504")
            if plan.kind == "evaluation":
                check_ledger(home, protocol, report)
        except ConsiliumError as error:
            answers.refuse(site, error)
            continue
        save_answer(home, protocol.study, digest, site, answers.texts[site])
    if len(answers.documents) < protocol.min_sites:
        raise ConsiliumError("E506", f"{plan.kind}: {answers.summary()}")
    return plan, answers


def _stored_reports(home: CoordinatorHome, study: str, digest: str) -> list[EvaluationReport]:
    """The reports that answered a plan, by site, with their signatures checked again."""
    federation = load_federation(home)
    folder = home.study(study) / "answers" / digest
    return [
        open_signed(path.read_text(), EvaluationReport, path.stem, federation.member(path.stem).sign_key)
        for path in sorted(folder.glob("*.json"))
    ]


def judge(home: CoordinatorHome, study: str, run_id: str, results: dict[str, str | None]) -> list[GateResult]:
    """Decide the protocol's gates on the sites' reports. A gate that fails ends the study without a release.

    Of a study that is released or rejected nothing is decided again.

    Raises:
        ConsiliumError: E601, a gate failed; E602, one could not be decided; E506, too few reports.
    """
    head, protocol = load_head(home, study), load_protocol(home, study)
    if head.status in ENDED:
        return []
    if head.evaluation is None:
        raise ConsiliumError("E706", f"study {study} has no evaluation")
    plan, answers = _collect(home, protocol, head.evaluation, results)
    reports = _stored_reports(home, study, head.evaluation)
    spent = {p.site: p.epsilon_study for p in site_privacy(home, protocol, reports)}
    gates = judge_gates(protocol, reports, spent)
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
    try:
        require(gates)
    except ConsiliumError as stopped:
        advance(home, head, status="rejected", plan=None, reason=str(stopped)[:500])
        raise
    return gates


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
    target = _folder(home, study) / "model.onnx"
    target.parent.mkdir(parents=True, exist_ok=True)
    privacy = site_privacy(home, protocol, _stored_reports(home, study, head.evaluation))
    threshold = threshold_of(protocol, head.threshold)
    facts = model_metadata(
        protocol,
        release_id=f"{protocol.product_name}@v{version_of(home, protocol)[0]}",
        model=head.model,
        epsilon=largest_epsilon(protocol, privacy),
        threshold=threshold,
    )
    export_onnx(model, protocol, target, facts)
    _, rows = golden_rows(protocol)
    require_parity(parity(model, target, rows, threshold))
    artefact = DirectoryExchange(home.exchange).put(target)
    return _open(home, head, "verification", present, head.verification, artefact)


def collect_verification(
    home: CoordinatorHome, study: str, run_id: str, results: dict[str, str | None]
) -> str | None:
    """Check every hospital's verification, write the candidate and return the digest to approve.

    None when the study is released or rejected: there is nothing to approve then.

    Raises:
        ConsiliumError: E603, the exported model disagrees at a hospital; E506, too few reports.
    """
    head, protocol = load_head(home, study), load_protocol(home, study)
    if head.status in ENDED:
        return None
    if head.verification is None or head.evaluation is None or head.model is None:
        raise ConsiliumError("E706", f"study {study} has no export to verify")
    _collect(home, protocol, head.verification, results)
    verification = _stored_reports(home, study, head.verification)
    for report in verification:
        if report.parity is None:
            raise ConsiliumError("E603", f"{report.site} reports no parity")
        require_parity(report.parity, report.site)
    evaluation = _stored_reports(home, study, head.evaluation)
    record = load_record(home, study, "evaluation")
    noise = study_noise(home, protocol)
    achievable = home.study(study) / "achievable.json"
    version, change = version_of(home, protocol)
    previous = previous_release(home, protocol)
    facts = ReleaseFacts(
        protocol=protocol,
        version=version,
        change=change,
        previous=previous.manifest if previous else None,
        lineage=lineage_of(home, protocol),
        code_version=CODE_VERSION,
        rounds=protocol.rounds,
        model=head.model,
        created=now(),
        evaluation=evaluation,
        metrics=metrics_tree(evaluation),
        gates=[GateResult.model_validate(gate) for gate in record["gates"]],
        site_privacy=site_privacy(home, protocol, evaluation),
        ledgers=shown_ledgers(home, protocol, evaluation),
        verification=verification,
        training_noise=noise.training if noise else None,
        statistics_noise=noise.statistics if noise else None,
        histogram_noise=noise.histogram if noise else None,
        threshold=head.threshold,
        threshold_found=threshold_found(home, protocol),
        achievable_auroc=read_json(achievable) if achievable.exists() else {},
    )
    manifest = write_candidate(_folder(home, study) / "candidate", facts, _folder(home, study) / "model.onnx")
    advance(home, head, plan=None, candidate=manifest.candidate_digest)
    return manifest.candidate_digest


def publish(home: CoordinatorHome, study: str, run_id: str, approval: Approval) -> Path:
    """Seal the approved candidate, countersign it, and register it. Published once, however often asked.

    Raises:
        ConsiliumError: E704, there is no candidate; E705, the approval is for another one.
    """
    head, protocol = load_head(home, study), load_protocol(home, study)
    if head.candidate is None:
        raise ConsiliumError("E704", f"study {study} has no candidate")
    if head.status not in ("finished", "released"):
        raise ConsiliumError("E704", f"study {study} is {head.status}: {head.reason}")
    if approval.candidate != head.candidate:
        raise ConsiliumError("E705", f"approved {approval.candidate}, the candidate is {head.candidate}")
    key = release_key(home)
    published = published_release(home, study, head.candidate)
    if published is None:
        candidate = _folder(home, study) / "candidate"
        published = release_folder(home, protocol, read_manifest(candidate).version)
        seal(candidate, published, [approval], key, now())
    checks = verify_release(published, key.public)
    if not verified(checks):
        failed = [f"{c.name}: {c.detail}" for c in checks if c.passed is False]
        raise ConsiliumError("E701", "; ".join(failed))
    register(home.registry, published)
    if head.status != "released":
        advance(home, head, status="released", plan=None, reason=None)
    return published


def reject(home: CoordinatorHome, study: str, candidate: str) -> None:
    """End the study without a release, because the person who was asked said no to this candidate."""
    head = load_head(home, study)
    sealed = published_release(home, study, candidate)
    if head.status == "finished" and head.candidate == candidate and sealed is None:
        reason = str(ConsiliumError("E704", f"candidate {candidate} was rejected in Airflow"))
        advance(home, head, status="rejected", plan=None, reason=reason)


def published_release(home: CoordinatorHome, study: str, candidate: str) -> Path | None:
    """The published release of a candidate, if publishing was interrupted after it was sealed."""
    for release in releases(home.releases):
        if release.manifest.study == study and release.manifest.candidate_digest == candidate:
            return release.path
    return None


def version_of(home: CoordinatorHome, protocol: StudyProtocol) -> tuple[str, Change]:
    """SemVer of the release at hand, and what changed since the product's release before.

    Raises:
        ConsiliumError: E710, a major change that was not planned.
    """
    sites = [p.site for p in site_privacy(home, protocol)]
    return version_and_change(home, protocol, lineage_of(home, protocol), sites)


def lineage_of(home: CoordinatorHome, protocol: StudyProtocol) -> Lineage:
    """From which data and through which exchanges the final model came."""
    rounds = []
    for number in range(protocol.first_round, protocol.last_round + 1):
        record = load_record(home, protocol.study, str(number))
        rounds.append(
            RoundLineage(
                round=number,
                kind=record["kind"],
                plan=record["plan"],
                model=record["model"],
                updates={line["site"]: line["tensors"] for line in record["updates"]},
            )
        )
    return Lineage(data=data_of(home, protocol), rounds=rounds, environment="0" * 64)


def site_privacy(
    home: CoordinatorHome, protocol: StudyProtocol, reports: list[EvaluationReport] | None = None
) -> list[SitePrivacy]:
    """What every hospital has spent that was ever on a roster of the study, never less than is known.

    A reservation counts whether or not its update arrived. So it is the ledger that speaks, as each hospital
    showed it after training, with its evaluation; where a hospital has shown none, every plan that named it
    is counted.
    """
    federation = load_federation(home)
    named: dict[str, list[Spend]] = {}
    newest: dict[str, dict[str, Any]] = {}
    for record in exchange_records(home, protocol):
        for attempt in (*record.get("attempts", []), record):
            for site in attempt["expected"]:
                if attempt["noise_multiplier"] is not None:
                    spend = spend_of(protocol, attempt["kind"], attempt["noise_multiplier"])
                    named.setdefault(site, []).append(spend)
                else:
                    named.setdefault(site, [])
        for line in record["updates"]:
            newest[line["site"]] = line
    if isinstance(protocol.privacy, HospitalPrivacy):
        return hospitals_privacy(home, protocol, sorted(named))
    for report in reports or []:
        if report.epsilon_study is not None:
            before = newest.get(report.site, {}).get("epsilon_study", 0.0)
            if report.epsilon_study >= before - 1e-6:
                newest[report.site] = report.model_dump()
    shown = {r.site for r in reports or [] if r.epsilon_study is not None}
    found = []
    for site, spends in sorted(named.items()):
        line = newest.get(site, {})
        study, lineage = line.get("epsilon_study"), line.get("epsilon_lineage")
        if isinstance(protocol.privacy, PatientPrivacy) and site not in shown:
            most = epsilon(spends, protocol.privacy.delta, protocol.privacy.adjacency)
            study, lineage = max(study or 0.0, most), max(lineage or 0.0, most)
        found.append(
            SitePrivacy(
                site=site,
                declared_size=federation.member(site).declared_size,
                epsilon_study=study,
                epsilon_lineage=lineage,
                ledger_head=line.get("ledger_head"),
                ledger_key=federation.member(site).sign_key if site in shown else None,
            )
        )
    return found


def shown_ledgers(
    home: CoordinatorHome, protocol: StudyProtocol, reports: list[EvaluationReport]
) -> dict[str, bytes]:
    """The excerpts of the ledgers, by who keeps them: what the release's epsilon can be replayed from."""
    if isinstance(protocol.privacy, HospitalPrivacy):
        return {COORDINATOR: federation_ledger(home).excerpt(protocol.study)}
    shown = {report.site: excerpt_bytes(home, report) for report in reports}
    return {site: data for site, data in sorted(shown.items()) if data is not None}


def threshold_found(home: CoordinatorHome, protocol: StudyProtocol) -> dict[str, Any]:
    """What the histogram's record says of the locked threshold; empty when the protocol fixes it."""
    if protocol.threshold_rule is None:
        return {}
    return dict(load_record(home, protocol.study, str(protocol.last_round))["threshold"])


def _folder(home: CoordinatorHome, study: str) -> Path:
    return home.study(study) / "release"
