"""Gates fail closed and say which hospital stops them and by how much."""

from __future__ import annotations

import pytest

from contracts.errors import ConsiliumError
from tests.factories import tiny_study
from tests.reports import group, report, with_auroc
from validation.gates import accepted, judge, require

SITE_GATE = {"metric": "auroc", "scope": "site", "at_least": 0.7}
POOLED_GATE = {"metric": "auroc", "bound": "lower", "at_least": 0.7}
GAP_GATE = {"metric": "subgroup_gap", "subgroup": "sex", "at_most": 0.05}
EPSILON_GATE = {"metric": "epsilon", "scope": "site", "at_most": 3}
HALF = [group("0", 0.8), group("1", None)]


def judged(gate, reports_of, epsilons=None):
    study = tiny_study(gates=[gate])
    reports = reports_of(study)
    return judge(study, reports, epsilons or {r.site: 1.0 for r in reports})[0]


def test_a_failed_site_gate_names_every_failing_hospital_and_by_how_much():
    values = {"ash": 0.8, "birch": 0.66, "cedar": 0.6}
    found = judged(SITE_GATE, lambda s: [with_auroc(site, v, study=s) for site, v in values.items()])
    assert found.passed is False and found.value == 0.6
    assert found.site == "cedar" and found.margin == pytest.approx(-0.1)
    assert "cedar: 0.600 (95 % 0.540 to 0.660), misses by 0.100; birch: 0.660" in found.detail


def test_a_site_gate_passes_over_the_testable_and_names_the_others():
    found = judged(
        SITE_GATE,
        lambda s: [with_auroc("ash", 0.8, study=s), report("birch", s, suppressed=True, events=None)],
    )
    assert found.passed is True and "not testable at birch" in found.detail


def test_a_silent_hospital_is_named():
    found = judged(
        SITE_GATE,
        lambda s: [with_auroc("ash", 0.8, study=s), with_auroc("birch", 0.8, study=s)],
        {"ash": None, "birch": None, "cedar": None},
    )
    assert "no report from cedar" in found.detail


@pytest.mark.parametrize(
    ("gate", "reports_of"),
    [
        (SITE_GATE, lambda s: [report("ash", s), report("birch", s)]),
        (POOLED_GATE, lambda s: [report("ash", s), report("birch", s)]),
        (POOLED_GATE, lambda s: []),
        (POOLED_GATE, lambda s: [with_auroc("ash", 0.9, study=s)]),  # under min_sites
        (GAP_GATE, lambda s: [report(n, s, subgroups=HALF) for n in ("ash", "birch")]),
        (GAP_GATE, lambda s: [report("ash", s), report("birch", s)]),
    ],
)
def test_what_the_data_cannot_decide_is_not_testable_and_stops_a_release(gate, reports_of):
    found = judged(gate, reports_of, {"ash": 1.0})
    assert found.passed is None and not accepted([found])
    with pytest.raises(ConsiliumError, match="E602"):
        require([found])


@pytest.mark.parametrize(("birch", "passed"), [(3.0, True), (3.1, False), (None, None)])
def test_epsilon_gate(birch, passed):
    epsilons = {"ash": 2.9, "birch": birch}
    found = judged(EPSILON_GATE, lambda s: [report("ash", s), report("birch", s)], epsilons)
    assert found.passed is passed and (passed or "birch" in found.detail)


def test_epsilon_gate_without_any_epsilon_is_not_testable():
    study = tiny_study(gates=[EPSILON_GATE])
    assert judge(study, [], {})[0].passed is None


def test_subgroup_gap_is_the_largest_pooled_difference_and_says_where():
    def reports_of(study):
        return [
            report("ash", study, subgroups=[group("0", 0.80), group("1", 0.72)]),
            report("birch", study, subgroups=[group("0", 0.82), group("1", 0.66)]),
        ]

    found = judged(GAP_GATE, reports_of)
    assert found.passed is False and 0.08 < found.value < 0.16
    assert "lowest at birch (0.660 in 1)" in found.detail


def test_gate_on_a_bound_uses_that_bound():
    reports = lambda s: [with_auroc("ash", 0.75, 0.04, study=s), with_auroc("birch", 0.75, 0.04, study=s)]  # noqa: E731
    assert judged(POOLED_GATE, reports).passed is False
    assert judged({**POOLED_GATE, "bound": "point"}, reports).passed is True


def test_reports_on_another_protocol_or_model_are_refused():
    study, other = tiny_study(), tiny_study(rounds=3)
    with pytest.raises(ConsiliumError, match="E802"):
        judge(study, [report("ash", other)], {})
    with pytest.raises(ConsiliumError, match="E802"):
        judge(study, [report("ash"), report("birch").model_copy(update={"model": "1" * 64})], {})
