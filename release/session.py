"""Run an exported model with onnxruntime alone, as a clinical deployment does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def open_session(onnx_path: Path) -> Any:
    """Return an onnxruntime session on the CPU with one thread, so that a result repeats bit for bit."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(onnx_path), options, providers=["CPUExecutionProvider"])


def predict(onnx_path: Path, x: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the model's answer for each row.

    Args:
        onnx_path: a `model.onnx` of `release.export`.
        x: float [patients, F] in raw clinical units, NaN for missing.

    Returns:
        probability float32 [patients], and out_of_range bool [patients]: rows that training could not have
        seen, whose probability must not be used.
    """
    features = np.ascontiguousarray(x, dtype=np.float32)
    probability, out_of_range = open_session(onnx_path).run(
        ["probability", "out_of_range"], {"features": features}
    )
    return probability, out_of_range
