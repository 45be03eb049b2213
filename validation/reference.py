"""The risk of a published score: what a new model has to be better than, computed from the same features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from contracts.study import NumericFeature, StudyProtocol
from contracts.validation_plan import ReferenceScore, ScoreTerm


def reference_risk(
    score: ReferenceScore, features: NDArray[np.float32], protocol: StudyProtocol
) -> NDArray[np.float64]:
    """Return sigmoid(intercept + sum of terms) for each patient.

    A value is first clamped to the range that the protocol declares for its feature, as the model's own
    preprocessing does. A missing value counts as the term's `missing`; a level that the term does not name
    adds 0.

    Args:
        score: from the protocol.
        features: float32 [patients, F] in the protocol's units and order, NaN for missing.
        protocol: names and ranges of the features.

    Returns:
        float64 [patients], between 0 and 1.
    """
    total = np.full(len(features), score.intercept, dtype=np.float64)
    for term in score.terms:
        total += _points(term, _values(term.feature, features, protocol))
    return np.exp(-np.logaddexp(0, -total))


def _values(name: str, features: NDArray[np.float32], protocol: StudyProtocol) -> NDArray[np.float32]:
    values = features[:, protocol.feature_names.index(name)]
    feature = next(f for f in protocol.features if f.name == name)
    if isinstance(feature, NumericFeature):
        low, high = feature.range
        values = np.clip(values, np.float32(low), np.float32(high))  # NaN stays NaN
    return values


def _points(term: ScoreTerm, values: NDArray[np.float32]) -> NDArray[np.float64]:
    missing = np.isnan(values)
    if term.coefficient is not None:
        filled = np.where(missing, term.missing, values.astype(np.float64))
        return term.coefficient * filled
    points = np.zeros(len(values))
    for level, worth in (term.levels or {}).items():
        # float32 against float32: 0.1 read from a text is not the 0.1f of the cohort.
        points[values == np.float32(float(level))] = worth
    points[missing] = term.missing
    return points
