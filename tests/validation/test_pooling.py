"""Pooled metrics are what the hospitals' patients together, or the hospitals on average, really have."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from contracts.errors import ConsiliumError
from contracts.evaluation import CalibrationBin, Comparison, DecisionPoint, Estimate
from tests.factories import tiny_study
from tests.reports import against, estimate, report, with_auroc
from validation.decision_curve import net_benefit_advantage
from validation.meta_analysis import AUROC_PRIOR, RATIO_PRIOR
from validation.performance import evaluate
from validation.pooling import heterogeneity, metrics_tree, pool, roc_points
from validation.proportion import wilson


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


def test_pooled_accuracy_covers_the_true_one_where_a_hospital_tells_a_range():
    draw, study, reports, right = np.random.default_rng(2), tiny_study(), [], 0
    for site, n, shift in (("ash", 300, 0.0), ("birch", 60, 5.0)):  # birch is nearly always right
        y = np.arange(n) % 2
        p = 1 / (1 + np.exp(-draw.normal(0, 1, n) - shift * (2 * y - 1)))
        right += int(((p >= 0.5) == (y == 1)).sum())
        reports.append(report(site, **evaluate(p, y, np.zeros((n, 3)), study, 5)))
    assert reports[1].metrics["accuracy"].at_worst and not reports[0].metrics["accuracy"].at_worst
    pooled, true = pool(reports)["accuracy"], wilson(right, 360)
    assert pooled.at_worst and pooled.value < true.value
    assert pooled.lower < true.lower and pooled.upper >= true.upper


@pytest.mark.parametrize("events", [5, 9, 12])
def test_accuracy_that_a_small_hospital_tells_as_a_range_is_covered_and_taken_at_its_worst(events):
    draw, study = np.random.default_rng(events), tiny_study()
    p, y, reports = draw.random(400), np.zeros(400, dtype=int), []
    y[:300] = draw.random(300) < p[:300]
    y[300 : 300 + events] = 1
    for site, rows in (("ash", slice(0, 300)), ("birch", slice(300, 400))):
        reports.append(report(site, **evaluate(p[rows], y[rows], np.zeros((400, 3))[rows], study, 10)))
    assert reports[1].suppressed and not reports[0].suppressed
    right = int(((p >= study.decision_threshold) == (y == 1)).sum())
    truth, pooled = wilson(right, 400), pool(reports)["accuracy"]
    assert truth.value - 10 / 400 < pooled.value <= truth.value
    assert pooled.lower <= truth.lower and truth.upper <= pooled.upper < truth.upper + 10 / 400
    assert pool(reports[:1])["accuracy"].value == pytest.approx(
        reports[0].metrics["accuracy"].value, abs=1e-4
    )


def test_the_pooled_advantage_is_at_most_that_over_one_policy_for_all():
    """Hospitals on different sides of the threshold: each is measured by its own better default."""
    draw, study = np.random.default_rng(3), tiny_study()
    p = np.concatenate([draw.uniform(0.05, 0.6, 400), draw.uniform(0.4, 0.95, 400)])
    y = (draw.random(800) < p).astype(int)
    parts = [
        report(site, **evaluate(p[rows], y[rows], np.zeros((400, 3)), study, 5))
        for site, rows in (("ash", slice(0, 400)), ("birch", slice(400, 800)))
    ]
    together = net_benefit_advantage(p, y, study.decision_threshold)
    assert pool(parts)["net_benefit"].value <= together.value + 1e-4


def test_a_perfect_hospital_neither_breaks_nor_rules_the_pool():
    perfect = report("ash", metrics={"auroc": Estimate(value=1.0, standard_error=0.05)}, n=40, events=20)
    found = pool([perfect, with_auroc("birch", 0.75), with_auroc("cedar", 0.77)])["auroc"]
    assert 0.7 < found.value < 0.95 and found.lower > 0


def test_one_hospital_keeps_its_own_interval():
    alone = with_auroc("ash", 0.8)
    assert pool([alone])["auroc"] == alone.metrics["auroc"]
    assert heterogeneity([alone]) == {}


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


def test_a_rate_of_all_or_none_counts_as_much_as_its_patients():
    """Sensitivity 20 of 20 is no certainty: the pool stays near the hospital of 400 events."""
    reports = [
        report("ash", metrics={"sensitivity": wilson(20, 20)}),
        report("birch", metrics={"sensitivity": wilson(300, 400)}),
        report("cedar", metrics={"sensitivity": wilson(76, 100)}),
    ]
    found = pool(reports)["sensitivity"]
    assert 0.75 < found.value < 0.9 and found.upper < 1
    none = pool([r.model_copy(update={"metrics": {"ppv": wilson(0, 15)}}) for r in reports])["ppv"]
    assert 0 < none.value < 0.05 and none.lower > 0


def test_observed_over_expected_is_pooled_as_a_ratio():
    def shows(ratio):
        return {"observed_expected": Estimate(value=ratio, standard_error=0.1 * ratio)}

    found = pool([report("ash", metrics=shows(0.5)), report("birch", metrics=shows(2.0))])[
        "observed_expected"
    ]
    assert found.value == pytest.approx(1.0) and found.lower * found.upper == pytest.approx(1.0)


def test_net_benefit_and_ece_are_means_over_patients():
    metrics = {"net_benefit": estimate(0.10, 0.01), "ece": estimate(0.02, 0.01)}
    other = {"net_benefit": estimate(0.04, 0.02), "ece": estimate(0.08, 0.02)}
    found = pool([report("ash", n=300, metrics=metrics), report("birch", n=100, metrics=other)])
    assert found["net_benefit"].value == pytest.approx(0.085) and found["ece"].value == pytest.approx(0.035)
    assert found["ece"].standard_error == pytest.approx(math.hypot(300 * 0.01, 100 * 0.02) / 400)


def test_an_unknown_error_leaves_the_mean_without_an_interval():
    known, unknown = estimate(0.1), Estimate(value=0.0)
    found = pool(
        [report("ash", metrics={"net_benefit": known}), report("birch", metrics={"net_benefit": unknown})]
    )
    assert found["net_benefit"].value == pytest.approx(0.05) and found["net_benefit"].lower is None


def test_a_metric_that_no_hospital_shows_is_absent():
    assert set(pool([with_auroc("ash", 0.8), with_auroc("birch", 0.7)])) == {"auroc"}


def test_heterogeneity_says_where_a_new_hospital_lies_and_from_which_prior():
    reports = [
        report(
            site,
            metrics={
                "auroc": estimate(value, 0.02),
                "observed_expected": Estimate(value=ratio, standard_error=0.05),
            },
        )
        for site, value, ratio in (("ash", 0.7, 0.9), ("birch", 0.8, 1.2), ("cedar", 0.75, 1.0))
    ]
    found, pooled = heterogeneity(reports), pool(reports)
    assert found["auroc"]["sites"] == 3 and 0 < found["auroc"]["i2"] < 1
    assert found["auroc"]["prior"] == AUROC_PRIOR.text
    assert found["observed_expected"]["prior"] == RATIO_PRIOR.text
    for name in found:
        assert found[name]["new_site_lower"] < pooled[name].lower
        assert found[name]["new_site_upper"] > pooled[name].upper
    many = heterogeneity([with_auroc(f"site{i:02}", 0.7 + i / 100) for i in range(12)])["auroc"]
    assert many["prior"] is None and many["new_site_lower"] < 0.75 < many["new_site_upper"]


def test_roc_from_calibration_bins_is_that_of_their_patients():
    draw = np.random.default_rng(3)
    p = draw.random(4000)
    y = (draw.random(4000) < p).astype(int)
    bins = evaluate(p, y, np.zeros((4000, 3)), tiny_study(), 5)["calibration"]
    points = np.array(roc_points(bins))
    assert points[0].tolist() == [0, 0] and points[-1].tolist() == [1, 1]
    assert (np.diff(points, axis=0) >= 0).all()
    edge = 1 - sum(b.n for b in bins[:-1]) / 4000  # share of the patients in the bin of highest risk
    alert = p >= np.quantile(p, 1 - edge)
    assert points[1] == pytest.approx([alert[y == 0].mean(), alert[y == 1].mean()], abs=0.002)
    flat = [CalibrationBin(mean_predicted=0.2, observed=0.0, n=30)]
    assert roc_points(flat) == []  # no event: no curve


def test_decision_curve_is_a_mean_over_patients_where_every_curve_has_a_point():
    def points(*triples):
        return [DecisionPoint(threshold=t, model=m, treat_all=a) for t, m, a in triples]

    tree = metrics_tree(
        [
            report("ash", n=300, decision_curve=points((0.1, 0.20, 0.10), (0.2, 0.10, 0.0))),
            report("birch", n=100, decision_curve=points((0.2, 0.02, -0.04), (0.3, 0.0, -0.1))),
            report("cedar", n=50),
        ]
    )
    (point,) = tree["pooled"]["decision_curve"]
    assert point == {
        "threshold": 0.2,
        "model": pytest.approx(0.08),
        "treat_all": pytest.approx(-0.01),
        "n": 400,
    }


def test_better_than_the_best_single_hospital_is_a_statement_with_intervals():
    tree = metrics_tree(
        [
            report("ash", comparisons=[against("local", 0.05, own=0.70)]),
            report("birch", comparisons=[against("local", 0.01, own=0.78), against("reference", 0.1)]),
            report("cedar", comparisons=[against("local", 0.03, own=0.72)]),
        ]
    )
    local = tree["pooled"]["comparisons"]["local"]
    assert local["sites"] == 3 and 0.01 < local["auroc"]["value"] < 0.05
    assert local["auroc"]["lower"] < local["auroc"]["value"] < local["auroc"]["upper"]
    assert local["worst_site"] == "birch" and local["worst_auroc"]["value"] == 0.01
    assert local["best_baseline"]["site"] == "birch" and local["best_baseline"]["auroc"]["value"] == 0.78
    assert local["best_baseline"]["difference"]["lower"] == pytest.approx(-0.01)
    assert set(tree["pooled"]["comparisons"]) == {"local", "reference"}
    assert tree["ash"]["comparisons"]["local"]["differences"]["auroc"]["value"] == 0.05
    json.dumps(tree)


def test_the_same_model_differs_from_itself_by_nothing():
    same = Comparison(
        baseline="previous",
        differences={"auroc": Estimate(value=0.0, standard_error=0.0, lower=0.0, upper=0.0)},
    )
    reports = [report(site, comparisons=[same]) for site in ("ash", "birch")]
    found = metrics_tree(reports)["pooled"]["comparisons"]["previous"]["auroc"]
    assert found["value"] == 0 and -0.002 < found["lower"] < found["upper"] < 0.002
