"""What an honest update of a plan looks like, read off protocol, plan and roster alone.

Both sides ask here: admission at the coordinator, and with secure aggregation every hospital, which has to
find the same numbers by itself, since fixed-point sums only fit each other if all encode alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from contracts.plan import RoundPlan
from contracts.privacy import PatientPrivacy
from contracts.study import StudyProtocol
from strategies.interface import Shapes
from strategies.normalisation import statistics_norm_bound, statistics_shapes
from strategies.registry import strategy_of
from strategies.threshold import histogram_norm_bound, histogram_shapes

WITHOUT_CLIP = 100.0  # gradient norm assumed possible per root dimension when nothing clips it


@dataclass(frozen=True)
class Expectation:
    """What an update must look like; `max_norm` is the largest plausible L2 norm."""

    shapes: Shapes
    max_norm: float


def expected_update(
    protocol: StudyProtocol, plan: RoundPlan, model: Shapes, declared_size: int
) -> Expectation:
    """What a site of this declared size must send for a plan.

    Args:
        model: shapes of the plan's base model; not looked at for statistics and histogram.
    """
    if plan.kind == "statistics":
        return Expectation(
            shapes=statistics_shapes(protocol),
            max_norm=statistics_norm_bound(protocol, declared_size, plan.noise_multiplier),
        )
    if plan.kind == "histogram":
        return Expectation(histogram_shapes(), histogram_norm_bound(declared_size, plan.noise_multiplier))
    shapes = strategy_of(protocol).expected(protocol, model)
    dimension = sum(math.prod(shape) for shape in shapes.values())
    return Expectation(
        shapes=shapes,
        max_norm=training_norm_bound(protocol, dimension, declared_size, plan.noise_multiplier),
    )


def weight_of(protocol: StudyProtocol, declared_size: int) -> float:
    """Aggregation weight: declared sizes or equal, never a count taken from data."""
    return float(declared_size) if protocol.strategy.weights == "declared" else 1.0


def training_norm_bound(
    protocol: StudyProtocol, dimension: int, declared_size: int, noise_multiplier: float | None
) -> float:
    """Largest L2 norm of an honest parameter change, up to a probability below 1e-9.

    With DP-SGD one step moves by lr x (sum of at most B clipped gradients + noise) / (rate x N): B is
    bounded by twice the expected batch plus ten standard deviations, the noise vector by
    sigma x C x (sqrt(d) + 7) (Laurent and Massart 2000, lemma 1). Momentum multiplies by 1 / (1 - m).
    Without clipping no such bound exists; a loose one keeps out only absurd updates.
    """
    settings = protocol.training
    reach = settings.learning_rate * settings.steps / (1.0 - settings.momentum)
    if isinstance(protocol.privacy, PatientPrivacy) and noise_multiplier is not None:
        clip = protocol.privacy.max_grad_norm
        batch = settings.sample_rate * declared_size
        signal = clip * (2.0 * batch + 10.0 * math.sqrt(batch) + 10.0) / batch
        noise = noise_multiplier * clip * (math.sqrt(dimension) + 7.0) / batch
        return reach * (signal + noise) * (1.0 + settings.weight_decay * reach)
    return reach * WITHOUT_CLIP * math.sqrt(dimension)
