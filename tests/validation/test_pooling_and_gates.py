"""Pooling agrees with worked references; gates fail closed and say where and by how much."""

from __future__ import annotations

import json

import numpy as np
import pytest

from contracts.errors import ConsiliumError
from contracts.evaluation import Estimate, EvaluationReport, SubgroupResult
from tests.factories import ZERO, tiny_study
from validation.gates import accepted, judge, require
from validation.performance import evaluate
from validation.pooling import heterogeneity, metrics_tree, pool, random_effects


def report(site, study=None, **fields):
    study = study or tiny_study()
    base = {"n": 200, "events": 60, "metrics": {}, "suppressed": False}
    return EvaluationReport(
        study=study.study,
        protocol_hash=study.hash,
        plan=ZERO,
        kind="evaluation",
        site=site,
        created="2026-01-01T00:00:00Z",
        model=ZERO,
        cohort=ZERO,
        **{**base, **fields},
    )


def with_auroc(site, value, error=0.03, study=None, **fields):
    metric = Estimate(value=value, standard_error=error, lower=value - 2 * error, upper=value + 2 * error)
    return report(site, study, metrics={"auroc": metric}, **fields)


def group(name, value, error=0.02):
    metrics = {} if value is None else {"auroc": Estimate(value=value, standard_error=error)}
    return SubgroupResult(
        subgroup="sex", group=name, suppressed=value is None, n=None if value is None else 80, metrics=metrics
    )


def test_dersimonian_laird_reproduces_a_worked_example():
    # Borenstein et al., Introduction to Meta-Analysis (2009), data set 1, table 14.1: Hedges' g of 6 studies.
    effects = [0.095, 0.277, 0.367, 0.664, 0.462, 0.185]
    variances = [0.033, 0.031, 0.050, 0.011, 0.043, 0.023]
    found = random_effects(effects, variances)
    assert found.tau2 == pytest.approx(0.037, abs=0.001)
    assert found.mean == pytest.approx(0.358, abs=0.001)


def test_hospitals_that_agree_feign_no_precision():
    """Hartung-Knapp alone would give an interval of width zero here."""
    found = random_effects([0.8, 0.8, 0.8], [0.04, 0.04, 0.04])
    assert found.standard_error == pytest.approx(np.sqrt(0.04 / 3))
    assert found.quantile == pytest.approx(4.303, abs=1e-3)


def test_pooled_interval_covers_the_mean_of_differing_hospitals():
    draw, covered, runs = np.random.default_rng(0), 0, 2000
    for _ in range(runs):
        variances = draw.uniform(0.01, 0.06, 5)
        found = random_effects(draw.normal(1.0, 0.3, 5) + draw.normal(0, np.sqrt(variances)), variances)
        covered += abs(found.mean - 1.0) <= found.quantile * found.standard_error
    assert covered / runs >= 0.94


def test_accuracy_and_brier_pool_as_if_the_scores_lay_together():
    draw, study = np.random.default_rng(1), tiny_study()
    p, reports = draw.random(900), []
    y = (draw.random(900) < p).astype(int)
    x = np.zeros((900, 3))
    for site, rows in (("ash", slice(0, 500)), ("birch", slice(500, 640)), ("cedar", slice(640, 900))):
        reports.append(report(site, **evaluate(p[rows], y[rows], x[rows], study, 5)))
    together = evaluate(p, y, x, study, 5)["metrics"]
    pooled = pool(reports)
    # Up to the four decimals in which a hospital's metrics leave.
    assert pooled["accuracy"].value == pytest.approx(together["accuracy"].value, abs=1e-4)
    assert pooled["brier"].value == pytest.approx(together["brier"].value, abs=1e-4)
    assert pooled["auroc"].value == pytest.approx(together["auroc"].value, abs=0.02)


def test_a_perfect_hospital_neither_breaks_nor_rules_the_pool():
    perfect = report("ash", metrics={"auroc": Estimate(value=1.0, standard_error=0.05)}, n=40, events=20)
    found = pool([perfect, with_auroc("birch", 0.75), with_auroc("cedar", 0.77)])["auroc"]
    assert 0.7 < found.value < 0.95 and found.lower > 0


def test_one_hospital_keeps_its_own_interval():
    alone = with_auroc("ash", 0.8)
    assert pool([alone])["auroc"] == alone.metrics["auroc"]
    assert heterogeneity([alone]) is None


def test_tree_holds_the_same_metrics_under_pooled_and_each_site_and_is_json():
    hidden = report("cedar", metrics={"accuracy": Estimate(value=0.9)}, events=None, suppressed=True)
    seen = report(
        "ash", metrics={"accuracy": Estimate(value=0.8), "auroc": Estimate(value=0.7, standard_error=0.1)}
    )
    tree = json.loads(json.dumps(metrics_tree([seen, hidden])))
    assert set(tree) == {"pooled", "ash", "cedar"}
    assert tree["pooled"]["accuracy"]["value"] == pytest.approx(0.85)
    assert tree["cedar"]["suppressed"] and tree["cedar"]["reason"] and "auroc" not in tree["cedar"]


def test_no_hospital_may_speak_twice():
    with pytest.raises(ConsiliumError, match="E802"):
        metrics_tree([report("ash"), report("ash")])
    with pytest.raises(ConsiliumError, match="E802"):
        judge(tiny_study(), [report("ash"), report("ash")], {})


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
    assert "cedar: 0.600, misses by 0.100; birch: 0.660, misses by 0.040" in found.detail


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
