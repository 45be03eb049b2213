"""Round 0: federated normalisation, as one bounded sum over patients (design section 5).

The site's half sums one bounded vector per patient, noised once when the study is private; the coordinator's
half turns the total over sites into `center` and `scale` of the first global model. Sums, not means, are
combined, so declared sizes play no part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from contracts.study import StudyProtocol
from privacy.statistics import (
    clip_bound,
    exact_sums,
    noise_of_total,
    noisy_sums,
    normalisation_from_sums,
    numeric_features,
    patient_vectors,
)
from privacy.stream import NoiseStream
from strategies.interface import Admitted, Shapes, SiteUpdate, Tensors

SUMS = "sums"
_TAIL = 7.0  # standard deviations beyond which honest noise does not reach: below 1e-11


def statistics_shapes(protocol: StudyProtocol) -> Shapes:
    """The one tensor of a statistics update: a count and three sums per numeric feature."""
    return {SUMS: (1 + 3 * len(numeric_features(protocol)),)}


def site_statistics(
    protocol: StudyProtocol,
    x: np.ndarray,
    mask: np.ndarray,
    noise_multiplier: float | None,
    stream: NoiseStream,
) -> SiteUpdate:
    """The site's half: x float32 [patients, records, features], mask bool [patients, records]."""
    vectors = patient_vectors(x, mask, protocol)
    if noise_multiplier is None:
        sums = exact_sums(vectors)
    else:
        sums = noisy_sums(
            vectors, clip=clip_bound(protocol), noise_multiplier=noise_multiplier, stream=stream
        )
    return SiteUpdate(sent={SUMS: sums.astype(np.float32)})


def normalised_start(
    protocol: StudyProtocol, start: Tensors, updates: Sequence[Admitted], noise_multiplier: float | None
) -> Tensors:
    """The coordinator's half: the initial model `start` with the federation's normalisation in it."""
    total = np.zeros(statistics_shapes(protocol)[SUMS], dtype=np.float64)
    for update in updates:
        total += update.tensors.whole(SUMS)
    noise = 0.0
    if noise_multiplier is not None:
        noise = noise_of_total(protocol, noise_multiplier, len(updates))
    found = normalisation_from_sums(total, protocol, noise=noise)
    return {
        **start,
        "preprocessing.center": found.mean.astype(np.float32),
        "preprocessing.scale": found.std.astype(np.float32),
    }


def statistics_norm_bound(
    protocol: StudyProtocol, declared_size: int, noise_multiplier: float | None
) -> float:
    """Largest plausible L2 norm of a site's sums: twice the declared size at the clip bound, plus noise."""
    shape = statistics_shapes(protocol)[SUMS][0]
    if noise_multiplier is None:
        return 2.0 * declared_size * math.sqrt(4.0 * shape)
    clip = clip_bound(protocol)
    return clip * (2.0 * declared_size + noise_multiplier * (math.sqrt(shape) + _TAIL))
