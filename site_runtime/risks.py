"""The final model's risks of the site's own training patients; they are counted and never leave."""

from __future__ import annotations

import numpy as np
import torch

from contracts.study import StudyProtocol
from models.registry import build_model, load_state
from site_runtime.cohort import CohortArrays
from strategies.interface import Tensors


def latest_risks(
    protocol: StudyProtocol, state: Tensors, cohort: CohortArrays
) -> tuple[np.ndarray, np.ndarray]:
    """Return the risk, float64 [patients], and the label, [patients], of each patient's latest record.

    One patient at a time: in a batch the last bit of a result may depend on how many others there are, and
    could carry a patient over the edge of a bin because another one was added.
    """
    model = build_model(protocol)
    load_state(model, state)
    model.eval()
    risk = np.empty(cohort.patients, dtype=np.float64)
    with torch.no_grad():
        for i in range(cohort.patients):
            risk[i] = torch.sigmoid(model(torch.from_numpy(cohort.x[i : i + 1, 0, :]))).double().item()
    return risk, cohort.y[:, 0]
