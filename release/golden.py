"""Golden inputs and outputs: rows by which a deployment sees that its model computes what was released.

They come from the protocol alone (middle, limits, missing, out of range, all missing), never from a patient.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts.study import CategoricalFeature, Feature, StudyProtocol, threshold_of
from release.session import predict

TOLERANCE = 1e-5
_IN_RANGE_ROWS = 8
_ONE_BY_ONE = 32  # features that get a missing and an out-of-range row of their own


def golden_rows(protocol: StudyProtocol) -> tuple[list[str], NDArray[np.float32]]:
    """Return the name of each case and its row, float32 [rows, F], NaN for missing."""
    names, fixed = fixed_rows(protocol)
    # Public rows from a public seed; no privacy rests on them.
    seed = hashlib.sha256(f"golden/{protocol.hash}".encode()).digest()
    draw = np.random.Generator(np.random.PCG64(int.from_bytes(seed, "big")))
    drawn = np.array(
        [[_drawn(f, draw) for f in protocol.features] for _ in range(_IN_RANGE_ROWS)], dtype=np.float32
    )
    return [*names, *(f"in range, row {i + 1}" for i in range(_IN_RANGE_ROWS))], np.vstack([fixed, drawn])


def fixed_rows(protocol: StudyProtocol) -> tuple[list[str], NDArray[np.float32]]:
    """Return the cases that follow from the protocol without a draw, the same with every version of numpy."""
    features = protocol.features
    middle = [_middle(f) for f in features]
    cases: list[tuple[str, list[float]]] = [
        ("middle of every range, first level", middle),
        ("lower limits", [_limit(f, 0) for f in features]),
        ("upper limits", [_limit(f, -1) for f in features]),
        ("every other feature missing", [v if i % 2 else math.nan for i, v in enumerate(middle)]),
        ("all features missing", [math.nan] * len(features)),
    ]
    for i, feature in enumerate(features[:_ONE_BY_ONE]):
        cases.append((f"{feature.name} missing", _with(middle, i, math.nan)))
        cases.append((f"{feature.name} out of range", _with(middle, i, _outside(feature))))
    return [name for name, _ in cases], np.array([row for _, row in cases], dtype=np.float32)


def golden_document(
    protocol: StudyProtocol, onnx_path: Path, threshold: float | None = None
) -> dict[str, Any]:
    """Return `golden.json`: the rows and what onnxruntime answers. A missing value is null.

    Args:
        threshold: the locked one, where the protocol has a rule instead of a number.
    """
    names, x = golden_rows(protocol)
    probability, out_of_range = predict(onnx_path, x)
    return {
        "features": protocol.feature_names,
        "tolerance": TOLERANCE,
        "decision_threshold": threshold_of(protocol, threshold),
        "rows": [
            {
                "case": name,
                "features": [None if math.isnan(v) else float(v) for v in row],
                "probability": float(p),
                "out_of_range": bool(o),
            }
            for name, row, p, o in zip(names, x, probability, out_of_range, strict=True)
        ],
    }


def golden_difference(golden_path: Path, onnx_path: Path) -> tuple[float, int]:
    """Run the golden rows: the largest difference in probability, and how many flags or decisions differ.

    Raises:
        ValueError, KeyError: the golden file is not of the form that `golden_document` gives.
    """
    golden = json.loads(golden_path.read_text(encoding="utf-8"))
    rows, threshold = golden["rows"], golden["decision_threshold"]
    x = np.array([[math.nan if v is None else v for v in row["features"]] for row in rows], dtype=np.float32)
    expected = np.array([row["probability"] for row in rows])
    probability, out_of_range = predict(onnx_path, x)
    flags = np.array([row["out_of_range"] for row in rows]) != out_of_range
    # A row that lies on the threshold may fall on either side within the tolerance.
    near = np.abs(expected - threshold) <= TOLERANCE
    decisions = ((expected >= threshold) != (probability >= threshold)) & ~near
    difference = float(np.abs(expected - probability).max())
    return (difference if math.isfinite(difference) else 1.0), int((flags | decisions).sum())


def _limit(feature: Feature, end: int) -> float:
    return (feature.levels if isinstance(feature, CategoricalFeature) else feature.range)[end]


def _drawn(feature: Feature, draw: np.random.Generator) -> float:
    if isinstance(feature, CategoricalFeature):
        return float(draw.choice(feature.levels))
    return float(draw.uniform(*feature.range))


def _middle(feature: Feature) -> float:
    if isinstance(feature, CategoricalFeature):
        return feature.levels[0]
    return (feature.range[0] + feature.range[1]) / 2


def _outside(feature: Feature) -> float:
    if isinstance(feature, CategoricalFeature):
        return max(feature.levels) + 1
    return feature.range[1] + (feature.range[1] - feature.range[0])


def _with(row: list[float], index: int, value: float) -> list[float]:
    return [*row[:index], value, *row[index + 1 :]]
