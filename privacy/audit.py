"""What one attacked training run proves about epsilon: Steinke, Nasr, Jagielski 2023, arXiv:2305.08846.

Many canaries are put into the cohort or left out, each by a fair coin of the auditor, and one run is watched.
The auditor guesses the coins of those canaries that stand out most at either end and abstains on the rest.
Under (epsilon, delta)-DP so many right guesses have at most a known probability (theorem 5.2); the lower
bound is the smallest epsilon under which what was seen is not improbable.

The number of guesses is a function of canaries, delta and claim alone (`guesses_for`): it is fixed before a
score is seen, so that nothing has to be corrected for.

An audit can refute a claim and not prove it: the mechanism may leak in ways that this attack does not use.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc, gammaln

from contracts.errors import ConsiliumError
from privacy.accountant import Spend

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# Faults that the audit can put into the mechanism it attacks, to show that it would find them.
Fault = Literal["none", "noise-off", "noise-tenth", "noise-half", "clip-off", "sampling-off"]
FAULTS: tuple[Fault, ...] = get_args(Fault)

# Models that the attack goes through, each another branch of the code that clips (see docs/audit.md).
AttackPath = Literal["logistic", "records", "perceptron", "recurrent", "convolution"]
PATHS: tuple[AttackPath, ...] = get_args(AttackPath)
_PATH_OF_MODEL: dict[str, AttackPath] = {
    "cnn": "convolution",
    "logistic": "logistic",
    "lstm": "recurrent",
    "mlp": "perceptron",
    "multitask": "perceptron",
}
_MOST_RECORDS = 4  # of one patient in an attack: what is done with four is done with more

NOISE_FACTOR: dict[Fault, float] = {"noise-off": 0.0, "noise-tenth": 0.1, "noise-half": 0.5}
LOUDNESS = 100.0  # gradient norm of a canary before clipping, in clip norms (at least)
_SHARES = (0.2, 0.5, 1.0)  # of the canaries that are guessed
_MARGIN = 1.25  # by which the bound must be able to pass the claim
_LARGEST = 60.0  # epsilon; e^60 is beyond what any number of canaries can show


def path_of(model: str, max_records: int) -> AttackPath:
    """Return the path that a study's training takes: `model` of the registry, `max_records` of one patient.

    Raises:
        ConsiliumError: E101, there is no such model.
    """
    if model not in _PATH_OF_MODEL:
        raise ConsiliumError(
            "E101", f"field 'model.name': {model!r}, expected one of {sorted(_PATH_OF_MODEL)}"
        )
    path = _PATH_OF_MODEL[model]
    return "records" if path == "logistic" and max_records > 1 else path


def records_on(path: AttackPath, max_records: int) -> int:
    """Return how many records each patient of an attack has: as many as the study allows, up to four."""
    if path == "logistic":
        return 1
    return max(min(max_records, _MOST_RECORDS), 2 if path == "records" else 1)


def p_value(correct: int, guesses: int, canaries: int, epsilon: float, delta: float) -> float:
    """Return the largest probability of `correct` right guesses or more under (epsilon, delta)-DP.

    Theorem 5.2 of the paper with W ~ Binomial(guesses, 1 / (1 + e^-epsilon)):
    P[W >= correct] + 2 canaries delta max_i P[correct > W >= correct - i] / i.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(f"{correct} of {guesses} guesses on {canaries} canaries, expected in this order")
    if correct == 0:
        return 1.0
    right = 1.0 / (1.0 + math.exp(-epsilon))
    chance = float(bdtrc(correct - 1, guesses, right))
    if delta == 0.0:
        return chance
    fewer = np.arange(correct - 1, -1, -1)
    log_mass = _log_choices(guesses)[fewer] - guesses * math.log1p(math.exp(-epsilon))
    log_mass -= (guesses - fewer) * epsilon  # log P[W = fewer]; e^-epsilon = (1 - right) / right
    worst = float(np.max(np.cumsum(np.exp(log_mass)) / np.arange(1, correct + 1)))
    return min(chance + 2.0 * canaries * delta * worst, 1.0)


@lru_cache(maxsize=64)
def _log_choices(n: int) -> Floats:
    """Return log of n over k for k = 0 .. n."""
    k = np.arange(n + 1)
    return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))


@lru_cache(maxsize=4096)
def epsilon_lower_bound(
    correct: int, guesses: int, canaries: int, delta: float, confidence: float = 0.95
) -> float:
    """Return an epsilon that the mechanism exceeds with this confidence; 0.0 when nothing was shown.

    If the mechanism is (epsilon, delta)-DP, the result is above epsilon in at most 1 - confidence of runs.

    Args:
        correct: right guesses.
        guesses: canaries guessed, not counting those abstained on; fixed before scores were seen.
        canaries: all canaries, each included by its own fair coin.
    """
    level = 1.0 - confidence
    low, high = 0.0, _LARGEST
    if p_value(correct, guesses, canaries, low, delta) > level:
        return 0.0
    for _ in range(50):
        middle = (low + high) / 2.0
        if p_value(correct, guesses, canaries, middle, delta) <= level:
            low = middle
        else:
            high = middle
    return low


def guesses_for(claim: float, canaries: int, delta: float, confidence: float = 0.95) -> int:
    """Choose how many canaries are guessed: an even number, from public values alone.

    A fifth of them makes the bound of a sound mechanism about as large as it gets. Where the bound could not
    pass the claim even with every guess right, more are guessed; with delta a bound beyond
    log((1 - confidence) / (2 delta)) is out of reach however many there are.
    """
    for share in _SHARES:
        guesses = 2 * max(int(share * canaries / 2), 1)
        if epsilon_lower_bound(guesses, guesses, canaries, delta, confidence) >= _MARGIN * claim:
            break
    return guesses


def right_guesses(scores: Floats, included: Bools, guesses: int) -> int:
    """Count right guesses: the top half is guessed in, the bottom half out, the middle abstained on.

    Args:
        scores: float64 [canaries], larger = more likely in; distinct, or ties fall as they are sorted.
        included: bool [canaries], the coins.
    """
    order = np.argsort(scores, kind="stable")
    half = guesses // 2
    return int(np.sum(~included[order[:half]]) + np.sum(included[order[len(order) - half :]]))


@dataclass(frozen=True)
class Verdict:
    """What one run showed. `lower_bound` is of epsilon at the claim's delta."""

    claim: float
    lower_bound: float
    correct: int
    guesses: int
    canaries: int

    @property
    def refuted(self) -> bool:
        """Whether the mechanism is shown to leak more than it claims."""
        return self.lower_bound > self.claim


def judge(
    scores: Floats, included: Bools, *, claim: float, delta: float, confidence: float = 0.95
) -> Verdict:
    """Compare the claimed epsilon with what the scores of one run show."""
    canaries = len(scores)
    guesses = guesses_for(claim, canaries, delta, confidence)
    correct = right_guesses(scores, included, guesses)
    bound = epsilon_lower_bound(correct, guesses, canaries, delta, confidence)
    return Verdict(claim, bound, correct, guesses, canaries)


def runs_needed(runs: int, confidence: float = 0.95) -> int:
    """Return how many of several runs must refute the claim for all of them together to refute it.

    A sound mechanism refutes itself in one run with a probability of at most 1 - confidence, independently.
    """
    level = 1.0 - confidence
    return next(k for k in range(1, runs + 2) if bdtrc(k - 1, runs, level) <= level * (1.0 + 1e-9))


@dataclass(frozen=True)
class Power:
    """What to expect of the audit of one mechanism: stated before anything is run.

    `bound` is the mean lower bound, `detection` the probability that it exceeds the claim.
    """

    fault: Fault
    bound: float
    detection: float


def simulated_scores(
    spend: Spend, fault: Fault, included: Bools, draws: np.random.Generator, height: float = 1.0
) -> Floats:
    """Draw the scores of a run, in clip norms, from their exact distribution.

    A canary scores the sum over steps of the noisy sum along its own direction: included, it adds `height`
    for every batch it is in (Binomial(steps, rate) of them); noise adds N(0, steps sigma^2).

    Args:
        height: what clipping leaves of a canary in its own layer, in clip norms: 1, or what per-layer
            clipping gives to one layer.
    """
    sigma = spend.noise_multiplier * NOISE_FACTOR.get(fault, 1.0)
    rate = 1.0 if fault == "sampling-off" else spend.sample_rate
    height = LOUDNESS if fault == "clip-off" else height
    batches = draws.binomial(spend.steps, rate, len(included))
    noise = draws.normal(0.0, 1.0, len(included)) * sigma * math.sqrt(spend.steps)
    return np.asarray(height * included * batches + noise)


def expected_power(
    spend: Spend,
    *,
    claim: float,
    delta: float,
    canaries: int,
    height: float = 1.0,
    confidence: float = 0.95,
    runs: int = 100,
) -> list[Power]:
    """Say what the audit will find: with the mechanism as claimed, and with each fault put in.

    Args:
        spend: sample rate, noise multiplier and all steps of the mechanism as claimed.
        claim: its epsilon at `delta`.
        height: as of `simulated_scores`.
        runs: simulated audits of each mechanism.
    """
    draws = np.random.default_rng(0)  # a forecast that reads the same every time; no privacy rests on it
    powers = []
    for fault in FAULTS:
        bounds = []
        for _ in range(runs):
            included = draws.random(canaries) < 0.5
            scores = simulated_scores(spend, fault, included, draws, height)
            bounds.append(
                judge(scores, included, claim=claim, delta=delta, confidence=confidence).lower_bound
            )
        powers.append(Power(fault, float(np.mean(bounds)), float(np.mean(np.array(bounds) > claim))))
    return powers
