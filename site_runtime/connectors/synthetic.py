"""Connector `synthetic`: a seeded simulator of intensive-care stays with a known true risk.

A stay's measurements come from a latent severity; its risk of death is the logistic of a mostly linear score
of the measurements with one mild interaction (age and lactate), the same at every hospital. Hospitals differ
in case mix, prevalence, missingness and stored units. The options also plant two faults for studies that
must be stopped: `label_flips` and `attenuated`. An auxiliary label, whatever its name, follows the true risk
too, with chance of its own.

These are simulated patients, so numpy's seeded generator is fine here; it is never used for privacy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from contracts.errors import ConsiliumError
from contracts.fields import FeatureName, Finite, Probability
from site_runtime.connectors import Source

if TYPE_CHECKING:
    from contracts.study import StudyProtocol

Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Measurement:
    """mean + severity * slope + noise * spread (as a logarithm if `log`), clipped; its weight in the risk."""

    mean: float
    slope: float
    spread: float
    low: float
    high: float
    weight: float  # per (slope^2 + spread^2)^1/2
    decimals: int = 0
    log: bool = False


# Units: see studies/icu-mortality-demo.yaml. The weight is in log odds per standard deviation.
_MEASUREMENTS: dict[str, _Measurement] = {
    "heart_rate": _Measurement(88, 9, 14, 25, 220, 0.15),
    "systolic_bp": _Measurement(120, -11, 17, 45, 240, -0.30),
    "respiratory_rate": _Measurement(19, 3, 4, 5, 60, 0.25),
    "temperature": _Measurement(37.1, -0.1, 0.7, 31.5, 42, -0.10, decimals=1),
    "spo2": _Measurement(95.5, -1.6, 2.0, 55, 100, -0.20),
    "gcs": _Measurement(12.8, -1.6, 1.8, 3, 15, -0.55),
    "creatinine": _Measurement(0.1, 0.28, 0.42, 0.2, 14, 0.25, decimals=2, log=True),
    "sodium": _Measurement(138.5, -0.4, 4.5, 112, 168, 0.0),
    "potassium": _Measurement(4.1, 0.12, 0.5, 2.1, 7.9, 0.05, decimals=1),
    "lactate": _Measurement(0.45, 0.38, 0.45, 0.3, 24, 0.60, decimals=1, log=True),
    "white_cells": _Measurement(2.35, 0.12, 0.42, 0.3, 90, 0.05, decimals=1, log=True),
    "platelets": _Measurement(5.3, -0.15, 0.42, 6, 1100, -0.15, log=True),
    "bilirubin": _Measurement(-0.25, 0.22, 0.65, 0.1, 40, 0.15, decimals=1, log=True),
}
FEATURES = ("age", "sex", "admission", *_MEASUREMENTS)
_AGE_WEIGHT = 0.55  # per 15 years from 63
_ADMISSION_WEIGHTS = (-0.5, 0.0, 0.25)  # elective, urgent, emergency
_INTERACTION = 0.20  # age times lactate, both standardised
_INTERCEPT = -2.0


class StoredUnit(BaseModel):
    """A quirk of the source: the value is stored as `value * factor + offset`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    factor: Finite
    offset: Finite = 0.0


class Attenuation(BaseModel):
    """A group of patients whose risk hardly follows their measurements (served badly by any model)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    feature: Literal["sex", "admission"]
    level: int
    slope: Annotated[float, Field(ge=0, le=1)]  # share of the score that still counts


class Options(Source):
    """Options of the `synthetic` connector."""

    connector: Literal["synthetic"]
    seed: Annotated[int, Field(ge=0)]
    patients: Annotated[int, Field(ge=1, le=1_000_000)]
    age_mean: Annotated[float, Field(ge=20, le=90)] = 63.0
    female: Probability = 0.44
    emergency: Probability = 0.5
    severity: Finite = 0.0  # mean of the latent severity; its standard deviation over patients is 1
    log_odds: Finite = 0.0  # added to every risk: prevalence that the measurements do not explain
    readmission: Annotated[float, Field(ge=0, lt=0.9)] = 0.15  # chance of one more stay after each
    missing: Probability = 0.05
    missing_of: dict[FeatureName, Probability] = {}
    stored: dict[FeatureName, StoredUnit] = {}
    label_flips: Probability = 0.0
    attenuated: Attenuation | None = None


@dataclass(frozen=True)
class Stays:
    """Simulated stays, the true risk of each, and whether it is the patient's latest."""

    frame: pd.DataFrame
    risk: Array
    latest: NDArray[np.bool_]


def simulate(options: Options) -> Stays:
    """Draw the stays of one hospital; the same options give the same stays."""
    rng = np.random.default_rng([options.seed, 20_240_501])
    n = options.patients
    stays = np.minimum(rng.geometric(1 - options.readmission, n), 8)
    patient = np.repeat(np.arange(n), stays)
    number = np.arange(len(patient)) - np.repeat(np.cumsum(stays) - stays, stays)
    severity = rng.normal(options.severity, 0.8, n)[patient] + rng.normal(0, 0.6, len(patient))
    values, standard = _measure(rng, severity)
    age = np.clip(rng.normal(options.age_mean, 15, n), 18, 97)[patient] + 0.4 * number
    values["age"] = np.round(age, 0)
    values["sex"] = (rng.random(n) < options.female).astype(float)[patient]
    other = (1 - options.emergency) / 2
    values["admission"] = rng.choice(3, len(patient), p=[other, other, options.emergency]).astype(float)
    risk = _risk(values, standard, options)
    died = rng.random(len(risk)) < risk
    died ^= rng.random(len(risk)) < options.label_flips
    last = number == stays[patient] - 1
    frame = pd.DataFrame({name: values[name] for name in FEATURES})
    _store(rng, frame, options, severity)
    frame["died"] = died.astype(float)
    _times(rng, frame, patient, number)
    return Stays(frame=frame, risk=risk, latest=last)


def _measure(rng: np.random.Generator, severity: Array) -> tuple[dict[str, Array], dict[str, Array]]:
    """Draw all measurements; also return them standardised (mean 0, deviation 1 at severity 0 +- 1)."""
    values: dict[str, Array] = {}
    standard: dict[str, Array] = {}
    for name, m in _MEASUREMENTS.items():
        raw = m.mean + m.slope * severity + m.spread * rng.normal(size=len(severity))
        value = np.clip(np.exp(raw) if m.log else raw, m.low, m.high)
        values[name] = np.round(value, m.decimals)
        scale = np.hypot(m.slope, m.spread)
        standard[name] = ((np.log(value) if m.log else value) - m.mean) / scale
    return values, standard


def _risk(values: dict[str, Array], standard: dict[str, Array], options: Options) -> Array:
    age = (values["age"] - 63) / 15
    score = _AGE_WEIGHT * age + _INTERACTION * age * standard["lactate"]
    score = score + np.asarray(_ADMISSION_WEIGHTS)[values["admission"].astype(int)]
    for name, m in _MEASUREMENTS.items():
        score = score + m.weight * standard[name]
    if options.attenuated is not None:
        hit = values[options.attenuated.feature] == options.attenuated.level
        score = np.where(hit, options.attenuated.slope * score, score)
    risk: Array = 1 / (1 + np.exp(-(_INTERCEPT + options.log_odds + score)))
    return risk


def _store(rng: np.random.Generator, frame: pd.DataFrame, options: Options, severity: Array) -> None:
    """Blank values and apply the source's units. The sicker, the more is measured."""
    for name in _MEASUREMENTS:
        rate = options.missing_of.get(name, options.missing)
        if 0 < rate < 1:
            log_odds = np.log(rate / (1 - rate)) - 0.5 * (severity - options.severity)
            rate_of = 1 / (1 + np.exp(-log_odds))
        else:
            rate_of = np.full(len(frame), rate)
        frame.loc[rng.random(len(frame)) < rate_of, name] = np.nan
    for name, unit in options.stored.items():
        if name not in frame:
            raise ConsiliumError("E103", f"field 'source.stored': {name!r} is not simulated")
        frame[name] = np.round(frame[name] * unit.factor + unit.offset, 2)


def _times(rng: np.random.Generator, frame: pd.DataFrame, patient: NDArray[np.int64], number: Array) -> None:
    """Stays in order; the prediction is made 24 hours after admission, from what was known by then."""
    start = np.datetime64("2021-01-01T00:00", "m")
    admitted = rng.integers(0, 365 * 24 * 60, patient.max() + 1)[patient] + number.astype(int) * 120 * 24 * 60
    frame["prediction_time"] = start + (admitted + 24 * 60).astype("timedelta64[m]")
    seen = rng.integers(0, 24 * 60, len(frame))
    frame["observed_until"] = start + (admitted + seen).astype("timedelta64[m]")
    frame["patient"] = [f"P{p:07d}" for p in patient]
    frame["record"] = [str(int(k) + 1) for k in number]


def read(options: Options, protocol: StudyProtocol) -> pd.DataFrame:
    """Return the simulated stays (see `site_runtime.connectors` for the columns).

    Raises:
        ConsiliumError: E202, the study has a feature that is not simulated; E103.
    """
    stays = simulate(options)
    frame = stays.frame.rename(columns={"died": protocol.label.name})
    for name in protocol.feature_names:
        if name not in FEATURES:
            raise ConsiliumError(
                "E202", f"feature {name!r} is not simulated; there are {', '.join(FEATURES)}"
            )
    auxiliary = [label.name for label in protocol.auxiliary_labels]
    for name in auxiliary:
        frame[name] = _auxiliary(stays.risk, name, options)
    times = ["prediction_time", "observed_until"]
    return frame[["patient", "record", *protocol.feature_names, protocol.label.name, *auxiliary, *times]]


def _auxiliary(risk: Array, name: str, options: Options) -> Array:
    """Draw an outcome whose log odds are those of the risk, plus noise of deviation 1; NaN = unknown."""
    rng = np.random.default_rng([options.seed, *name.encode()])
    log_odds = np.log(risk / (1 - risk)) + rng.normal(size=len(risk))
    happened = rng.random(len(risk)) < 1 / (1 + np.exp(-log_odds))
    return np.where(rng.random(len(risk)) < options.missing, np.nan, happened.astype(float))


def expected_auroc(risk: Array) -> float:
    """AUROC that the true risk reaches, in expectation over the outcomes.

    The chance that a patient who dies had the higher risk: over all ordered pairs, weighted by risk_i and
    (1 - risk_j), ties counting one half. risk: float64 [patients].
    """
    order = np.argsort(risk, kind="stable")
    sorted_risk = risk[order]
    below = np.concatenate([[0.0], np.cumsum(1 - sorted_risk)])
    first = np.searchsorted(sorted_risk, sorted_risk, side="left")
    after = np.searchsorted(sorted_risk, sorted_risk, side="right")
    half_ties = (below[after] - below[first]) / 2
    # A patient is not compared with themselves.
    won = below[first] + half_ties - (1 - sorted_risk) / 2
    pairs = sorted_risk.sum() * (1 - sorted_risk).sum() - (sorted_risk * (1 - sorted_risk)).sum()
    return float((sorted_risk * won).sum() / pairs)


def achievable_auroc(sources: Mapping[str, Options]) -> dict[str, float]:
    """The Bayes AUROC on the latest stay of every patient: an upper bound for any model.

    By the names of the sites, and under "pooled" their mean weighted by information (expected deaths times
    survivors over patients). It is reached only with every value measured, and it is about what happened:
    flipped labels are not part of it. For printing in a simulation; no part of what crosses.
    """
    result: dict[str, float] = {}
    weights: list[float] = []
    for site, options in sources.items():
        stays = simulate(options)
        risk = stays.risk[stays.latest]
        result[site] = expected_auroc(risk)
        weights.append(float(risk.sum() * (1 - risk).sum() / len(risk)))
    return result | {"pooled": float(np.average(list(result.values()), weights=weights))}
