"""One small study for every registered model, and patients for it: shared by tests of models and privacy."""

from __future__ import annotations

from typing import Any

import numpy as np

from contracts.study import CategoricalFeature, StudyProtocol
from tests.factories import private_study

VITALS = [("heart_rate", "1/min", [20, 220]), ("lactate", "mmol/L", [0, 20])]


def _series(time_steps: int) -> list[dict[str, Any]]:
    """Two measurements and a code at every time step."""
    features: list[dict[str, Any]] = []
    for t in range(time_steps):
        for name, unit, limits in VITALS:
            features.append({"name": f"{name}_{t}", "kind": "numeric", "unit": unit, "range": limits})
        features.append({"name": f"ventilated_{t}", "kind": "categorical", "levels": [0, 1]})
    return features


def _pixels(count: int) -> list[dict[str, Any]]:
    return [{"name": f"pixel_{i}", "kind": "numeric", "unit": "1", "range": [0, 255]} for i in range(count)]


def zoo(**changes: Any) -> dict[str, StudyProtocol]:
    """A small private study for every registered model, by its name; `changes` are to every study."""
    auxiliary = [
        {"name": "ventilated_later", "positive": "ventilated within a day"},
        {"name": "readmitted", "positive": "readmitted within 30 days"},
    ]
    models: dict[str, dict[str, Any]] = {
        "logistic": {"model": {}},
        "mlp": {"model": {"hidden": [8, 4], "missing_indicators": True}},
        "lstm": {"model": {"time_steps": 4, "hidden": [6]}, "features": _series(4), "subgroups": []},
        "cnn": {"model": {"image": [8, 8], "hidden": [4, 6]}, "features": _pixels(64), "subgroups": []},
        "multitask": {"model": {"hidden": [8]}, "auxiliary_labels": auxiliary},
    }
    return {
        name: private_study(
            **{**fields, "study": f"tiny-{name}", "model": {"name": name} | fields["model"]} | changes
        )
        for name, fields in models.items()
    }


def rows(protocol: StudyProtocol, count: int, seed: int) -> np.ndarray:
    """Raw records, float32 [count, features]: a tenth of the values is missing, some are out of range."""
    draw = np.random.default_rng(seed)
    x = np.empty((count, len(protocol.features)), dtype=np.float32)
    for column, feature in enumerate(protocol.features):
        if isinstance(feature, CategoricalFeature):
            x[:, column] = draw.choice([*feature.levels, max(feature.levels) + 1], count)
        else:
            low, high = feature.range
            x[:, column] = draw.uniform(low - 0.1 * (high - low), high + 0.1 * (high - low), count)
    x[draw.random(x.shape) < 0.1] = np.nan
    return x


def batch(protocol: StudyProtocol, patients: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Patients with one to `max_records` records each, as a trainer gets them.

    Returns:
        x: float32 [patients, records, features], raw units, NaN = missing; unused records 0.
        mask: bool [patients, records].
        y: float32 [patients, records] of 0 and 1, unused records 0; with auxiliary labels [patients, records,
            labels], where a third of the auxiliary ones is NaN = unknown, and all of unused records are.
    """
    draw = np.random.default_rng([seed, 1])
    width = protocol.cohort.max_records
    x = rows(protocol, patients * width, seed).reshape(patients, width, -1)
    mask = np.arange(width) < draw.integers(1, width + 1, patients)[:, None]
    x[~mask] = 0
    labels = 1 + len(protocol.auxiliary_labels)
    y = draw.integers(0, 2, (patients, width, labels)).astype(np.float32)
    y[..., 1:][draw.random((patients, width, labels - 1)) < 1 / 3] = np.nan
    y[~mask, 0], y[~mask, 1:] = 0, np.nan
    return x, mask, y if labels > 1 else y[..., 0]


def table(protocol: StudyProtocol, patients: int, seed: int) -> list[dict[str, Any]]:
    """Rows of a hospital's CSV with what `batch` gives, values within their ranges; empty = missing."""
    x, mask, y = batch(protocol, patients, seed)
    if y.ndim == 2:
        y = y[..., None]
    for column, feature in enumerate(protocol.features):
        low, high = (
            (min(feature.levels), max(feature.levels))
            if isinstance(feature, CategoricalFeature)
            else feature.range
        )
        x[..., column] = np.clip(x[..., column], low, high)
    labels = [label.name for label in (protocol.label, *protocol.auxiliary_labels)]
    names = [*protocol.feature_names, *labels]
    lines = []
    for patient, record in np.argwhere(mask):
        values = [*x[patient, record], *y[patient, record]]
        cells = {n: "" if np.isnan(v) else f"{v:g}" for n, v in zip(names, values, strict=True)}
        lines.append({"patient": f"p{patient}", "record": int(record)} | cells)
    return lines
