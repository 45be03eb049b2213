"""Between the two hops of an exchange under masks: who sent a vector, and the one request to unmask."""

from __future__ import annotations

from contracts.plan import RoundPlan
from contracts.study import StudyProtocol
from contracts.update import UpdateEnvelope
from durable.files import locked
from strategies.secure import context_of, is_masked, least_alive
from tasks.account import epsilon_of
from tasks.admission import admit
from tasks.answers import Answers, gather
from tasks.head import Head, load_head, load_protocol
from tasks.home import CoordinatorHome
from tasks.mask_keys import learn_keys
from tasks.rounds import OpenedRound, note_shown_ledgers
from tasks.secure import make_request, stored_request
from tasks.store import load_plan, load_record, save_answer, save_record


def open_unmasking(
    home: CoordinatorHome, study: str, run_id: str, results: dict[str, str | None]
) -> OpenedRound:
    """Admit the masked vectors and, if they are enough, make the plan's one request to unmask their sum.

    Called again, whatever arrived meanwhile, it returns the request that it made first: a vector that came
    late stays under its masks and is reported.

    Args:
        results: each site's signed string (update or refusal), or None for silence.

    Returns:
        The signed request and who is to answer it; nothing for an exchange without masks, or too few vectors:
        `close_round` says then what becomes of the round.

    Raises:
        ConsiliumError: E102; E432, a roster that cannot be summed.
    """
    load_head(home, study)  # an unknown study gets no folder
    with locked(home.study(study) / ".close.lock"):
        head, protocol = load_head(home, study), load_protocol(home, study)
        if head.plan is None or head.runs.get(run_id) != head.round or head.status != "running":
            return OpenedRound(plan=None, reason=f"round {head.round} is not open for this run")
        plan = load_plan(home, study, head.plan)
        if not is_masked(protocol, plan.kind):
            return OpenedRound(plan=None, reason=f"round {head.round} is not summed under masks")
        return _ask(home, protocol, head, plan, head.plan, run_id, results)


def _ask(
    home: CoordinatorHome,
    protocol: StudyProtocol,
    head: Head,
    plan: RoundPlan,
    plan_digest: str,
    run_id: str,
    results: dict[str, str | None],
) -> OpenedRound:
    stored = load_record(home, plan.study, str(head.round))
    if stored["status"] in ("closed", "lost"):
        return OpenedRound(plan=None, reason=f"round {head.round} is {stored['status']}")
    answers = gather(home, plan, results, UpdateEnvelope)
    trained = list(answers.documents)
    note_shown_ledgers(home, answers.documents)
    learn_keys(home, protocol, answers.documents, results)
    admit(home, protocol, plan, plan_digest, answers)
    context, needed = context_of(protocol, plan, plan_digest), least_alive(protocol, plan)
    asked = stored_request(home, plan.study, plan_digest)
    if asked is not None or len(answers.documents) >= needed:
        asked = make_request(home, plan, context, answers.documents, answers.texts)
    else:
        _keep(home, plan, plan_digest, answers)
    alive = asked[0].alive if asked else []
    delivered = sorted(answers.documents)
    record = {
        **stored,
        "trained": trained,
        "refused": answers.reasons(),
        "silent": answers.silent,
        "aggregation": "secure",
        "secure": {
            "run": run_id,
            "threshold": context.threshold,
            "delivered": delivered,
            "alive": alive,
            "dead": asked[0].dead if asked else [],
            "late": sorted(set(delivered) - set(alive)) if asked else [],
            "request": asked[1] if asked else None,
            "epsilon": epsilon_of(protocol, list(answers.documents.values())) if delivered else None,
        },
    }
    save_record(home, plan.study, str(head.round), record)
    if asked is None:
        return OpenedRound(plan=None, reason=f"{len(delivered)} masked updates, at least {needed} needed")
    return OpenedRound(asked[2], alive, f"round {head.round}: {len(alive)} of {len(plan.roster)} to unmask")


def _keep(home: CoordinatorHome, plan: RoundPlan, plan_digest: str, answers: Answers[UpdateEnvelope]) -> None:
    """Keep what came, although nothing is opened: it is what the hospitals signed that they spent."""
    for site in answers.documents:
        save_answer(home, plan.study, plan_digest, site, answers.texts[site])
