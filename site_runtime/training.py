"""Answering a plan with an update: reserve privacy, compute, keep, and only then commit."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from contracts.canonical import sha256
from contracts.errors import ConsiliumError
from contracts.plan import RoundPlan
from contracts.privacy import PatientPrivacy
from contracts.signing import SigningKey
from contracts.study import StudyProtocol
from contracts.update import UpdateEnvelope
from contracts.version import CODE_VERSION
from privacy.accountant import Spend, StudyCap, epsilon
from privacy.calibration import StudyNoise, calibrate, spend_of, steps_of, still_planned
from privacy.ledger import Ledger
from privacy.stream import derive_stream
from site_runtime.answers import answer_again, answered, earlier_answer, note_answer, own_noise
from site_runtime.cohort import CohortArrays, load_cohort, read_frozen
from site_runtime.config import SiteConfig
from site_runtime.exchange import Exchange
from site_runtime.home import SiteHome
from site_runtime.local import train_local
from site_runtime.masking import MaskState, masked_update, open_masks, roster_keys
from site_runtime.outbox import keep, kept_state, tensor_bytes
from strategies.interface import SiteUpdate, Tensors, shapes_of
from strategies.normalisation import site_statistics
from strategies.registry import strategy_of
from strategies.secure import is_masked
from strategies.threshold import site_histogram

CLIP = "privacy.clip"  # kept for the next round: where the clip norm of adaptive clipping stands


@dataclass(frozen=True)
class Account:
    """What an update may say of the ledger after its reservation."""

    epsilon_study: float
    epsilon_lineage: float
    epsilon_left: float
    ledger_head: str
    ledger_length: int


def make_update(
    home: SiteHome,
    config: SiteConfig,
    protocol: StudyProtocol,
    plan: RoundPlan,
    plan_digest: str,
    exchange: Exchange,
) -> None:
    """Compute the site's answer to a plan and put it into the outbox.

    Raises:
        ConsiliumError: E205, E210, E211, the cohort; E325, the model; E4xx, the privacy it would cost; E804,
            E805, E509, the exchange; E512, E513, E514, E522, E803, E807, its roster may not be summed under
            masks.
    """
    masks = open_masks(home, config.site, protocol) if is_masked(protocol, plan.kind) else None
    earlier = None if masks else earlier_answer(home, protocol, plan)
    if earlier is not None:
        answer_again(home, plan_digest, earlier)
        return
    frozen = read_frozen(home, protocol).training_patients  # what intake wrote down: no patient is read
    if frozen < protocol.cohort.minimum_patients:
        raise ConsiliumError("E205", f"{frozen} patients, at least {protocol.cohort.minimum_patients}")
    base = base_model(plan, exchange)
    if plan.kind != "statistics":
        from site_runtime.base_model import check_base  # torch

        check_base(protocol, plan, base)
    if masks is not None:
        bind_plan(home, protocol, masks, plan, plan_digest)
    ledger, account = reserve(home, config, protocol, plan, plan_digest)
    cohort = load_cohort(home, config, protocol, "training")
    update = compute(home, config, protocol, plan, plan_digest, cohort, base)
    sent = update.sent
    if masks is not None:
        sent = masked_update(masks, plan, plan_digest, shapes_of(base), sent)
    tensors = None if plan.kind == "local" else tensor_bytes(sent)
    noise = own_noise(protocol, plan)
    spend = spend_of(protocol, plan.kind, noise) if noise else None
    envelope = UpdateEnvelope(
        study=protocol.study,
        protocol_hash=protocol.hash,
        plan=plan_digest,
        round=plan.round,
        site=config.site,
        base_model=plan.base_model,
        tensors=None if tensors is None else sha256(tensors),
        tensor_bytes=None if tensors is None else len(tensors),
        planned_steps=spend.steps if spend else steps_of(protocol, plan.kind),
        data_sheet=_own_sheet(plan, config),
        cohort=cohort.digest,
        policy=config.policy_digest,
        code_version=CODE_VERSION,
        sample_rate=spend.sample_rate if spend else None,
        noise_multiplier=noise,
        delta=protocol.privacy.delta if isinstance(protocol.privacy, PatientPrivacy) else None,
        epsilon_study=account.epsilon_study if account else None,
        epsilon_lineage=account.epsilon_lineage if account else None,
        epsilon_left=account.epsilon_left if account else None,
        ledger_head=account.ledger_head if account else None,
        ledger_length=account.ledger_length if account else None,
        next_mask=masks.next_key() if masks else None,
    )
    keep(home, plan_digest, envelope, tensors, update.kept)
    if ledger is not None:
        ledger.commit(plan_digest)


def bind_plan(
    home: SiteHome, protocol: StudyProtocol, masks: MaskState, plan: RoundPlan, plan_digest: str
) -> None:
    """Check who the plan sums up, and give this exchange's one masked vector to it.

    Raises:
        ConsiliumError: E512, E513, E803, E807, the roster; E514, the exchange was answered, under another
            plan or with a vector that is no longer here; E522, a sum from the same model was opened over
            others.
    """
    roster_keys(masks, plan, plan_digest)
    before = answered(home, protocol, plan)
    if before is not None and before.plan == plan_digest:
        raise ConsiliumError("E514", f"plan {plan_digest} was answered, and its vector is no longer here")
    masks.bind(plan, plan_digest)


def settle(
    home: SiteHome, config: SiteConfig, protocol: StudyProtocol, plan: RoundPlan, plan_digest: str
) -> None:
    """Note that a plan's update is in the outbox: as the answer to its exchange, and in the ledger, should a
    crash have come before that was done.

    Raises:
        ConsiliumError: E324, the exchange was answered with another update; E402, the ledger.
    """
    note_answer(home, protocol, plan, plan_digest)
    lineage = config.governance.lineage
    if home.ledger(lineage).exists():
        ledger = Ledger(
            home.ledger(lineage), config.site, lineage, SigningKey.load(config.site, home.signing_key)
        )
        if ledger.reserved(plan_digest):
            ledger.commit(plan_digest)


def base_model(plan: RoundPlan, exchange: Exchange) -> Tensors:
    """Fetch the global model that the plan starts from; a statistics plan has none."""
    if plan.base_model is None:
        if plan.kind != "statistics":
            raise ConsiliumError("E503", "a training plan names its base model")
        return {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "base.safetensors"
        exchange.get(plan.base_model, path)
        from site_runtime.base_model import read_base  # torch

        return read_base(path)


def compute(
    home: SiteHome,
    config: SiteConfig,
    protocol: StudyProtocol,
    plan: RoundPlan,
    plan_digest: str,
    cohort: CohortArrays,
    base: Tensors,
) -> SiteUpdate:
    """The site's half of the strategy (or of another exchange), under the plan's own random streams.

    A local model is kept here, and nothing of it is in what is returned.
    """
    stream = partial(
        derive_stream,
        home.noise_key.read_bytes(),
        plan=plan_digest,
        cohort=cohort.digest,
        code_version=CODE_VERSION,
    )
    if plan.kind == "statistics":
        return site_statistics(
            protocol, cohort.x, cohort.mask, cohort.y, plan.noise_multiplier, stream(purpose="statistics")
        )
    if plan.kind == "histogram":
        from site_runtime.risks import latest_risks  # torch

        risk, label = latest_risks(protocol, base, cohort)
        return site_histogram(risk, label, plan.noise_multiplier, stream(purpose="histogram"))
    from site_runtime.trainer import SiteTrainer  # torch, Lightning, Opacus

    before = {} if plan.kind == "local" else kept_state(home, protocol, plan.round, plan.fold)
    clip = before.pop(CLIP, None)
    train = SiteTrainer(
        protocol=protocol,
        plan=plan,
        cohort=cohort,
        declared_size=config.governance.declared_size,
        compute=config.compute,
        sampling=stream(purpose="sampling"),
        noise=stream(purpose="noise"),
        steps=steps_of(protocol, plan.kind),
        clip=None if clip is None else float(clip[0]),
    )
    if plan.kind == "local":
        train_local(home, protocol, base, train)
        return SiteUpdate({})
    update = strategy_of(protocol).site(protocol, base, before, train)
    if train.clip is None:
        return update
    return SiteUpdate(update.sent, {**update.kept, CLIP: np.array([train.clip])})


def reserve(
    home: SiteHome, config: SiteConfig, protocol: StudyProtocol, plan: RoundPlan, plan_digest: str
) -> tuple[Ledger | None, Account | None]:
    """Reserve the plan's privacy in the lineage's ledger, before any data are touched by it.

    The hospital trusts no noise level that it is sent: it calibrates the approved protocol itself and
    refuses a plan with less.

    Raises:
        ConsiliumError: E401, the study's approved epsilon or the lineage's cap; E402, E407, E410, E411.
    """
    privacy = protocol.privacy
    if not isinstance(privacy, PatientPrivacy):
        return None, None
    noise = calibrate(protocol)
    needed = noise.of(plan.purpose)
    if needed is None or plan.noise_multiplier is None or plan.noise_multiplier < needed:
        raise ConsiliumError("E410", f"noise_multiplier {plan.noise_multiplier}, expected at least {needed}")
    lineage = config.governance.lineage
    key = SigningKey.load(config.site, home.signing_key)
    ledger = Ledger(home.ledger(lineage), config.site, lineage, key)
    entry = plan.entry(config.site)
    if entry is not None and entry.ledger_head is not None:
        ledger.check_head(entry.ledger_head)
    if ledger.committed(plan_digest):
        # Its update was finished once and is gone: computing it again could release a second one.
        raise ConsiliumError("E411", f"plan {plan_digest} was answered, and its update is no longer here")
    spend = spend_of(protocol, plan.kind, plan.noise_multiplier)
    still = remaining(protocol, plan, noise, config.site)
    delta = min(privacy.delta, config.budget.delta)
    adaptive = privacy.clipping == "adaptive" and plan.kind in ("training", "local")
    ledger.reserve(
        study=protocol.study,
        plan=plan_digest,
        purpose=plan.purpose,
        spend=spend,
        epsilon_cap=config.budget.epsilon,
        delta=delta,
        projected=still,
        study_cap=StudyCap(privacy.epsilon, privacy.delta, privacy.adjacency),
        quantile_share=privacy.quantile.share if adaptive else None,
    )
    return ledger, Account(
        epsilon_study=epsilon(ledger.spends(protocol.study), privacy.delta, privacy.adjacency),
        epsilon_lineage=epsilon(ledger.spends(), privacy.delta, privacy.adjacency),
        epsilon_left=config.budget.epsilon - epsilon(ledger.spends(), delta),
        ledger_head=ledger.head,
        ledger_length=ledger.length,
    )


def remaining(protocol: StudyProtocol, plan: RoundPlan, noise: StudyNoise, site: str) -> list[Spend]:
    """What the study still plans here after this exchange: a study that cannot be finished is not begun.

    Folds come in the order of names, so that a hospital knows whether the one without it is over.
    """
    return still_planned(protocol, noise, plan.round, plan.fold is not None and site < plan.fold)


def _own_sheet(plan: RoundPlan, config: SiteConfig) -> str:
    entry = plan.entry(config.site)
    if entry is None:
        raise ConsiliumError("E306", f"site {config.site!r} is not on the roster")
    return entry.data_sheet
