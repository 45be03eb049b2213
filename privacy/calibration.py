"""The noise of a whole planned study, chosen once so that everything composed meets its epsilon.

The statistics round, if there is one, is a single Gaussian release with its share of epsilon; training is
rounds x steps at the protocol's sample rate and gets what composition leaves. Both noise multipliers are the
smallest of four significant digits that meet their target: numbers that can be written down exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from contracts.errors import ConsiliumError
from contracts.study import PatientPrivacy, StudyProtocol
from privacy.accountant import Spend, epsilon, epsilon_prv

_SMALLEST, _LARGEST = -1, 4  # decades of the noise multipliers that are tried: 0.1 .. 99990


@dataclass(frozen=True)
class StudyNoise:
    """Noise multipliers of a study and the epsilon they compose to at the protocol's delta.

    `statistics` is None when no statistics round is planned.
    """

    statistics: float | None
    training: float
    epsilon: float


_calibrated: dict[str, StudyNoise] = {}


def calibrate(protocol: StudyProtocol) -> StudyNoise:
    """Return the noise of a study with patient-level privacy; the same to the last bit at every call.

    Raises:
        ConsiliumError: E409, no noise level within reach meets the target, or the study promises no privacy.
    """
    if protocol.hash not in _calibrated:
        _calibrated[protocol.hash] = _calibrate(protocol)
    return _calibrated[protocol.hash]


def planned_spends(protocol: StudyProtocol, noise: StudyNoise) -> list[Spend]:
    """Return what each plan of the study spends, in order: statistics (if planned), then one per round."""
    training = protocol.training
    statistics = [] if noise.statistics is None else [Spend(1.0, noise.statistics, 1)]
    return statistics + [Spend(training.sample_rate, noise.training, training.steps)] * protocol.rounds


def projected_spends(protocol: StudyProtocol, noise: StudyNoise, reserved: Iterable[Spend]) -> list[Spend]:
    """Return what is left of the planned study after `reserved` (its spends so far, with the one at hand).

    A spend outside the plan (a round that was planned anew) takes nothing from what is still to come.
    """
    return list((Counter(planned_spends(protocol, noise)) - Counter(reserved)).elements())


def check_delta(protocol: StudyProtocol, declared_size: int) -> None:
    """Refuse a delta that would allow the loss of a whole patient.

    Raises:
        ConsiliumError: E403, delta is not below 1 / declared size.
    """
    privacy = protocol.privacy
    if isinstance(privacy, PatientPrivacy) and privacy.delta * declared_size >= 1.0:
        raise ConsiliumError("E403", f"delta {privacy.delta:g}, expected below 1/{declared_size}")


def _calibrate(protocol: StudyProtocol) -> StudyNoise:
    privacy, training = protocol.privacy, protocol.training
    if not isinstance(privacy, PatientPrivacy):
        raise ConsiliumError("E409", f"privacy mode {privacy.mode!r} of {protocol.study!r}, expected patient")
    statistics = None
    before: list[Spend] = []
    if training.normalisation == "federated":
        share = privacy.statistics_fraction * privacy.epsilon
        statistics = _smallest(
            lambda sigma: epsilon_prv([Spend(1.0, sigma, 1)], privacy.delta) <= share,
            f"statistics within epsilon {share:g}",
        )
        before = [Spend(1.0, statistics, 1)]
    steps = protocol.rounds * training.steps

    def within(sigma: float) -> bool:
        spends = [*before, Spend(training.sample_rate, sigma, steps)]
        return epsilon_prv(spends, privacy.delta) <= privacy.epsilon

    sigma = _smallest(
        within,
        f"{steps} steps at rate {training.sample_rate:g} within epsilon {privacy.epsilon:g}",
    )
    noise = StudyNoise(statistics, sigma, 0.0)
    return StudyNoise(statistics, sigma, epsilon(planned_spends(protocol, noise), privacy.delta))


def _smallest(enough: Callable[[float], bool], what: str) -> float:
    """Return the smallest noise multiplier of four significant digits that is `enough`, by bisection."""
    per_decade = 9000
    low, high = -1, per_decade * (_LARGEST - _SMALLEST + 1)  # low is not enough, high is

    def value(index: int) -> float:
        decade, mantissa = divmod(index, per_decade)
        return float(f"{1000 + mantissa}e{decade + _SMALLEST - 3}")

    while high - low > 1:
        middle = (low + high) // 2
        if enough(value(middle)):
            high = middle
        else:
            low = middle
    if high == per_decade * (_LARGEST - _SMALLEST + 1):
        raise ConsiliumError("E409", f"no noise multiplier up to {value(high - 1):g} keeps {what}")
    return value(high)
