"""The noise of a whole planned study, chosen once so that everything composed meets its epsilon.

The statistics round and the histogram for a decision threshold, where there are any, are a single Gaussian
release each with a share of epsilon; training is rounds x steps at the protocol's sample rate and gets what
composition leaves. All noise multipliers are the smallest of four significant digits that meet their target:
numbers that can be written down exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from contracts.errors import ConsiliumError
from contracts.study import PatientPrivacy, StudyProtocol
from privacy.accountant import Spend, epsilon, epsilon_prv

_SMALLEST, _LARGEST = -1, 4  # decades of the noise multipliers that are tried: 0.1 .. 99990


@dataclass(frozen=True)
class StudyNoise:
    """Noise multipliers of a study and the epsilon they compose to at the protocol's delta.

    `statistics` is None when no statistics round is planned, `histogram` when the threshold is fixed.
    """

    statistics: float | None
    training: float
    epsilon: float
    histogram: float | None = None

    def of(self, kind: str) -> float | None:
        """Return the noise multiplier of a plan of this kind; None when the study plans no such exchange."""
        exchanges = {"statistics": self.statistics, "training": self.training, "histogram": self.histogram}
        return exchanges.get(kind)


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
    """Return what each plan of the study spends, in order: statistics, every round, histogram, as planned."""
    training = protocol.training
    statistics = [] if noise.statistics is None else [Spend(1.0, noise.statistics, 1)]
    histogram = [] if noise.histogram is None else [Spend(1.0, noise.histogram, 1)]
    rounds = [Spend(training.sample_rate, noise.training, training.steps)] * protocol.rounds
    return statistics + rounds + histogram


def spend_of(protocol: StudyProtocol, kind: str, noise_multiplier: float) -> Spend:
    """Return the triple that one exchange costs every site that answers it.

    Args:
        kind: of the plan; `training` is the steps at the protocol's rate, others one release at rate 1.
        noise_multiplier: of the plan.
    """
    if kind == "training":
        return Spend(protocol.training.sample_rate, noise_multiplier, protocol.training.steps)
    return Spend(1.0, noise_multiplier, 1)


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
    statistics = histogram = None
    if training.normalisation == "federated":
        statistics = _one_release(privacy, privacy.statistics_fraction, "one release of statistics")
    if protocol.threshold_rule is not None:
        histogram = _one_release(privacy, privacy.threshold_fraction, "one histogram for a threshold")
    single = [Spend(1.0, sigma, 1) for sigma in (statistics, histogram) if sigma is not None]
    steps = protocol.rounds * training.steps
    sigma = _smallest(
        lambda sigma: epsilon_prv([*single, Spend(training.sample_rate, sigma, steps)], privacy.delta),
        privacy.epsilon,
        f"{steps} steps at rate {training.sample_rate:g}",
    )
    noise = StudyNoise(statistics, sigma, 0.0, histogram)
    return replace(noise, epsilon=epsilon(planned_spends(protocol, noise), privacy.delta))


def _one_release(privacy: PatientPrivacy, fraction: float, what: str) -> float:
    """Return the noise multiplier of one Gaussian release at rate 1 that costs `fraction` of epsilon."""
    return _smallest(
        lambda sigma: epsilon_prv([Spend(1.0, sigma, 1)], privacy.delta), fraction * privacy.epsilon, what
    )


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
