"""Round 0: federated normalisation, as one bounded sum over patients (design section 5).

The site's half sums one bounded vector per patient, noised once when the study is private; the coordinator's
half turns the total over sites into `center` and `scale` of the first global model, and into `prevalence` for
balanced class weights. Sums, not means, are combined, so declared sizes play no part.

A missing value becomes the federated mean, `center`: imputation values are released here and nowhere else,
and what a missing value becomes is one constant for all patients of all sites.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from contracts.study import StudyProtocol
from privacy.statistics import (
    clip_bound,
    counts_labels,
    exact_sums,
    noise_of_total,
    noisy_sums,
    normalisation_from_sums,
    patient_vectors,
    prevalence_from_sums,
    vector_length,
)
from privacy.stream import NoiseStream
from strategies.interface import Admitted, Shapes, SiteUpdate, Tensors

SUMS = "sums"
PREVALENCE = "preprocessing.prevalence"  # float32 [1]: share of positive records, with balanced weights only
_TAIL = 7.0  # standard deviations beyond which honest noise does not reach: below 1e-11


def statistics_shapes(protocol: StudyProtocol) -> Shapes:
    """The one tensor of a statistics update: a count, three sums per numeric feature, a sum for the label."""
    return {SUMS: (vector_length(protocol),)}


def site_statistics(
    protocol: StudyProtocol,
    x: np.ndarray,
    mask: np.ndarray,
    y: np.ndarray,
    noise_multiplier: float | None,
    stream: NoiseStream,
) -> SiteUpdate:
    """The site's half: x float32 [patients, records, features]; mask bool, y float32 [patients, records]."""
    vectors = patient_vectors(x, mask, protocol, y)
    if noise_multiplier is None:
        sums = exact_sums(vectors)
    else:
        sums = noisy_sums(
            vectors, clip=clip_bound(protocol), noise_multiplier=noise_multiplier, stream=stream
        )
    return SiteUpdate(sent={SUMS: sums.astype(np.float32)})


def normalised_start(
    protocol: StudyProtocol,
    start: Tensors,
    updates: Sequence[Admitted],
    noise_multiplier: float | None,
    sites: int | None = None,
) -> Tensors:
    """The coordinator's half: the initial model `start` with the federation's normalisation in it.

    Args:
        sites: whose noise is in the updates; as many as there are updates when not given.
    """
    total = np.zeros(statistics_shapes(protocol)[SUMS], dtype=np.float64)
    for update in updates:
        total += update.tensors.whole(SUMS)
    noise = 0.0
    if noise_multiplier is not None:
        noise = noise_of_total(protocol, noise_multiplier, sites or len(updates))
    found = normalisation_from_sums(total, protocol, noise=noise)
    state = {
        **start,
        "preprocessing.center": found.mean.astype(np.float32),
        "preprocessing.scale": found.std.astype(np.float32),
    }
    if counts_labels(protocol):
        state[PREVALENCE] = np.array([prevalence_from_sums(total, noise=noise)], dtype=np.float32)
    return state


def class_weights(state: Tensors) -> tuple[float, float] | None:
    """Weights of the loss of a negative and of a positive record, in this order; None when both weigh 1.

    With p the released share of positives: 1 / (2 (1 - p)) and 1 / (2 p). Both classes then weigh the same in
    all, and the mean weight of a record is 1.

    Args:
        state: a global state of the study.
    """
    if PREVALENCE not in state:
        return None
    p = float(state[PREVALENCE][0])
    return 1.0 / (2.0 * (1.0 - p)), 1.0 / (2.0 * p)


def statistics_norm_bound(
    protocol: StudyProtocol, declared_size: int, noise_multiplier: float | None
) -> float:
    """Largest plausible L2 norm of a site's sums: twice the declared size at the clip bound, plus noise."""
    shape = statistics_shapes(protocol)[SUMS][0]
    if noise_multiplier is None:
        return 2.0 * declared_size * math.sqrt(4.0 * shape)
    clip = clip_bound(protocol)
    return clip * (2.0 * declared_size + noise_multiplier * (math.sqrt(shape) + _TAIL))
