"""Opening sealed evaluations: performance is seen only when the diagnostics declared beforehand hold.

**What happens when they do not hold** (E606). Nobody has seen a number then, so the study stays `finished`,
and its evaluation may be repeated under a new plan: a hospital that was silent may deliver, one that ran
another intake since may restore the cohort that it had frozen. A holdout that was changed after its
hospital's first round never counts, whatever the reason: it was chosen when a model existed that had been
trained on this hospital's patients. What a frozen holdout says of itself (events, prevalence, missing values)
is the same at every repetition, so that repeating until it fits is no way around. Repeating without a
hospital is one, as far as the quorum allows. Nobody has seen a number then; what it said stays in its
envelope, and every gate names a hospital that took part and did not report. The reports stay sealed in the
study's folder.
"""

from __future__ import annotations

from contracts.errors import ConsiliumError
from contracts.evaluation import EvaluationReport, SealedReport
from contracts.plan import RoundPlan
from contracts.sealing import SealKey
from contracts.study import StudyProtocol
from durable.files import write_atomic
from release.events import frozen_cohorts
from tasks.answers import Answers, gather, open_stored
from tasks.events import read_events
from tasks.federation import load_federation
from tasks.head import now
from tasks.home import CoordinatorHome
from tasks.store import save_record
from validation.diagnostics import check_diagnostics, require_diagnostics


def seal_key(home: CoordinatorHome) -> SealKey:
    """The key to which hospitals seal their evaluations; made on first use."""
    home.seal_key.parent.mkdir(parents=True, exist_ok=True)
    return SealKey.load_or_make(home.seal_key)


def gather_sealed(
    home: CoordinatorHome, plan: RoundPlan, digest: str, results: dict[str, str | None]
) -> Answers[SealedReport]:
    """Open the envelopes on a plan and keep them, sealed, with the study.

    A hospital that is silent now but delivered under this plan before has delivered; one that refuses has
    not. An envelope that speaks for another study, plan or hospital is refused with E504.
    """
    folder = home.study(plan.study) / "sealed" / digest
    before = {path.stem: path.read_text() for path in sorted(folder.glob("*.json"))}
    answers = gather(home, plan, results, SealedReport, before)
    expected = (plan.study, plan.protocol_hash, digest)
    for site, envelope in list(answers.documents.items()):
        if (envelope.study, envelope.protocol_hash, envelope.plan, envelope.site) != (*expected, site):
            answers.refuse(site, ConsiliumError("E504"))
            continue
        write_atomic(folder / f"{site}.json", answers.texts[site].encode())
    return answers


def require_holdouts(
    home: CoordinatorHome, protocol: StudyProtocol, digest: str, answers: Answers[SealedReport]
) -> None:
    """Check, without opening anything, that the holdouts may decide about the model.

    Args:
        digest: of the evaluation's plan.
        answers: sealed reports; every hospital's cohort must be the one that it was admitted with before the
            first exchange that asked it.

    Raises:
        ConsiliumError: E606, naming the check and the hospital; E712, the event log was changed.
    """
    admitted = frozen_cohorts(read_events(home, protocol.study))
    diagnostics = {site: envelope.diagnostics for site, envelope in answers.documents.items()}
    frozen = {site: e.cohort == admitted.get(site) for site, e in answers.documents.items()}
    found = check_diagnostics(protocol, diagnostics, frozen)
    record = {
        "study": protocol.study,
        "protocol_hash": protocol.hash,
        "plan": digest,
        "diagnostics": {site: bits.model_dump(mode="json") for site, bits in diagnostics.items()},
        "frozen": frozen,
        "checks": [check.model_dump(mode="json") for check in found],
        "refused": answers.reasons(),
        "silent": answers.silent,
        "time": now(),
    }
    save_record(home, protocol.study, "diagnostics", record)
    require_diagnostics(protocol, diagnostics, frozen)


def unseal(
    home: CoordinatorHome, plan: RoundPlan, plan_digest: str, answers: Answers[SealedReport]
) -> Answers[EvaluationReport]:
    """Open the reports inside; one that is not what its envelope says is refused with its number."""
    federation, key = load_federation(home), seal_key(home)
    opened: Answers[EvaluationReport] = Answers(refused=dict(answers.refused), silent=list(answers.silent))
    for site, envelope in answers.documents.items():
        try:
            text = key.open(envelope.sealed, plan_digest)
            report, digest = open_stored(federation, site, text, EvaluationReport, plan)
            same = ("study", "protocol_hash", "plan", "site", "cohort", "diagnostics")
            if any(getattr(report, name) != getattr(envelope, name) for name in same):
                raise ConsiliumError("E802", f"{site}: the report inside differs from its envelope")
        except ConsiliumError as error:
            opened.refuse(site, error)
            continue
        opened.documents[site], opened.texts[site], opened.digests[site] = report, text, digest
    return opened
