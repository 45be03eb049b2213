"""The noise of a whole planned study, chosen once so that everything composed meets its epsilon.

The statistics round, if there is one, is a single Gaussian release with its share of epsilon, and so is the
histogram that a decision threshold is read from; training is rounds x steps at the protocol's sample rate and
gets what composition leaves. What validation trains beside the model is part of the plan: a hospital's own
model costs all rounds once more, and leave-one-site-out costs them once more for every other hospital, since
a hospital has no part in one of the folds. All training has the same noise. With hospital-level privacy
every round is one release of the coordinator. Each noise multiplier is the smallest of four significant
digits that meets its target: numbers that can be written down exactly.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from contracts.errors import ConsiliumError
from contracts.privacy import Adjacency, HospitalPrivacy, NoPrivacy, PatientPrivacy
from contracts.schedule import Slot, last_before_folds, most_folds, slot_at, slots
from contracts.study import StudyProtocol, ThresholdRule
from privacy.accountant import Spend, epsilon, epsilon_prv

_SMALLEST, _LARGEST = -1, 4  # decades of the noise multipliers that are tried: 0.1 .. 99990


@dataclass(frozen=True)
class StudyNoise:
    """Noise multipliers of a study and the epsilon they compose to at the protocol's delta.

    `statistics` is None when no statistics round is planned, `histogram` when the decision threshold is not
    read from one, `local` and `fold` when validation trains no such models; else these two are `training`.
    """

    statistics: float | None
    training: float
    epsilon: float
    histogram: float | None = None
    local: float | None = None
    fold: float | None = None

    def of(self, purpose: str) -> float | None:
        """Return the noise multiplier of a plan for this; None when the study plans no such exchange.

        Args:
            purpose: `RoundPlan.purpose`.
        """
        exchanges = {
            "statistics": self.statistics,
            "training": self.training,
            "histogram": self.histogram,
            "local": self.local,
            "fold": self.fold,
        }
        return exchanges.get(purpose)


@dataclass(frozen=True)
class Projected:
    """Epsilon of the study after one of the exchanges that a hospital takes part in.

    `kind` is what the exchange is for (`RoundPlan.purpose`), `number` counts exchanges from 1, `round` is the
    training rounds done by then, of a fold those of its own model, and `fold` counts the folds from 1.
    """

    number: int
    kind: str
    round: int
    epsilon: float
    fold: int | None = None


_calibrated: dict[str, StudyNoise] = {}


def adjacency_of(protocol: StudyProtocol) -> Adjacency:
    """Return which cohorts (with hospital-level privacy: which federations) the study calls neighbours."""
    privacy = protocol.privacy
    return privacy.adjacency if isinstance(privacy, PatientPrivacy) else "add-or-remove-one"


def calibrate(protocol: StudyProtocol) -> StudyNoise:
    """Return the noise of a study with differential privacy; the same to the last bit at every call.

    Raises:
        ConsiliumError: E409, no noise level within reach meets the target, or the study promises no privacy.
    """
    if protocol.hash not in _calibrated:
        _calibrated[protocol.hash] = _calibrate(protocol)
    return _calibrated[protocol.hash]


def planned_exchanges(protocol: StudyProtocol, noise: StudyNoise) -> list[tuple[Slot, Spend]]:
    """Return every exchange that one hospital takes part in at most, in order, with what it spends.

    A hospital is left out of one fold: it trains in one fewer than there may be hospitals.
    """
    planned = []
    for slot in slots(protocol, max(most_folds(protocol) - 1, 0)):
        sigma = noise.of(slot.purpose)
        assert sigma is not None
        planned.append((slot, spend_of(protocol, slot.purpose, sigma)))
    return planned


def planned_spends(protocol: StudyProtocol, noise: StudyNoise) -> list[Spend]:
    """Return what each plan of the study spends at a hospital, in order."""
    return [spend for _, spend in planned_exchanges(protocol, noise)]


def still_planned(
    protocol: StudyProtocol, noise: StudyNoise, number: int, own_fold_past: bool
) -> list[Spend]:
    """Return what the study still plans at a hospital after an exchange, all rounds of a kind in one.

    Args:
        number: of the exchange.
        own_fold_past: whether the fold without this hospital lies before this exchange.
    """
    before_folds, folds = last_before_folds(protocol), max(most_folds(protocol) - 1, 0)
    to_come = Counter(
        slot.purpose
        for slot in (slot_at(protocol, later) for later in range(number + 1, before_folds + 1))
        if slot is not None
    )
    done = number - before_folds - (protocol.rounds if own_fold_past else 0)
    to_come["fold"] = folds * protocol.rounds - max(done, 0)
    spends = []
    for purpose, times in to_come.items():
        sigma = noise.of(purpose)
        if sigma is not None and times > 0:
            one = spend_of(protocol, purpose, sigma)
            spends.append(replace(one, steps=one.steps * times))
    return spends


def spend_of(protocol: StudyProtocol, kind: str, noise_multiplier: float) -> Spend:
    """Return the triple that one exchange costs every site that answers it.

    Args:
        kind: of the plan, or its purpose; `training` (and `fold`) is the steps of a round at the protocol's
            rate, `local` those of all rounds, others one release at rate 1. With hospital-level privacy a
            round is one release to which every hospital contributes.
        noise_multiplier: of the plan.
    """
    if kind in ("training", "fold", "local") and not isinstance(protocol.privacy, HospitalPrivacy):
        return Spend(protocol.training.sample_rate, noise_multiplier, steps_of(protocol, kind))
    return Spend(1.0, noise_multiplier, 1)


def models_trained(protocol: StudyProtocol) -> int:
    """Return for how many models a hospital trains at most: the study's, its own, and those of the folds."""
    return 1 + protocol.validation.local_model + max(most_folds(protocol) - 1, 0)


def steps_of(protocol: StudyProtocol, kind: str) -> int:
    """Return the optimiser's steps that a plan of this kind asks of a hospital."""
    return protocol.training.steps * (protocol.rounds if kind == "local" else 1)


def projection(
    protocol: StudyProtocol, noise: StudyNoise, most: int | None = None, delta: float | None = None
) -> list[Projected]:
    """Return epsilon after each planned exchange.

    Args:
        most: about how many exchanges to report, evenly chosen; always the first, each that is not training,
            and the last. None reports all.
        delta: of epsilon; the protocol's own by default.

    Raises:
        ConsiliumError: E408, E409 (the study promises no privacy).
    """
    privacy = protocol.privacy
    if not isinstance(privacy, PatientPrivacy | HospitalPrivacy):
        raise ConsiliumError("E409", f"privacy mode {privacy.mode!r} of {protocol.study!r}")
    plans = planned_exchanges(protocol, noise)
    count, spends = len(plans), [spend for _, spend in plans]
    chosen = set(range(1, count + 1))
    if most is not None and most < count:
        chosen = {1 + round(i * (count - 1) / (max(most, 2) - 1)) for i in range(max(most, 2))}
        chosen |= {i for i, (slot, _) in enumerate(plans, 1) if slot.kind != "training"}
    return [
        Projected(
            number=i,
            kind=slot.purpose,
            round=slot.round,
            epsilon=epsilon(spends[:i], delta or privacy.delta, adjacency_of(protocol)),
            fold=None if slot.fold is None else slot.fold + 1,
        )
        for i, slot in ((i, plans[i - 1][0]) for i in sorted(chosen))
    ]


def check_delta(protocol: StudyProtocol, declared_size: int) -> None:
    """Refuse a delta that would allow the loss of a whole patient (a hospital, where that is the unit).

    Raises:
        ConsiliumError: E403, delta is not below 1 / declared size, or 1 / min_sites in mode `site`.
    """
    privacy = protocol.privacy
    if isinstance(privacy, PatientPrivacy) and privacy.delta * declared_size >= 1.0:
        raise ConsiliumError("E403", f"delta {privacy.delta:g}, expected below 1/{declared_size}")
    if isinstance(privacy, HospitalPrivacy) and privacy.delta * protocol.min_sites >= 1.0:
        raise ConsiliumError(
            "E403",
            f"delta {privacy.delta:g}, expected below 1/{protocol.min_sites} (min_sites), "
            "since the unit is a hospital",
        )


def _calibrate(protocol: StudyProtocol) -> StudyNoise:
    privacy, training, adjacency = protocol.privacy, protocol.training, adjacency_of(protocol)
    if isinstance(privacy, HospitalPrivacy):
        check_delta(protocol, 1)
        plan, what = Spend(1.0, 1.0, protocol.rounds), f"{protocol.rounds} rounds of all hospitals"
        sigma = _least([], plan, privacy.epsilon, privacy.delta, adjacency, what)
        return _with_epsilon(protocol, StudyNoise(None, sigma, 0.0))
    if not isinstance(privacy, PatientPrivacy):
        raise ConsiliumError(
            "E409", f"privacy mode {privacy.mode!r} of {protocol.study!r}, expected patient or site"
        )
    target, delta = privacy.epsilon, privacy.delta
    statistics = histogram = None
    once = Spend(1.0, 1.0, 1)
    if training.normalisation == "federated":
        share = privacy.statistics_fraction * target
        statistics = _least([], once, share, delta, adjacency, "one release of statistics")
    if isinstance(protocol.decision_threshold, ThresholdRule):
        share = privacy.threshold_fraction * target
        histogram = _least([], once, share, delta, adjacency, "one release of a histogram")
    beside = [Spend(1.0, sigma, 1) for sigma in (statistics, histogram) if sigma is not None]
    steps = models_trained(protocol) * protocol.rounds * training.steps
    plan, what = Spend(training.sample_rate, 1.0, steps), f"{steps} steps at rate {training.sample_rate:g}"
    sigma = _least(beside, plan, target, delta, adjacency, what)
    local = sigma if protocol.validation.local_model else None
    fold = sigma if most_folds(protocol) else None
    return _with_epsilon(protocol, StudyNoise(statistics, sigma, 0.0, histogram, local, fold))


def _with_epsilon(protocol: StudyProtocol, noise: StudyNoise) -> StudyNoise:
    assert not isinstance(protocol.privacy, NoPrivacy)
    spends = planned_spends(protocol, noise)
    return replace(noise, epsilon=epsilon(spends, protocol.privacy.delta, adjacency_of(protocol)))


def _least(
    beside: list[Spend], plan: Spend, target: float, delta: float, adjacency: Adjacency, what: str
) -> float:
    """Return the noise multiplier with which `plan`, beside what is fixed already, meets `target`."""

    def spent(sigma: float) -> float:
        return epsilon_prv([*beside, replace(plan, noise_multiplier=sigma)], delta, adjacency)

    return _smallest(spent, target, what)


def _smallest(spent: Callable[[float], float], target: float, what: str) -> float:
    """Return the smallest noise multiplier of four significant digits whose epsilon is at most `target`.

    Bisection over all such numbers, with every other guess by log-log interpolation: epsilon is nearly a
    power of the noise. The answer does not depend on the guesses, since epsilon falls as noise grows.
    """
    per_decade = 9000
    count = per_decade * (_LARGEST - _SMALLEST + 1)

    def value(index: int) -> float:
        decade, mantissa = divmod(index, per_decade)
        return float(f"{1000 + mantissa}e{decade + _SMALLEST - 3}")

    low, high = -1, count  # low is too little, high is enough
    known: dict[int, float] = {}
    guess, interpolate = (low + high) // 2, True
    while high - low > 1:
        known[guess] = spent(value(guess))
        if known[guess] <= target:
            high = guess
        else:
            low = guess
        guess = (low + high) // 2
        above, below = known.get(low, 0.0), known.get(high, 0.0)
        if interpolate and 0.0 < below < above < math.inf:
            share = math.log(above / target) / math.log(above / below)
            sigma = value(low) * (value(high) / value(low)) ** share
            decade = math.floor(math.log10(sigma))
            index = (decade - _SMALLEST) * per_decade + int(sigma / 10.0 ** (decade - 3)) - 1000
            guess = min(max(index, low + 1), high - 1)
        interpolate = not interpolate or high - low < 64
    if high == count:
        raise ConsiliumError("E409", f"no noise up to {value(count - 1):g} keeps {what} within {target:g}")
    return value(high)
