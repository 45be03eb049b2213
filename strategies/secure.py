"""What coordinator and hospitals derive alike of an exchange under secure aggregation.

Roster, weights, threshold and form of the masked vector follow from the protocol and from the signed plan.
`privacy.secure_sum` is the mechanism.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts.errors import ConsiliumError
from contracts.plan import RoundPlan
from contracts.study import StudyProtocol
from privacy.fixed_point import bits_for, decode, encode
from privacy.mask_context import LEAST_SITES, smallest_sum
from privacy.secure_sum import Context
from strategies.bounds import expected_update, weight_of
from strategies.interface import Shapes, Tensors

MASKED, SHARES, COMMITMENTS = "masked", "shares", "commitments"  # tensors of what a hospital sends


def is_masked(protocol: StudyProtocol, kind: str) -> bool:
    """Say whether exchanges of this kind are summed under masks: in a secure study all that send tensors."""
    return protocol.secure is not None and kind in ("statistics", "training", "histogram")


def least_sites(protocol: StudyProtocol, fold: bool) -> int:
    """How many hospitals a sum must be over at least; in a fold the protocol asks for one fewer."""
    return max(LEAST_SITES, protocol.min_sites - fold)


def shares_needed(protocol: StudyProtocol, sites: int) -> int:
    """How many of so many hospitals must answer each hop: the protocol's threshold, and above one half.

    It is raised where a coordinator that tells hospitals different lists could open a sum over fewer than
    `LEAST_SITES` of them.
    """
    assert protocol.secure is not None
    # What is a whole number but for the last bit of a float is that number.
    needed = max(math.ceil(protocol.secure.threshold * sites - 1e-9), sites // 2 + 1)
    return next((t for t in range(needed, sites) if smallest_sum(sites, t) >= LEAST_SITES), sites)


def least_alive(protocol: StudyProtocol, plan: RoundPlan) -> int:
    """How many masked vectors a sum of this plan must be over at least."""
    needed = shares_needed(protocol, len(plan.roster))
    return max(needed, least_sites(protocol, plan.fold is not None))


def context_of(protocol: StudyProtocol, plan: RoundPlan, plan_digest: str) -> Context:
    """What every mask, share and commitment of the plan is bound to.

    Raises:
        ConsiliumError: E432, a roster that cannot be summed under masks.
    """
    names = sorted(entry.site for entry in plan.roster)
    return Context(
        study=plan.study,
        protocol_hash=plan.protocol_hash,
        plan=plan_digest,
        exchange=plan.round,
        roster=tuple(names),
        threshold=shares_needed(protocol, len(names)),
    )


@dataclass(frozen=True)
class Layout:
    """How an update of a plan becomes a vector of fixed-point numbers, and their sum tensors again.

    Attributes:
        shapes: of the tensors; they follow each other in the order of their names.
        weights: by hospital of the roster; 1 where sums and not means are combined.
        norms: by hospital, the largest plausible L2 norm of its update.
        bits: fraction bits of the fixed-point numbers.
    """

    shapes: Shapes
    weights: dict[str, float]
    norms: dict[str, float]
    bits: int

    @property
    def length(self) -> int:
        """Numbers in a vector."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def bound(self) -> float:
        """Largest absolute value of any number in an update."""
        return max(self.norms.values())

    def encoded(self, update: Tensors, site: str) -> NDArray[np.uint64]:
        """Return a hospital's update as weighted fixed-point numbers, uint64 [length].

        Raises:
            ConsiliumError: E501, other tensors than the plan's; E505, larger than honest training makes it;
                E431, a value that is not finite.
        """
        found = {name: array.shape for name, array in update.items()}
        if found != self.shapes:
            raise ConsiliumError("E501", f"tensors {found}, expected {self.shapes}")
        flat = np.concatenate([update[name].reshape(-1) for name in sorted(update)])
        encoded = encode(flat, self.weights[site], self.bits, self.bound)
        norm = float(np.linalg.norm(flat.astype(np.float64)))
        if norm > self.norms[site]:
            raise ConsiliumError("E505", f"L2 norm {norm:.4g}, expected <= {self.norms[site]:.4g}")
        return encoded

    def decoded(self, total: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Return a sum of encoded vectors, or a block of it, as float64."""
        return decode(total, self.bits)

    def tensors(self, flat: NDArray[np.float64]) -> Tensors:
        """Cut a vector into the update's tensors."""
        found, start = {}, 0
        for name, shape in sorted(self.shapes.items()):
            stop = start + math.prod(shape)
            found[name], start = flat[start:stop].reshape(shape), stop
        return found

    def largest_sum(self, sites: list[str]) -> float:
        """Largest plausible L2 norm of the sum over these hospitals, rounding included."""
        rounding = 0.5 * len(sites) * math.sqrt(self.length) * 2.0**-self.bits
        return sum(self.weights[site] * self.norms[site] for site in sites) + rounding


def layout_of(protocol: StudyProtocol, plan: RoundPlan, model: Shapes) -> Layout:
    """Derive the form of a plan's masked vectors.

    Args:
        model: shapes of the plan's base model; not looked at for statistics and histogram.

    Raises:
        ConsiliumError: E430, the sum of so large updates has no room in 64 bits.
    """
    expected = {e.site: expected_update(protocol, plan, model, e.declared_size) for e in plan.roster}
    mean = plan.kind == "training"
    weights = {e.site: weight_of(protocol, e.declared_size) if mean else 1.0 for e in plan.roster}
    norms = {site: found.max_norm for site, found in expected.items()}
    return Layout(
        shapes=next(iter(expected.values())).shapes,
        weights=weights,
        norms=norms,
        bits=bits_for(max(norms.values()), sum(weights.values())),
    )
