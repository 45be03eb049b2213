"""Where a value lies in the limits of a gate, and the result that says so."""

from __future__ import annotations

from contracts.evaluation import Estimate
from contracts.gates import Gate
from contracts.release import GateResult


def compared(gate: Gate, estimate: Estimate) -> float | None:
    """Return the end of the estimate that the gate looks at; None where it has none."""
    return {"point": estimate.value, "lower": estimate.lower, "upper": estimate.upper}[gate.bound]


def distance(gate: Gate, value: float) -> float:
    """Return how far inside the gate's limits (above 0) or outside (below 0) a value lies."""
    inside = []
    if gate.at_least is not None:
        inside.append(value - gate.at_least)
    if gate.at_most is not None:
        inside.append(gate.at_most - value)
    return min(inside)


def in_words(margin: float) -> str:
    """Say a margin: `within by 0.020`, `misses by 0.010`."""
    return f"within by {margin:.3f}" if margin >= 0 else f"misses by {-margin:.3f}"


def shown(estimate: Estimate) -> str:
    """Say an estimate with its 95 % interval, where it has one."""
    if estimate.lower is None or estimate.upper is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} (95 % {estimate.lower:.3f} to {estimate.upper:.3f})"


def decided(gate: Gate, value: float, detail: str, site: str | None = None) -> GateResult:
    """Return the result of a gate that this value decides."""
    margin = distance(gate, value)
    return result(gate, margin >= 0, detail, value=value, margin=margin, site=site)


def untestable(gate: Gate, why: str, site: str | None = None) -> GateResult:
    """Return the result of a gate that the data cannot decide."""
    return result(gate, None, f"not testable: {why}", site=site)


def result(
    gate: Gate,
    passed: bool | None,
    detail: str,
    *,
    value: float | None = None,
    margin: float | None = None,
    site: str | None = None,
) -> GateResult:
    """Return a gate's result under the gate's title, its detail cut to what the contract holds."""
    return GateResult(
        gate=gate.title, passed=passed, value=value, margin=margin, site=site, detail=cut(detail)
    )


def cut(detail: str) -> str:
    """Keep a detail inside the contract's 500 characters: a study may have a thousand hospitals."""
    return detail if len(detail) <= 500 else detail[:497] + "..."
