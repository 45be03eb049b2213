"""Opening sealed evaluations: performance is seen only when the diagnostics declared beforehand hold."""

from __future__ import annotations

from contracts.errors import ConsiliumError
from contracts.evaluation import EvaluationReport, SealedReport
from contracts.plan import RoundPlan
from contracts.sealing import SealKey
from contracts.signing import open_signed, parse_signed
from tasks.answers import Answers
from tasks.federation import load_federation
from tasks.home import CoordinatorHome


def seal_key(home: CoordinatorHome) -> SealKey:
    """The key to which hospitals seal their evaluations; made on first use."""
    home.seal_key.parent.mkdir(parents=True, exist_ok=True)
    return SealKey.load_or_make(home.seal_key)


def unseal(
    home: CoordinatorHome, plan: RoundPlan, plan_digest: str, answers: Answers[SealedReport]
) -> Answers[EvaluationReport]:
    """Open the reports inside; one that is not what its envelope says is refused with its number."""
    federation, key = load_federation(home), seal_key(home)
    opened: Answers[EvaluationReport] = Answers(refused=dict(answers.refused), silent=list(answers.silent))
    for site, envelope in answers.documents.items():
        try:
            if (envelope.site, envelope.plan) != (site, plan_digest):
                raise ConsiliumError("E504")
            text = key.open(envelope.sealed, plan_digest)
            report = open_signed(text, EvaluationReport, site, federation.member(site).sign_key)
            same = ("study", "protocol_hash", "plan", "site", "cohort", "diagnostics")
            if any(getattr(report, name) != getattr(envelope, name) for name in same):
                raise ConsiliumError("E802", f"{site}: the report inside differs from its envelope")
        except ConsiliumError as error:
            opened.refuse(site, error)
            continue
        opened.documents[site], opened.texts[site] = report, text
        opened.digests[site] = parse_signed(text).digest
    return opened
