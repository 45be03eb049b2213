"""Gates fail closed and say which hospital stops them and by how much."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.errors import ConsiliumError
from contracts.evaluation import Estimate
from tests.factories import tiny_study
from tests.reports import against, estimate, group, report, with_auroc
from validation.gates import Verdict, accepted, in_protocol_order, judge, judge_facts, require
from validation.meta_analysis import DIFFERENCE_PRIOR, random_effects

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


REFERENCE = {
    "reference": {
        "name": "Score",
        "source": "a test",
        "intercept": 0,
        "terms": [{"feature": "age", "coefficient": 0.1}],
    },
    "local_model": True,
    "error_budget": {"alpha": 0.05, "releases": 5},
}


def compared(gate, differences, error=0.005, earlier_releases=1, **fields):
    study = tiny_study(gates=[gate], validation=REFERENCE)
    reports = [
        with_auroc(site, 0.8, study=study, comparisons=[against(gate["against"], value, error)], **fields)
        for site, value in differences.items()
    ]
    return judge(study, reports, {}, earlier_releases=earlier_releases)[0]


POOLED_DIFFERENCE = {"metric": "difference", "against": "reference", "at_least": 0.0}
SITE_DIFFERENCE = {"metric": "difference", "against": "local", "scope": "site", "at_least": -0.01}


def test_a_difference_is_judged_pooled_or_at_every_site_and_says_where_it_is_smallest():
    differences = {"ash": 0.05, "birch": 0.03, "cedar": -0.04}
    found = compared(POOLED_DIFFERENCE, differences)
    assert found.passed is True and found.site == "cedar" and "furthest out at cedar: -0.040" in found.detail
    found = compared(SITE_DIFFERENCE, differences)
    assert found.passed is False and found.site == "cedar" and found.margin == pytest.approx(-0.03)


@pytest.mark.parametrize("gate", [POOLED_DIFFERENCE, SITE_DIFFERENCE])
def test_a_hospital_that_should_compare_and_does_not_leaves_the_gate_undecided(gate):
    study = tiny_study(gates=[gate], validation=REFERENCE)
    shows = with_auroc("ash", 0.8, study=study, comparisons=[against(gate["against"], 0.05)])
    small = report("cedar", study, suppressed=True, events=None)
    found = judge(study, [shows, with_auroc("birch", 0.8, study=study)], {})[0]
    assert found.passed is None and found.site == "birch" and "birch should show it" in found.detail
    found = judge(study, [shows, small], {})[0]
    assert found.passed is True and "cedar, under the minimum cell" in found.detail


def test_a_difference_without_an_error_is_not_left_out_of_the_pool_in_silence():
    study = tiny_study(gates=[POOLED_DIFFERENCE], validation=REFERENCE)
    unknown = against("reference", 0.05).model_copy(update={"differences": {"auroc": Estimate(value=-0.2)}})
    reports = [
        with_auroc("ash", 0.8, study=study, comparisons=[against("reference", 0.05)]),
        with_auroc("birch", 0.8, study=study, comparisons=[unknown]),
    ]
    found = judge(study, reports, {})[0]
    assert found.passed is None and found.site == "birch" and "error is unknown" in found.detail


def test_a_metric_without_a_denominator_is_not_testable():
    """One hospital alerts nobody: it has no ppv, and must not be passed over."""
    gate = {"metric": "ppv", "scope": "site", "at_least": 0.2}
    metrics = {"ppv": estimate(0.5), "sensitivity": estimate(0.6)}
    found = judged(
        gate,
        lambda s: [
            report("ash", s, metrics=metrics),
            report("birch", s, metrics={"sensitivity": Estimate(value=0.0)}),
        ],
    )
    assert found.passed is None and found.site == "birch"


def test_a_hospital_with_few_events_can_fail_a_site_gate_but_not_pass_it():
    few = {"n": 40, "events": 6}
    reports = lambda s: [with_auroc("ash", 0.9, study=s, **few), with_auroc("birch", 0.8, study=s, **few)]  # noqa: E731
    assert judged(SITE_GATE, reports).passed is None
    assert "no hospital has enough events" in judged(SITE_GATE, reports).detail
    found = judged(SITE_GATE, lambda s: [with_auroc("ash", 0.9, study=s), *reports(s)[1:]])
    assert found.passed is True and "too few events to pass at birch" in found.detail
    low = lambda s: [with_auroc("ash", 0.9, study=s), with_auroc("birch", 0.6, study=s, **few)]  # noqa: E731
    assert judged(SITE_GATE, low).passed is False


def test_a_pooled_gate_on_too_few_events_in_all_is_not_testable():
    few = {"n": 30, "events": 4}
    found = judged(
        POOLED_GATE,
        lambda s: [with_auroc("ash", 0.9, study=s, **few), with_auroc("birch", 0.9, study=s, **few)],
    )
    assert found.passed is None and "too few events in all hospitals" in found.detail


FACT_GATES = [{"metric": "ledgers"}, EPSILON_GATE, {"metric": "parity"}, SITE_GATE]


def test_facts_and_judgements_come_back_in_the_protocols_order():
    study = tiny_study(gates=FACT_GATES)
    reports = [with_auroc("ash", 0.8, study=study), with_auroc("birch", 0.8, study=study)]
    verdicts = {
        "parity": Verdict(False, "2 decisions flipped", "birch"),
        "ledgers": Verdict(True, "3 replayed"),
    }
    facts = judge_facts(study, verdicts)
    judged_ones = judge(study, reports, {"ash": 1.0, "birch": 1.0})
    found = in_protocol_order(study, facts, judged_ones)
    assert [r.gate for r in found] == [gate.title for gate in study.gates]
    assert [r.passed for r in found] == [True, True, False, True] and found[2].site == "birch"


def test_a_fact_that_nobody_looked_at_and_a_gate_that_nobody_judged_are_not_testable():
    study = tiny_study(gates=FACT_GATES)
    assert [r.passed for r in judge_facts(study, {"parity": Verdict(None, "no answer")})] == [None, None]
    assert [r.passed for r in in_protocol_order(study)] == [None] * 4


def test_a_result_of_no_gate_is_refused():
    study, other = tiny_study(gates=[SITE_GATE]), tiny_study(gates=[POOLED_GATE])
    with pytest.raises(ConsiliumError, match="E802"):
        in_protocol_order(study, judge(other, [], {}))


def test_gates_that_cannot_mean_what_they_say_are_refused():
    for gate in (
        GAP_GATE | {"scope": "site"},
        {**NON_INFERIOR, "scope": "site"},
        {**NON_INFERIOR, "bound": "lower"},
    ):
        with pytest.raises(ConsiliumError, match="E101"):
            tiny_study(gates=[gate])


NON_INFERIOR = {"metric": "non_inferiority", "against": "first", "margin": 0.03}


def test_non_inferiority_uses_the_error_that_the_budget_leaves_one_release():
    """Five releases share 5 %: the bound is at 99 %, by the same random effects as the estimate."""
    differences = {"ash": -0.005, "birch": 0.002, "cedar": -0.008}
    found = compared(NON_INFERIOR, differences)
    pooled = random_effects(list(differences.values()), [0.005**2] * 3, DIFFERENCE_PRIOR)
    assert found.value == pytest.approx(pooled.quantile(0.01)) and "99 % lower bound" in found.detail
    assert found.margin == pytest.approx(found.value + 0.03) and found.site == "cedar"
    assert found.passed is (found.value >= -0.03)


@pytest.mark.parametrize(("difference", "passed"), [(0.01, True), (-0.02, False), (-0.05, False)])
def test_a_model_passes_only_when_being_worse_by_the_margin_is_ruled_out(difference, passed):
    differences = {f"site{i}": difference for i in range(6)}
    assert compared(NON_INFERIOR, differences, error=0.012).passed is passed


def test_the_first_release_becomes_the_reference():
    for baseline in ("first", "previous"):
        found = compared(
            {**NON_INFERIOR, "against": baseline}, {"ash": -0.5, "birch": -0.5}, earlier_releases=0
        )
        assert found.passed is True and "becomes the reference" in found.detail
    found = compared(
        {**NON_INFERIOR, "against": "reference"}, {"ash": -0.5, "birch": -0.5}, earlier_releases=0
    )
    assert found.passed is False


def test_a_release_beyond_the_planned_ones_has_no_error_left():
    found = compared(NON_INFERIOR, {"ash": 0.1, "birch": 0.1}, earlier_releases=4)
    assert found.passed is True
    found = compared(NON_INFERIOR, {"ash": 0.1, "birch": 0.1}, earlier_releases=5)
    assert found.passed is None and "no error is left" in found.detail


# Every gate with limits, over one hospital or all; a floor each.
FLOORS = [
    {"metric": metric, "scope": scope, "bound": bound, "at_least": 0.5}
    for metric in ("auroc", "sensitivity", "ppv", "net_benefit", "accuracy")
    for scope in ("pooled", "site")
    for bound in ("point", "lower")
]
EVERY_GATE = [
    *FLOORS,
    GAP_GATE,
    EPSILON_GATE,
    POOLED_DIFFERENCE,
    SITE_DIFFERENCE,
    NON_INFERIOR,
    {"metric": "parity"},
    {"metric": "vulnerabilities"},
]


def test_no_gate_passes_when_nobody_reports():
    study = tiny_study(gates=EVERY_GATE, validation=REFERENCE, min_sites=1)
    for earlier in (0, 3):
        results = [*judge(study, [], {"ash": 1.0}, earlier_releases=earlier), *judge_facts(study, {})]
        assert len(results) == len(EVERY_GATE) and not any(r.passed for r in results)


values = st.lists(st.floats(0.05, 0.95), min_size=2, max_size=6)


def floor_passes(gate, shown, error=0.04):
    study = tiny_study(gates=[gate])
    reports = [
        report(f"site{i}", study, n=200 + 50 * i, metrics={gate["metric"]: estimate(value, error)})
        for i, value in enumerate(shown)
    ]
    return judge(study, reports, {})[0].passed


@settings(max_examples=60, deadline=None)
@given(
    gate=st.sampled_from(
        [g for g in FLOORS if g["scope"] == "site" or g["metric"] in ("accuracy", "net_benefit")]
    ),
    shown=values,
    which=st.integers(0, 5),
    loss=st.floats(0, 1),
)
def test_worsening_one_hospital_never_passes_a_failed_gate(gate, shown, which, loss):
    """Gates on every site, and pooled ones that are sums over patients."""
    worse = list(shown)
    worse[which % len(shown)] *= 1 - loss
    if floor_passes(gate, shown) is not True:
        assert floor_passes(gate, worse) is not True


@settings(max_examples=60, deadline=None)
@given(
    gate=st.sampled_from([g for g in FLOORS if g["metric"] in ("auroc", "ppv") and g["scope"] == "pooled"]),
    shown=values,
    loss=st.floats(0, 3),
)
def test_worsening_every_hospital_alike_never_passes_a_failed_random_effects_gate(gate, shown, loss):
    """Alike: on the logit, with the error there unchanged."""

    def on_logit(x, error):
        p = 1 / (1 + math.exp(-x))
        return Estimate(value=p, standard_error=error * p * (1 - p), lower=0.0, upper=1.0)

    study = tiny_study(gates=[gate])
    passes = []
    for shift in (0.0, loss):
        reports = [
            report(f"s{i}", study, metrics={gate["metric"]: on_logit(math.log(v / (1 - v)) - shift, 0.2)})
            for i, v in enumerate(shown)
        ]
        passes.append(judge(study, reports, {})[0].passed)
    assert passes[0] or not passes[1]


def test_a_hospital_that_worsens_towards_the_others_is_seen_by_a_gate_on_every_site_alone():
    """Why a protocol needs both: less spread narrows the pooled interval, so its lower bound rises."""
    before, after = [0.70, 0.70, 0.85], [0.70, 0.70, 0.70]
    pooled = {"metric": "auroc", "bound": "lower", "at_least": 0.64}
    site = {"metric": "auroc", "scope": "site", "at_least": 0.72}
    assert [floor_passes(pooled, shown, 0.02) for shown in (before, after)] == [False, True]
    assert [floor_passes(site, shown, 0.02) for shown in (before, after)] == [False, False]
