"""What must hold before anybody may see how well the model does; declared in the protocol beforehand.

It speaks of the holdouts alone, never of the model, so that looking at it cannot tune anything. While it does
not hold, the hospitals' reports stay sealed.
"""

from __future__ import annotations

from collections.abc import Mapping

from contracts.errors import ConsiliumError
from contracts.evaluation import HoldoutDiagnostics
from contracts.release import GateResult
from contracts.study import StudyProtocol
from validation.limits import cut


def check_diagnostics(
    protocol: StudyProtocol, diagnostics: Mapping[str, HoldoutDiagnostics], frozen: Mapping[str, bool]
) -> list[GateResult]:
    """Check enough events, prevalence, missingness (as far as the protocol asks) and frozen holdouts.

    Prevalence and missingness must hold at every hospital with enough events; of few patients neither says
    much. They are not testable while no hospital has enough.

    Args:
        protocol: `validation.diagnostics` says what must hold.
        diagnostics: hospital -> what it reports of its holdout.
        frozen: hospital -> whether its holdout is the one that was fixed before its first round. A hospital
            that reports and is not named counts as not frozen.
    """
    plan = protocol.validation.diagnostics
    testable = {site: d for site, d in sorted(diagnostics.items()) if d.enough_events}
    few = sorted(set(diagnostics) - set(testable))
    enough = f"{len(testable)} of {len(diagnostics)} hospitals, at least {plan.testable_sites} needed"
    if few:
        enough += f"; too few at {', '.join(few)}"
    results = [
        GateResult(
            gate=f"enough hospitals with {plan.minimum_events} events and as many non-events",
            passed=len(testable) >= plan.testable_sites,
            value=float(len(testable)),
            margin=float(len(testable) - plan.testable_sites),
            site=few[0] if few and len(testable) < plan.testable_sites else None,
            detail=cut(enough),
        )
    ]
    if plan.prevalence:
        results.append(_everywhere("prevalence as declared", {s: d.prevalence for s, d in testable.items()}))
    if plan.missingness:
        results.append(
            _everywhere("missing values as declared", {s: d.missingness for s, d in testable.items()})
        )
    hospitals = sorted(set(diagnostics) | set(frozen))
    results.append(
        _everywhere(
            "holdout frozen before the hospital's first round", {s: frozen.get(s, False) for s in hospitals}
        )
    )
    return results


def require_diagnostics(
    protocol: StudyProtocol, diagnostics: Mapping[str, HoldoutDiagnostics], frozen: Mapping[str, bool]
) -> list[GateResult]:
    """Return the checks of `check_diagnostics`, all of which hold.

    Raises:
        ConsiliumError: E606, naming each check that does not hold and the hospitals.
    """
    results = check_diagnostics(protocol, diagnostics, frozen)
    stopped = [each for each in results if each.passed is not True]
    if stopped:
        raise ConsiliumError("E606", "; ".join(f"{each.gate}: {each.detail}" for each in stopped))
    return results


def _everywhere(check: str, holds: Mapping[str, bool]) -> GateResult:
    failed = [site for site, held in holds.items() if not held]
    if not holds:
        return GateResult(gate=check, passed=None, detail="not testable: no hospital has enough events")
    detail = f"not so at {', '.join(failed)}" if failed else f"holds at {len(holds)} hospitals"
    return GateResult(gate=check, passed=not failed, site=failed[0] if failed else None, detail=cut(detail))
