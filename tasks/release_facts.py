"""Everything that a release is made from, gathered at one place from the study's records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from contracts.errors import ConsiliumError
from contracts.evaluation import EvaluationReport
from contracts.release import Change, GateResult, Lineage
from contracts.study import StudyProtocol
from contracts.version import CODE_VERSION
from durable.files import read_json
from release.facts import ReleaseFacts
from tasks.evidence import load_evidence
from tasks.head import load_head
from tasks.home import CoordinatorHome
from tasks.lineage import admitted_under, components, lineage_of
from tasks.regulatory import load_regulatory
from tasks.reports import stored_reports
from tasks.roster import study_noise
from tasks.spending import shown_ledgers, site_privacy
from tasks.store import load_plan, load_record, sheet_text
from tasks.versions import previous_release, version_and_change
from tasks.withdrawals import withdrawn_since
from validation.pooling import metrics_tree


def release_facts(
    home: CoordinatorHome,
    protocol: StudyProtocol,
    *,
    gates: Sequence[GateResult],
    created: str,
    verification: Sequence[EvaluationReport] = (),
    verified: str | None = None,
    triggered_by: str | None = None,
    events: bytes = b"",
) -> ReleaseFacts:
    """Gather the facts of the study's release, or of one that was stopped at its gates.

    Args:
        gates: as far as they are decided, in the protocol's order.
        created: UTC, of the candidate.
        verification: every hospital's report on the exported model; none before it was exported.
        verified: UTC, when the last hospital had verified it.
        triggered_by: the Airflow user who started the release run.
        events: the event log up to this candidate.

    Raises:
        ConsiliumError: E706, the study has no evaluation; E511, a data sheet of the lineage is not here;
            E710, a major change that was not planned.
    """
    study = protocol.study
    head = load_head(home, study)
    if head.evaluation is None or head.model is None:
        raise ConsiliumError("E706", f"study {study} has no evaluation")
    evaluation = stored_reports(home, study, head.evaluation)
    sheets = admitted_under(home, protocol, load_plan(home, study, head.evaluation))
    lineage = lineage_of(home, protocol, sheets)
    previous, (version, change) = previous_release(home, protocol), version_of(home, protocol, lineage)
    regulatory, statement = load_regulatory(home, protocol)
    noise = study_noise(home, protocol)
    achievable = home.study(study) / "achievable.json"
    return ReleaseFacts(
        protocol=protocol,
        version=version,
        code_version=CODE_VERSION,
        rounds=protocol.rounds,
        model=head.model,
        created=created,
        evaluation=evaluation,
        metrics=metrics_tree(evaluation),
        gates=list(gates),
        site_privacy=site_privacy(home, protocol, evaluation),
        ledgers=shown_ledgers(home, protocol, evaluation),
        verification=list(verification),
        training_noise=noise.training if noise else None,
        statistics_noise=noise.statistics if noise else None,
        histogram_noise=noise.histogram if noise else None,
        threshold=head.threshold,
        threshold_found=threshold_found(home, protocol),
        achievable_auroc=read_json(achievable) if achievable.exists() else {},
        lineage=lineage,
        change=change,
        previous=previous.manifest if previous else None,
        verified=verified,
        triggered_by=triggered_by,
        data_sheets={site: sheet_text(home, study, digest) for site, digest in sheets.items()},
        diagnostics={r.site: r.diagnostics for r in evaluation if r.diagnostics},
        events=events,
        evidence=load_evidence(home),
        components=components(),
        regulatory=regulatory,
        regulatory_statement=statement,
        withdrawn=withdrawn_since(home, study),
    )


def version_of(home: CoordinatorHome, protocol: StudyProtocol, lineage: Lineage) -> tuple[str, Change]:
    """SemVer of the release at hand, and what changed since the product's release before.

    Raises:
        ConsiliumError: E710, a major change that was not planned.
    """
    return version_and_change(home, protocol, lineage, [p.site for p in site_privacy(home, protocol)])


def threshold_found(home: CoordinatorHome, protocol: StudyProtocol) -> dict[str, Any]:
    """What the histogram's record says of the locked threshold; empty when the protocol fixes it."""
    if protocol.threshold_rule is None:
        return {}
    return dict(load_record(home, protocol.study, str(protocol.last_round))["threshold"])
