"""How far honest rounds can move the global model: what a hospital holds the coordinator to.

Counterpart of `strategies.bounds`, by which the coordinator holds a hospital to what its training can reach.
"""

from __future__ import annotations

import math

from contracts.privacy import HospitalPrivacy
from contracts.study import StudyProtocol
from strategies.bounds import training_norm_bound


def round_norm_bound(
    protocol: StudyProtocol, dimension: int, declared_sizes: list[int], noise_multiplier: float | None
) -> float:
    """Largest L2 norm by which one honest round can move the global model.

    A mean of updates, however weighted, is no longer than the longest of them, nor is a coordinate-wise
    median or trimmed mean longer than sqrt(d) times it; the smallest hospital has the largest bound. With
    hospital-level privacy the coordinator's noise comes on top. An adaptive server optimiser (FedAdam: Reddi
    et al. 2021, algorithm 2) moves a coordinate by at most learning rate x (1 - beta1) / sqrt(1 - beta2) x
    sqrt(sum of (beta1^2 / beta2)^k) where that sum is finite, and always by at most learning rate x change /
    tau. The bound keeps out absurd models, not small changes.
    """
    settings = protocol.strategy
    update = training_norm_bound(protocol, dimension, min(declared_sizes), noise_multiplier)
    if settings.aggregation.method in ("median", "trimmed_mean"):
        update *= math.sqrt(dimension)
    if isinstance(protocol.privacy, HospitalPrivacy) and noise_multiplier is not None:
        clip = protocol.privacy.max_update_norm
        update += noise_multiplier * clip * (math.sqrt(dimension) + 7.0)
    step = settings.server_learning_rate * update
    if settings.name == "fedadam":
        step /= settings.tau
        ratio = settings.beta1**2 / settings.beta2 if settings.beta2 > 0 else math.inf
        if ratio < 1.0:
            largest = (1.0 - settings.beta1) / math.sqrt((1.0 - settings.beta2) * (1.0 - ratio))
            step = min(step, settings.server_learning_rate * largest * math.sqrt(dimension))
    return step
