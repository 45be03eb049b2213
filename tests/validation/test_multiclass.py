"""Averages over classes and labels agree with scikit-learn; absent labels stay absent."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from tests.validation.simulated import DATA, cohort
from validation.discrimination import auprc, auroc
from validation.multiclass import MACRO, multiclass_auroc, multilabel
from validation.proportion import brier

TOX21 = DATA / "molecules" / "tox21.csv.gz"


def classes(n, seed=0, k=4):
    draw = np.random.default_rng(seed)
    weight = np.arange(1, k + 1) / (k * (k + 1) / 2)
    label = draw.choice(k, n, p=weight)
    score = draw.normal(size=(n, k)) + 1.2 * np.eye(k)[label]
    risk = np.exp(score)
    return risk / risk.sum(axis=1, keepdims=True), label


def scored(label, seed=0):
    """A model of labels of which some are NaN."""
    draw = np.random.default_rng(seed)
    return 1 / (1 + np.exp(-draw.normal(-1.5 + 1.5 * np.nan_to_num(label), 1)))


@pytest.mark.parametrize("digits", [1, 16])
def test_macro_and_hand_till_equal_scikit_learn(digits):
    p, y = classes(300, 1)
    found = multiclass_auroc(np.round(p, digits), y)
    for name, way in (("macro", "ovr"), ("hand_till", "ovo")):
        # scikit-learn wants rows that sum to 1; rounded ones are renormalised by neither.
        if digits == 16:
            expected = roc_auc_score(y, p, multi_class=way, average="macro")
            assert found[name].value == pytest.approx(expected, abs=1e-12)
        assert 0 <= found[name].lower <= found[name].value <= found[name].upper <= 1


def test_with_two_classes_both_are_the_auroc_with_delongs_error():
    risk, y = cohort(200, 2)
    expected = auroc(risk, y)
    for found in multiclass_auroc(np.column_stack([1 - risk, risk]), y).values():
        assert found.model_dump() == pytest.approx(expected.model_dump(), abs=1e-9)


def test_multiclass_errors_match_the_spread_over_repeated_samples():
    found = [multiclass_auroc(*classes(150, seed)) for seed in range(300)]
    for name in ("macro", "hand_till"):
        spread = np.std([f[name].value for f in found])
        assert np.mean([f[name].standard_error for f in found]) == pytest.approx(spread, rel=0.12)


def test_a_class_with_one_patient_leaves_no_average():
    p, y = classes(100, 3)
    y[y == 0] = 1
    y[0] = 0
    assert multiclass_auroc(p, y) == {}


def check_against_scikit_learn(p, y):
    found = multilabel(p, y)
    expected = {"auroc": [], "auprc": [], "brier": []}
    for column in range(y.shape[1]):
        known = ~np.isnan(y[:, column])
        risk, truth = p[known, column], y[known, column]
        smaller = min(truth.sum(), len(truth) - truth.sum())
        ours = found.get(column, {})
        assert ("auroc" in ours) == ("auprc" in ours) == (smaller >= 2)
        assert ("brier" in ours) == (len(truth) >= 2)
        if smaller >= 2:
            expected["auroc"].append(roc_auc_score(truth, risk))
            expected["auprc"].append(average_precision_score(truth, risk))
            assert ours["auroc"].value == pytest.approx(expected["auroc"][-1], abs=1e-12)
            assert ours["auprc"].value == pytest.approx(expected["auprc"][-1], abs=1e-12)
        if len(truth) >= 2:
            expected["brier"].append(brier_score_loss(truth, risk, labels=[0, 1]))
            assert ours["brier"].value == pytest.approx(expected["brier"][-1], abs=1e-12)
    assert found[MACRO].keys() == {name for name, values in expected.items() if values}
    for name, average in found[MACRO].items():
        assert average.value == pytest.approx(np.mean(expected[name]), abs=1e-12)
        assert 0 <= average.lower <= average.value <= average.upper <= 1


@pytest.mark.parametrize("seed", range(3))
def test_multilabel_equals_scikit_learn_with_labels_that_are_absent(seed):
    """As a hospital's part of Tox21: some assays never run, some without a positive, some with one."""
    draw = np.random.default_rng(seed)
    y = (draw.random((120, 6)) < [0.3, 0.05, 0.5, 0, 0.3, 0.2]).astype(float)
    y[draw.random(y.shape) < 0.3] = np.nan
    y[:, 4] = np.nan
    y[1:, 5] = np.nan
    y[:, 1] = np.where(np.isnan(y[:, 1]), np.nan, 0)
    y[0, 1] = 1
    check_against_scikit_learn(scored(y, seed), y)


@pytest.mark.skipif(not TOX21.exists(), reason=f"no Tox21 at {TOX21}: set CONSILIUM_DATA")
def test_multilabel_equals_scikit_learn_on_the_labels_of_tox21():
    y = pd.read_csv(TOX21).iloc[:, :12].to_numpy(float)[::8]
    assert np.isnan(y).any(axis=0).all()
    check_against_scikit_learn(scored(y), y)


def test_one_label_gives_the_measures_themselves_as_the_average():
    p, y = cohort(150, 4)
    found = multilabel(p[:, None], y[:, None].astype(float))
    expected = {"auroc": auroc(p, y), "auprc": auprc(p, y), "brier": brier(p, y)}
    for name, estimate in expected.items():
        assert found[0][name] == estimate
        assert found[MACRO][name].model_dump() == pytest.approx(estimate.model_dump(), abs=1e-9)


def test_macro_errors_see_that_labels_share_patients():
    """Ten copies of one label are no more certain than one."""
    p, y = cohort(150, 5)
    found = multilabel(np.tile(p[:, None], 10), np.tile(y[:, None], 10).astype(float))
    for name in ("auroc", "auprc", "brier"):
        assert found[MACRO][name].standard_error == pytest.approx(found[0][name].standard_error, rel=1e-9)


def test_nothing_measured_gives_nothing():
    assert multilabel(np.full((5, 2), 0.5), np.full((5, 2), np.nan)) == {}
