"""What runs at a hospital: intake, train, unmask, evaluate. Each returns one signed string, or refuses.

A step reads top to bottom: open the plan with the coordinator's pinned key, look into the outbox, ask for
consent, read the frozen cohort, reserve privacy, compute, keep, send. Nothing here imports Airflow.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from contracts.enrolment import COORDINATOR, fingerprint
from contracts.errors import ConsiliumError
from contracts.evaluation import EvaluationReport
from contracts.fields import StudyName
from contracts.masking import MaskKey, UnmaskRequest, UnmaskShares
from contracts.plan import RoundPlan
from contracts.schedule import last_before_folds, slot_at
from contracts.signing import open_signed, parse_signed
from contracts.study import StudyProtocol
from contracts.update import UpdateEnvelope
from contracts.version import CODE_VERSION
from durable.files import read_json, write_json
from site_runtime.answers import check_order
from site_runtime.cohort import read_frozen
from site_runtime.config import SiteConfig, load_site
from site_runtime.consent import check_consent, load_approved
from site_runtime.egress import refuse, send, send_sealed
from site_runtime.exchange import Exchange
from site_runtime.folds import check_fold
from site_runtime.home import SiteHome
from site_runtime.masking import answered_plan, bind_request, open_masks, unmask_shares
from site_runtime.outbox import DOCUMENT, LEDGER, TENSORS, exclusively, finished, keep, restore_state
from site_runtime.plan_checks import check_deadline, check_roster
from site_runtime.policy import check_policy, sheet_path
from site_runtime.preflight import check_budget, check_layers, check_promise, check_space

Asked = TypeVar("Asked", RoundPlan, UnmaskRequest)

UPDATES = ("statistics", "training", "histogram", "local")  # kinds of plan that an update answers


class SiteRefused(Exception):
    """A step refused. `document` is the signed `Refusal`, the only thing that may leave."""

    def __init__(self, number: str, document: str) -> None:
        super().__init__(number)
        self.number = number
        self.document = document


def intake(home: SiteHome, study: str) -> str:
    """Read the source, build and freeze the cohort, and publish a signed `DataSheet`.

    Raises:
        SiteRefused: the hospital's refusal; the detail is in its own log.
    """
    from site_runtime.intake import run_intake

    with _refusing(home, study, "intake", None):
        config = load_site(home)
        check_space(home)
        protocol = load_approved(home, study)
        check_policy(home, config, protocol, "intake")
        check_promise(config, protocol)
        check_layers(protocol)
        check_budget(home, config, protocol)
        sheet = run_intake(home, study, protocol)
        text = send(home, config, sheet)
        noted = {"digest": parse_signed(text).digest, "cohort": sheet.cohort, "policy": sheet.policy}
        write_json(sheet_path(home, study), noted)
        return text


def train(home: SiteHome, plan: str, exchange: Exchange) -> str:
    """Answer a statistics, training, histogram or local plan with a signed `UpdateEnvelope`.

    Asked again for the same plan, it sends the same update again and spends nothing.

    Raises:
        SiteRefused: the hospital's refusal.
    """
    from site_runtime.training import make_update

    return _answer(home, plan, exchange, "train", UPDATES, UpdateEnvelope, make_update)


def unmask(home: SiteHome, request: str, exchange: Exchange) -> str:
    """Answer the request to unmask a sum that this site's masked vector is in, with `UnmaskShares`.

    Asked the same again, it sends the same again; another request for the exchange is refused, for ever.

    Raises:
        SiteRefused: the hospital's refusal.
    """
    study, claimed_digest, _ = _claimed(request)
    with _refusing(home, study, "unmask", claimed_digest):
        config = load_site(home)
        asked, asked_digest = open_coordinators(home, request, UnmaskRequest)
        protocol = load_approved(home, asked.study)
        check_consent(home, config, asked.study, asked.protocol_hash)
        masks = open_masks(home, config.site, protocol)
        with exclusively(home, asked_digest):
            if finished(home, asked_digest) is None:
                plan = answered_plan(masks, asked)
                bind_request(masks, plan, asked, asked_digest)
                shares = unmask_shares(masks, plan, asked, asked_digest, exchange)
                keep(home, asked_digest, shares, None, {})
        text = (home.outbox(asked_digest) / DOCUMENT).read_bytes()
        return send(home, config, UnmaskShares.model_validate_json(text))


def evaluate(home: SiteHome, plan: str, exchange: Exchange) -> str:
    """Answer an evaluation or verification plan with a signed `EvaluationReport` on the holdout.

    Raises:
        SiteRefused: the hospital's refusal.
    """
    from site_runtime.evaluator import make_report

    stage = "verify" if _claimed(plan)[2] == "verification" else "evaluate"
    kinds = ("evaluation", "verification")
    return _answer(home, plan, exchange, stage, kinds, EvaluationReport, make_report)


Work = Callable[[SiteHome, SiteConfig, StudyProtocol, RoundPlan, str, Exchange], None]


def _answer(
    home: SiteHome,
    text: str,
    exchange: Exchange,
    stage: str,
    kinds: tuple[str, ...],
    document_type: type[UpdateEnvelope] | type[EvaluationReport],
    work: Work,
) -> str:
    """Do the work of a plan once, and send its result as often as asked."""
    from site_runtime.training import settle

    study, claimed_digest, _ = _claimed(text)
    with _refusing(home, study, stage, claimed_digest):
        config = load_site(home)
        plan, plan_digest = open_coordinators(home, text, RoundPlan)
        if plan.kind not in kinds:
            raise ConsiliumError("E802", f"plan of kind {plan.kind!r}, expected one of {kinds}")
        protocol = load_approved(home, plan.study)
        check_policy(home, config, protocol, plan.kind, plan.protocol_hash)
        with exclusively(home, plan.study):  # plans that come at once are answered one after the other
            if finished(home, plan_digest) is None:
                check_space(home)
                check_plan(home, config, protocol, plan, plan_digest)
                check_promise(config, protocol)
                check_layers(protocol)
                work(home, config, protocol, plan, plan_digest, exchange)
            if document_type is UpdateEnvelope:
                settle(home, config, protocol, plan, plan_digest)
            restore_state(home, protocol, plan.round, plan_digest, plan.fold)
        check_consent(home, config, plan.study, plan.protocol_hash)  # it may have been withdrawn meanwhile
        folder = home.outbox(plan_digest)
        for name in (TENSORS, LEDGER):
            if (folder / name).exists():
                exchange.put(folder / name, plan_digest)
        document = document_type.model_validate_json((folder / DOCUMENT).read_bytes())
        if isinstance(document, EvaluationReport) and plan.kind == "evaluation":
            return send_sealed(home, config, plan, plan_digest, document)
        return send(home, config, document)


def _claimed(text: str) -> tuple[str, str | None, str]:
    """Study, digest and kind that an unverified plan claims, for the refusal if it comes to one."""
    try:
        signed = parse_signed(text)
        study, kind = signed.document.get("study"), signed.document.get("kind")
        return TypeAdapter(StudyName).validate_python(study), signed.digest, str(kind)
    except (ConsiliumError, ValidationError):
        return "unknown", None, ""


def open_coordinators(home: SiteHome, text: str, kind: type[Asked]) -> tuple[Asked, str]:
    """Verify what the coordinator asks, by its pinned key and no other, and return it with its digest.

    Raises:
        ConsiliumError: E801; E802, malformed; E814, it names another key than the pinned one, as after a
            change whose kit was not taken here yet; E803, it is no word of the coordinator's at all.
    """
    pinned, signed = coordinator_public(home), parse_signed(text)
    if signed.signer == COORDINATOR and signed.key != pinned:
        raise ConsiliumError("E814", f"by {fingerprint(signed.key)}, pinned is {fingerprint(pinned)}")
    return open_signed(text, kind, COORDINATOR, pinned), signed.digest


def coordinator_public(home: SiteHome) -> str:
    """The coordinator's key, as it was pinned when this hospital joined, or followed since.

    Raises:
        ConsiliumError: E801.
    """
    try:
        return home.coordinator_key.read_text().strip()
    except OSError as error:
        raise ConsiliumError("E801", f"{home.coordinator_key}: {error}") from error


def check_plan(
    home: SiteHome, config: SiteConfig, protocol: StudyProtocol, plan: RoundPlan, plan_digest: str
) -> None:
    """Check that a plan fits the approved protocol, this site and this code.

    Raises:
        ConsiliumError: E301, another protocol or deadline; E306, the roster; E305, the code is not accepted;
            E511, the plan was made for an earlier cohort than the one here; E504, an exchange that the
            protocol does not plan; E324, an exchange before the newest that was answered.
    """
    if plan.protocol_hash != protocol.hash or plan.rounds != protocol.rounds:
        raise ConsiliumError("E301", f"plan for protocol {plan.protocol_hash}, approved {protocol.hash}")
    entry = plan.entry(config.site)
    if entry is None or entry.declared_size != config.governance.declared_size:
        raise ConsiliumError("E306", f"site {config.site!r} with its declared size is not on the roster")
    path = sheet_path(home, plan.study)
    sheet = read_json(path) if path.exists() else {}
    if sheet.get("digest") != entry.data_sheet:
        raise ConsiliumError("E511", f"the plan names data sheet {entry.data_sheet}, not the newest one here")
    if read_frozen(home, protocol).digest != sheet["cohort"]:
        # An intake froze another one and was interrupted before its sheet left.
        raise ConsiliumError("E210", "the frozen cohort is not the newest data sheet's: run intake again")
    if CODE_VERSION not in plan.code_versions:
        raise ConsiliumError("E305", f"code {CODE_VERSION}, the plan accepts {plan.code_versions}")
    check_schedule(home, config, protocol, plan)
    check_roster(protocol, plan)
    check_deadline(protocol, plan)
    check_order(home, protocol, plan, plan_digest)


def check_schedule(home: SiteHome, config: SiteConfig, protocol: StudyProtocol, plan: RoundPlan) -> None:
    """Check that the protocol plans this exchange under this number, and a fold for this site.

    An evaluation belongs behind the training: the holdout answers once (E605).

    Raises:
        ConsiliumError: E504.
    """
    slot = slot_at(protocol, plan.round)
    if slot is None:
        raise ConsiliumError("E504", f"exchange {plan.round}, which is not in the protocol's schedule")
    if plan.kind not in UPDATES:
        if plan.fold is not None:
            raise ConsiliumError("E504", f"a {plan.kind} plan without {plan.fold!r}")
        if plan.round < last_before_folds(protocol):
            raise ConsiliumError("E504", f"a {plan.kind} plan at exchange {plan.round}, before training ends")
    elif (slot.kind, slot.fold is None) != (plan.kind, plan.fold is None):
        raise ConsiliumError("E504", f"a {plan.kind} plan for exchange {plan.round}, which is {slot.purpose}")
    elif slot.fold is not None:
        check_fold(home, protocol, plan, slot, config.site)


@contextlib.contextmanager
def _refusing(home: SiteHome, study: str, stage: str, plan: str | None) -> Iterator[None]:
    """Turn every failure into a signed refusal; what it was stays in the hospital's own log."""
    try:
        yield
    except Exception as error:
        site = home.root.name
        with contextlib.suppress(ConsiliumError):
            site = load_site(home).site
        number = error.number if isinstance(error, ConsiliumError) else "E899"
        # `from None`: a traceback in a task's log could carry values of the cohort.
        mask = _renewed_key(home, site, study) if number in ("E513", "E514") else None
        raise SiteRefused(number, refuse(home, site, error, study, stage, plan, mask)) from None


def _renewed_key(home: SiteHome, site: str, study: str) -> MaskKey | None:
    """The key for the next exchange: whoever's envelope with it got lost is not to stay out for good."""
    with contextlib.suppress(ConsiliumError):
        return open_masks(home, site, load_approved(home, study)).next_key()
    return None
