"""Attacks: from everything in a report, solve for the counts of patients that it hides."""

from __future__ import annotations

import itertools
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.evaluation import EvaluationReport
from site_runtime.cells import check_cells
from tests.factories import ZERO, tiny_study
from tests.validation.test_performance import cohort, features_of
from validation.baselines import compare
from validation.comparison import net_benefit_difference
from validation.disclosure import (
    TABLE_METRICS,
    RiskGroups,
    coarse_accuracy,
    nested,
    shown_table,
    singles_out,
    table_metrics,
)
from validation.performance import evaluate, shown_metrics
from validation.subgroups import disclosure, tables_may_leave

CUT = 0.5


def arrays(true_alerts, missed, false_alerts, right):
    """(alert as a probability, label) of a two-by-two table."""
    counts = [true_alerts, missed, false_alerts, right]
    return np.repeat([0.9, 0.1, 0.9, 0.1], counts), np.repeat([1, 1, 0, 0], counts)


def said(metrics):
    return tuple((name, tuple(metrics[name].model_dump().values())) for name in sorted(metrics))


@pytest.mark.parametrize("cell", [2, 3])
def test_no_small_count_of_decisions_can_be_told_from_its_neighbours(cell):
    """All tables of all class totals: whoever knows these and every metric solves for the four counts."""
    for events, others in itertools.product(range(2 * cell, 2 * cell + 3), repeat=2):
        worlds = defaultdict(list)
        for hits, false in itertools.product(range(events + 1), range(others + 1)):
            p, y = arrays(hits, events - hits, false, others - false)
            table = shown_table(p, y, CUT, cell)
            worlds[said(table_metrics(table, CUT))].append((hits, events - hits, false, others - false))
        for consistent in worlds.values():
            for counts in consistent:
                for i, count in enumerate(counts):
                    if count < cell:
                        assert set(range(cell)) <= {other[i] for other in consistent}


@pytest.mark.parametrize("cell", [2, 3, 5])
def test_accuracy_of_a_suppressed_hospital_gives_no_class_total_away(cell):
    """Also when nobody, or everybody, is alerted, and the reader knows that."""
    for n in range(cell, 6 * cell):
        for risk in (0.1, 0.9):
            worlds = defaultdict(set)
            for events in range(n + 1):
                p, y = np.full(n, risk), np.repeat([1, 0], [events, n - events])
                worlds[coarse_accuracy(p, y, CUT, cell).model_dump_json()].add(events)
            for consistent in worlds.values():
                assert len(consistent) >= cell
                for small in (set(range(cell)), {n - i for i in range(cell)}):
                    assert not consistent & small or small <= consistent


@pytest.mark.parametrize("unknown", [0, 1])
def test_no_small_count_of_a_groups_decisions_follows_from_the_others(unknown):
    """Two groups and a hospital whose own table is known: withheld cells stay open, whatever the rule was."""
    cell, worlds = 2, defaultdict(list)
    sizes = [(4, 4), (5, 4)]
    everything = [range(size + 1) for pair in sizes for size in pair] + [range(unknown + 1)]
    for *of, alerted in itertools.product(*everything):
        tables = [
            (of[2 * i], events - of[2 * i], of[2 * i + 1], others - of[2 * i + 1])
            for i, (events, others) in enumerate(sizes)
        ]
        parts = [arrays(*table) for table in tables] + [arrays(alerted, unknown - alerted, 0, 0)]
        p, y = (np.concatenate(column) for column in zip(*parts, strict=True))
        at = np.repeat([0, 1, 2], [len(part[0]) for part in parts])
        members = {"a": at == 0, "b": at == 1}
        level = disclosure(members, y, cell)
        shown = tables_may_leave(members, p >= CUT, y, level, cell)
        whole = said(table_metrics(shown_table(p, y, CUT, cell), CUT))
        worlds[whole, tuple(tables) if shown else None].append(tables)
    for (_, shown), consistent in worlds.items():
        assert shown is None or min(itertools.chain(*shown)) >= cell
        for group, i in itertools.product(range(2), range(4)):
            values = {tables[group][i] for tables in consistent}
            small = {v for v in values if v < cell}
            assert not small or len(values) > 1
            assert not small or any(v - 1 in values or v + 1 in values for v in small)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(30, 300),
    cell=st.integers(2, 8),
    digits=st.sampled_from([1, 2, 9]),
)
def test_thresholds_curve_and_bins_are_sums_of_groups_that_hold_the_cell(seed, n, cell, digits):
    """Subtract any of them from any other, as a reader may who has guessed the edges of the bins."""
    p, y = cohort(n, seed)
    p = np.round(p, digits)
    study = tiny_study(validation={"net_benefit": {"low": 0.05, "high": 0.6}})
    found = evaluate(p, y, features_of(n, seed), study, cell)
    if found["suppressed"] or not found["calibration"]:
        return
    edges, start = [-1.0], 0
    for bin_ in found["calibration"][:-1]:
        start += bin_.n
        edges.append(float(np.sort(p)[start]))
    edges += [point.threshold for point in found["decision_curve"]]
    table = shown_table(p, y, CUT, cell)
    for label, known in ((1, table.true_alerts), (0, table.false_alerts)):
        told = [*edges, CUT] if known[0] == known[1] else edges
        above = {int((p[y == label] >= edge).sum()) for edge in told} | {0}
        assert all(abs(a - b) >= cell for a, b in itertools.combinations(above, 2))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(4, 250), cell=st.integers(2, 10), coarse=st.booleans())
def test_whatever_a_hospital_makes_its_last_door_lets_through(seed, n, cell, coarse):
    """The door solves for counts on its own; a report that it refuses is a hospital that cannot answer."""
    draw = np.random.default_rng(seed)
    p, y = cohort(n, seed, slope=draw.uniform(0, 2), intercept=draw.normal())
    p = np.round(p, 1) if coarse else p
    groups = [{"name": "sex", "feature": "sex"}, {"name": "age", "feature": "age", "edges": [30, 60]}]
    study = tiny_study(validation={"net_benefit": {"low": 0.05, "high": 0.6}}, subgroups=groups)
    found = evaluate(p, y, features_of(n, seed, missing=0.05 * (seed % 2)), study, cell)
    other = 1 / (1 + np.exp(-draw.normal(np.log(p / (1 - p) + 1e-9), 0.5))) if not coarse else np.full(n, 0.4)
    comparison = compare("reference", p, other, y, CUT, cell, [])
    report = EvaluationReport(
        study="tiny",
        protocol_hash=ZERO,
        plan=ZERO,
        kind="evaluation",
        site="ash",
        created="2026-01-01T00:00:00Z",
        model=ZERO,
        cohort=ZERO,
        comparisons=[comparison] if comparison else [],
        **found,
    )
    check_cells(report, cell)


def test_a_range_holds_the_truth_and_takes_the_worst_of_it():
    p, y = arrays(26, 4, 20, 40)  # 4 missed of 30, under a cell of 10
    found = shown_metrics(p, y, CUT, 10)
    assert found["sensitivity"].value == pytest.approx(21 / 30, abs=1e-4)
    assert found["sensitivity"].lower < 26 / 30 < found["sensitivity"].upper == 1
    assert found["specificity"].value == pytest.approx(40 / 60, abs=1e-4)
    for name, truth in {"ppv": 26 / 46, "npv": 40 / 44, "accuracy": 66 / 90, "net_benefit": 6 / 90}.items():
        assert found[name].value < truth and found[name].lower < truth < found[name].upper
    assert found["alert_rate"].lower < 46 / 90 < found["alert_rate"].upper


def test_counts_that_meet_the_cell_leave_as_they_are():
    p, y = arrays(20, 10, 15, 45)
    found = shown_metrics(p, y, CUT, 10)
    expected = {
        "sensitivity": 2 / 3,
        "specificity": 0.75,
        "ppv": 20 / 35,
        "npv": 45 / 55,
        "alert_rate": 35 / 90,
    }
    for name, value in (expected | {"accuracy": 65 / 90, "net_benefit": 5 / 90}).items():
        assert found[name].value == pytest.approx(value, abs=1e-4)


def test_a_score_of_few_levels_leaves_only_where_every_level_meets_the_cell():
    """Its AUROC, Brier or ECE, exact or not, would solve for the patients at each level."""
    y = np.repeat([1, 0], [40, 60])
    rare = np.concatenate([np.where(np.arange(40) < 1, 0.8, 0.3), np.full(60, 0.3)])
    assert set(shown_metrics(rare, y, CUT, 10)) <= TABLE_METRICS
    found = evaluate(rare, y, features_of(100), tiny_study(), 10)
    assert not found["calibration"] and not found["decision_curve"]
    assert not any(set(g.metrics) - TABLE_METRICS for g in found["subgroups"])
    common = np.concatenate([np.where(np.arange(40) < 20, 0.8, 0.3), np.where(np.arange(60) < 20, 0.8, 0.3)])
    assert "auroc" in shown_metrics(common, y, CUT, 10)


def test_a_baseline_made_to_mark_one_patient_is_not_compared():
    p, y = cohort(300, 1)
    marking = p.copy()
    marking[np.flatnonzero(y)[0]] = 0.999
    assert singles_out(p, marking, y, 10)
    assert compare("previous", p, marking, y, CUT, 10, []) is None
    other = 1 / (1 + np.exp(-np.random.default_rng(0).normal(0, 1, 300)))
    assert compare("first", p, other, y, CUT, 10, []) is not None
    marking_the_other = other.copy()
    marking_the_other[0] = 0.999
    assert compare("first", p, marking_the_other, y, CUT, 10, [other]) is None


def test_the_same_score_with_a_threshold_a_little_beside_gives_no_difference_of_two_tables():
    """A "previous" release that is the model with another intercept asks for the patients in between."""
    p, y = cohort(300, 2)
    shifted = 1 / (1 + np.exp(-(np.log(p / (1 - p)) + 0.05)))
    assert nested(p, shifted, y, CUT, 10) and not singles_out(p, shifted, y, 10)
    found = compare("previous", p, shifted, y, CUT, 10, [])
    assert found is not None and not set(found.metrics) & TABLE_METRICS
    assert set(found.differences) == {"auroc", "brier"}


def test_a_comparison_says_by_how_much_with_an_interval():
    p, y = cohort(2000, 3)
    weak = 1 / (1 + np.exp(-np.random.default_rng(0).normal(np.log(p / (1 - p)) / 2, 1.0)))
    found = compare("reference", p, weak, y, 0.3, 10, [])
    assert found is not None
    ours, theirs = shown_metrics(p, y, 0.3, 10), found.metrics
    for name, difference in found.differences.items():
        assert difference.value == pytest.approx(ours[name].value - theirs[name].value, abs=2e-4)
        assert difference.lower < difference.value < difference.upper
    assert found.differences["auroc"].lower > 0 > found.differences["brier"].upper
    paired = np.hypot(ours["auroc"].standard_error, theirs["auroc"].standard_error)
    assert found.differences["auroc"].standard_error < paired  # on the same patients


@pytest.mark.parametrize("seed", range(6))
def test_a_range_at_the_baseline_never_favours_the_model(seed):
    """Its own value is the worst that the range allows; measured against that the model would look better."""
    p, y = cohort(200, seed)
    strong = 1 / (1 + np.exp(-np.random.default_rng(seed).normal(4 * y - 2.5, 0.6)))
    found = compare("reference", p, strong, y, CUT, 10, [])
    assert found is not None and "net_benefit" in found.differences
    truth = net_benefit_difference(p, strong, y, CUT).value
    difference = found.differences["net_benefit"]
    assert difference.value <= truth + 2e-4
    assert difference.lower < truth < difference.upper
    assert found.metrics["sensitivity"].upper == 1  # a range


def test_a_group_is_cut_only_where_both_sides_hold_the_cell():
    p, y = np.linspace(0.01, 0.99, 40), np.tile([0, 1], 20)
    groups = RiskGroups(p, y, 5)
    assert groups.split(0.5) and not groups.split(0.52) and groups.split(0.75)
    assert groups.common == [0.5, 0.75]
