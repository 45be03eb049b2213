"""An amendment may ask for more than the study before, never for less."""

from __future__ import annotations

import pytest

from tests.factories import tiny_study
from validation.tightening import loosened

FLOOR = {"metric": "auroc", "bound": "lower", "at_least": 0.7}
SLOPE = {"metric": "calibration_slope", "at_least": 0.8, "at_most": 1.2}
SAFE = {"metric": "non_inferiority", "against": "first", "margin": 0.02}
GAP = {"metric": "subgroup_gap", "subgroup": "sex", "at_most": 0.1}
PARITY = {"metric": "parity"}
SCORE = {
    "name": "S",
    "source": "S 2020",
    "intercept": 0.0,
    "terms": [{"feature": "age", "coefficient": 0.1}],
}
BETTER = {"metric": "difference", "against": "reference", "at_least": 0.0}
GATES = [FLOOR, SLOPE, SAFE, GAP, PARITY, BETTER]


def study(gates=None, **changes):
    fields = {
        "gates": GATES if gates is None else gates,
        "validation": {
            "reference": SCORE,
            "diagnostics": {"minimum_events": 20, "testable_sites": 2},
            "error_budget": {"alpha": 0.05, "releases": 10},
        },
        "sign_off": {"roles": ["clinician", "quality"]},
        "label": {"name": "died", "positive": "died in hospital", "prevalence": [0.1, 0.5]},
    }
    return tiny_study(**{**fields, **changes})


def with_gate(old, **changes):
    return [{**gate, **changes} if gate is old else gate for gate in GATES]


def without(old):
    return [gate for gate in GATES if gate is not old]


def validation(**changes):
    return {"validation": {**study().body()["validation"], **changes}}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"gates": [*GATES[::-1], {"metric": "brier", "at_most": 0.2}]},
        {"gates": with_gate(FLOOR, at_least=0.75)},
        {"gates": with_gate(SAFE, margin=0.01)},
        {"gates": [*without(SLOPE), {**SLOPE, "at_most": None}, {**SLOPE, "at_least": None}]},
        validation(diagnostics={"minimum_events": 30, "testable_sites": 2}),
        validation(error_budget={"alpha": 0.02, "releases": 10}),
        {"sign_off": {"roles": ["quality", "clinician"]}},
        {"rounds": 7, "min_sites": 3},
    ],
)
def test_as_much_or_more_is_accepted(fields):
    assert loosened(study(), study(**fields)) == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"gates": without(PARITY)}, "gate dropped"),
        ({"gates": with_gate(FLOOR, at_least=0.69)}, "gate loosened"),
        ({"gates": with_gate(FLOOR, bound="point")}, "gate dropped"),
        ({"gates": with_gate(FLOOR, scope="site")}, "gate dropped"),
        ({"gates": with_gate(SLOPE, at_most=1.3)}, "gate loosened"),
        ({"gates": with_gate(SLOPE, at_most=None)}, "gate loosened"),
        ({"gates": with_gate(SAFE, margin=0.03)}, "gate loosened"),
        ({"gates": with_gate(SAFE, against="previous")}, "gate dropped"),
        ({"subgroups": [{"name": "sex", "feature": "age", "edges": [50]}]}, "subgroup 'sex'"),
        (validation(reference={**SCORE, "intercept": -9.0}), "reference"),
        (validation(diagnostics={"minimum_events": 10, "testable_sites": 2}), "minimum_events"),
        (validation(diagnostics={"minimum_events": 20}), "testable_sites"),
        (
            validation(diagnostics={"minimum_events": 20, "testable_sites": 2, "prevalence": False}),
            "diagnostics.prevalence",
        ),
        (validation(error_budget={"alpha": 0.06, "releases": 10}), "error_budget"),
        (validation(error_budget={"alpha": 0.05, "releases": 5}), "error_budget"),
        (validation(error_budget={"alpha": 0.05, "releases": 20}), "error_budget"),
        ({"sign_off": {"roles": ["clinician"]}}, "sign_off.roles lacks 'quality'"),
        ({"label": {"name": "died", "positive": "died in hospital"}}, "label.prevalence"),
        ({"min_sites": 1}, "min_sites 1"),
        ({"cohort": {"minimum_cell": 200}}, "minimum_cell 200"),
        ({"cohort": {"minimum_cell": 5, "complete_cases": True}}, "complete_cases"),
        ({"holdout": {"method": "list"}}, "holdout.method"),
    ],
)
def test_less_is_named(fields, said):
    assert any(said in problem for problem in loosened(study(), study(**fields)))
