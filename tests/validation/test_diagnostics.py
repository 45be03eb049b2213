"""Performance stays sealed until what was declared of the holdouts holds; a refusal says where not."""

from __future__ import annotations

import itertools

import pytest

from contracts.errors import ConsiliumError
from contracts.evaluation import HoldoutDiagnostics
from tests.factories import tiny_study
from validation.diagnostics import check_diagnostics, require_diagnostics


def holdout(enough=True, prevalence=True, missingness=True):
    return HoldoutDiagnostics(enough_events=enough, prevalence=prevalence, missingness=missingness)


def study(**diagnostics):
    return tiny_study(validation={"diagnostics": {"testable_sites": 2, **diagnostics}})


GOOD = {"ash": holdout(), "birch": holdout(), "cedar": holdout(enough=False)}
FROZEN = dict.fromkeys(GOOD, True)


def test_what_was_declared_opens_the_reports():
    results = require_diagnostics(study(), GOOD, FROZEN)
    assert [r.passed for r in results] == [True] * 4
    assert "2 of 3 hospitals" in results[0].detail and "cedar" in results[0].detail


@pytest.mark.parametrize(
    ("changed", "frozen", "says"),
    [
        ({"birch": holdout(enough=False)}, {}, "enough hospitals with 10 events"),
        ({"birch": holdout(prevalence=False)}, {}, "prevalence as declared: not so at birch"),
        ({"ash": holdout(missingness=False)}, {}, "missing values as declared: not so at ash"),
        ({}, {"cedar": False}, "holdout frozen before the hospital's first round: not so at cedar"),
    ],
)
def test_each_check_alone_keeps_them_sealed_and_names_the_hospital(changed, frozen, says):
    with pytest.raises(ConsiliumError, match="E606") as stopped:
        require_diagnostics(study(), GOOD | changed, FROZEN | frozen)
    assert says in stopped.value.detail and stopped.value.detail.count(":") == 1


def test_a_hospital_whose_freezing_nobody_knows_counts_as_not_frozen():
    with pytest.raises(ConsiliumError, match="frozen before the hospital's first round: not so at birch"):
        require_diagnostics(study(), GOOD, {"ash": True, "cedar": True})


def test_of_few_patients_prevalence_and_missingness_are_not_asked():
    odd = holdout(enough=False, prevalence=False, missingness=False)
    assert require_diagnostics(study(), GOOD | {"cedar": odd}, FROZEN)


def test_what_the_protocol_does_not_ask_is_not_checked():
    odd = GOOD | {"ash": holdout(prevalence=False, missingness=False)}
    names = [r.gate for r in require_diagnostics(study(prevalence=False, missingness=False), odd, FROZEN)]
    assert len(names) == 2


def test_nobody_reporting_opens_nothing():
    assert not any(r.passed for r in check_diagnostics(study(), {}, {}))
    with pytest.raises(ConsiliumError, match="E606"):
        require_diagnostics(study(), {}, {})


def test_every_bad_bit_of_a_testable_hospital_seals():
    for bits in itertools.product([True, False], repeat=2):
        diagnostics = GOOD | {"ash": holdout(True, *bits)}
        holds = all(r.passed for r in check_diagnostics(study(), diagnostics, FROZEN))
        assert holds is all(bits)
