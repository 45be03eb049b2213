"""The privacy of a study: whose contribution is hidden, and how much of it may be learnt over all rounds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from contracts.fields import Contract, Positive


class Quantile(Contract):
    """Adaptive clipping: Andrew et al. 2021 (arXiv:1905.03871), algorithm 1, with clipping norm C.

    Each step also releases a noised count of those whose norm is at most C, and C follows
    C <- C exp(-learning_rate (share within C - target)), never above the protocol's clip norm. `share` of the
    precision 1 / noise_multiplier^2 of a step pays for the count, so that both together cost what one
    Gaussian of noise_multiplier costs.
    """

    target: Annotated[float, Field(gt=0, lt=1)] = 0.5
    learning_rate: Positive = 0.2
    share: Annotated[float, Field(gt=0, lt=1)] = 0.05


class NoPrivacy(Contract):
    """No differential privacy: exact updates and statistics leave, and no epsilon may be stated."""

    mode: Literal["none"]


Adjacency = Literal["add-or-remove-one", "replace-one"]


class PatientPrivacy(Contract):
    """Patient-level DP-SGD over the whole planned study.

    Neighbouring cohorts differ by adding or removing one patient; by replacing one, where the protocol
    declares that cohort sizes are public (`public_n`). `max_grad_norm` is the clip norm; with per-layer
    clipping each of k layers gets max_grad_norm / sqrt(k), with adaptive clipping it is where the norm starts
    and what it never exceeds.
    """

    mode: Literal["patient"]
    epsilon: Annotated[float, Field(gt=0, le=20)]
    delta: Annotated[float, Field(gt=0, lt=1e-2)]
    max_grad_norm: Positive
    statistics_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1  # of epsilon, for round 0
    threshold_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05  # of epsilon, for a decision threshold
    clipping: Literal["flat", "per-layer", "adaptive"] = "flat"
    quantile: Quantile = Quantile()  # of adaptive clipping
    public_n: bool = False

    @property
    def adjacency(self) -> Adjacency:
        """Which cohorts are neighbours."""
        return "replace-one" if self.public_n else "add-or-remove-one"


class HospitalPrivacy(Contract):
    """Hospital-level privacy at a trusted coordinator: DP-FedAvg (McMahan et al. 2018, arXiv:1710.06963).

    The unit is a whole hospital: its update is clipped to `max_update_norm` and the weighted sum is noised
    before anybody but the coordinator sees it. Every hospital takes part in every round: the roster is there
    for all to see, so no amplification by sampling may be claimed.
    """

    mode: Literal["site"]
    epsilon: Annotated[float, Field(gt=0, le=50)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    max_update_norm: Positive
    clipping: Literal["flat", "adaptive"] = "flat"
    quantile: Quantile = Quantile()


Privacy = Annotated[NoPrivacy | PatientPrivacy | HospitalPrivacy, Field(discriminator="mode")]
