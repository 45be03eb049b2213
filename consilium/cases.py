"""Files of compositions, `{"cases": [{"steps": [...], "delta": ...}]}`: read strictly, answered in order."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn, get_args

from contracts.errors import ConsiliumError
from contracts.privacy import Adjacency

_MOST_STEPS = 10**12
_MOST_NOISE = 1e300
_NUMBERS = {
    "sample_rate": "a number above 0 and at most 1",
    "noise_multiplier": f"a number above 0 and at most {_MOST_NOISE:g}",
    "steps": f"a whole number from 1 to {_MOST_STEPS:g}",
}


def read_cases(path: Path) -> list[dict[str, Any]]:
    """Read and check every case before any is computed. Fields that are not ours are kept.

    Raises:
        ConsiliumError: E802, naming the case, the field, its value and what was expected.
    """

    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON number")

    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=constant)
    except (OSError, ValueError, RecursionError) as error:
        raise ConsiliumError("E802", f"{path}: {error}") from error
    cases = value.get("cases") if isinstance(value, dict) else None
    if not isinstance(cases, list) or not cases:
        raise ConsiliumError("E802", f'{path}: expected {{"cases": [...]}} with at least one case')
    for number, case in enumerate(cases, 1):
        _check_case(number, case)
    return cases


def with_epsilons(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the cases in order with `epsilon_prv` and `epsilon_rdp` at their delta.

    Where no epsilon can be stated both are None and `error` holds the refusal's number.
    """
    return [case | _epsilons(case) for case in cases]


def _epsilons(case: dict[str, Any]) -> dict[str, Any]:
    from privacy.accountant import Spend, epsilon, epsilon_rdp

    adjacency: Adjacency = case.get("adjacency", "add-or-remove-one")
    spends = [Spend(s["sample_rate"], s["noise_multiplier"], s["steps"]) for s in case["steps"]]
    try:
        prv = epsilon(spends, case["delta"], adjacency)
    except ConsiliumError as error:
        return {"epsilon_prv": None, "epsilon_rdp": None, "error": error.number}
    rdp = epsilon_rdp(spends, case["delta"], adjacency)
    if not (math.isfinite(prv) and math.isfinite(rdp)):
        return {"epsilon_prv": None, "epsilon_rdp": None, "error": "E408"}
    return {"epsilon_prv": prv, "epsilon_rdp": rdp}


def _check_case(number: int, case: Any) -> None:
    def refuse(field: str, value: Any, expected: str) -> NoReturn:
        shown = json.dumps(value)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        raise ConsiliumError("E802", f"case {number}: {field} {shown}, expected {expected}")

    if not isinstance(case, dict):
        refuse("case", case, "an object with steps and delta")
    steps, delta = case.get("steps"), case.get("delta")
    if not isinstance(steps, list):
        refuse("steps", steps, "a list")
    for i, step in enumerate(steps):
        if not isinstance(step, dict):
            refuse(f"steps[{i}]", step, f"an object with {', '.join(_NUMBERS)}")
        unknown = sorted(set(step) - set(_NUMBERS))
        if unknown:
            refuse(f"steps[{i}]", unknown, f"no other fields than {', '.join(_NUMBERS)}")
        for name, expected in _NUMBERS.items():
            if not _is_valid(name, step.get(name)):
                refuse(f"steps[{i}].{name}", step.get(name), expected)
    if not _is_within(delta, 1.0) or delta == 1.0:
        refuse("delta", delta, "a number above 0 and below 1")
    if "adjacency" in case and case["adjacency"] not in get_args(Adjacency):
        refuse("adjacency", case["adjacency"], f"one of {', '.join(get_args(Adjacency))}")


def _is_valid(name: str, value: Any) -> bool:
    if name == "steps":
        return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST_STEPS
    return _is_within(value, 1.0 if name == "sample_rate" else _MOST_NOISE)


def _is_within(value: Any, most: float) -> bool:
    """Whether this is a number above 0 and at most `most`."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.0 < value <= most
