"""What the shipped studies reach with privacy, on the mean of five runs (`benchmarks/accuracy.py`)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from consilium.published import published_results
from consilium.repetition import compare, repeat, summary
from consilium.simulation import with_privacy
from consilium.study import find_federation, find_study
from contracts.study import load_study
from site_runtime.config import data_folder

pytestmark = pytest.mark.filterwarnings("ignore")

HEART = data_folder() / "heart_disease"
TABLES = data_folder() / "published" / "tables.json"
RUNS = 5


@pytest.mark.slow
@pytest.mark.skipif(not HEART.exists(), reason=f"{HEART} is not here: consilium data fetch heart-disease")
@pytest.mark.parametrize(("epsilon", "least"), [(3.0, 0.785), (1.0, 0.76)])
def test_heart_disease_keeps_its_accuracy_under_privacy(tmp_path: Path, epsilon: float, least: float) -> None:
    """One run's standard deviation is .010 at epsilon 3 and .016 at epsilon 1, around .804 and .786.

    At epsilon 1 the goal of .77 for a mean of five is two standard errors away, so that one test in fifty
    would miss it by chance; .76 is between three and four away.
    """
    shipped = load_study(find_study("heart-disease"))
    protocol = with_privacy(shipped, epsilon=epsilon, delta=1e-4, clip=0.8, statistics_fraction=0.3)
    federation = find_federation("heart-disease", None)
    found = summary(repeat(protocol, federation, tmp_path, RUNS, lambda text: None))
    assert found["privacy"]["delta"] == 1e-4 and len(found["privacy"]["sites"]) == 4
    assert 0.99 * epsilon < min(found["privacy"]["sites"].values())
    assert found["privacy"]["maximum"] <= epsilon
    assert found["pooled"]["accuracy"]["mean"] >= least, found["pooled"]["accuracy"]


@pytest.mark.slow
def test_the_demo_loses_at_most_a_hundredth_of_its_auroc_to_privacy(tmp_path: Path) -> None:
    protocol = load_study(find_study("icu-mortality-demo"))
    found = compare(protocol, find_federation(protocol.study, None), tmp_path, 3, lambda text: None)
    assert found["with_privacy"]["privacy"]["maximum"] <= 3.0
    assert found["lost"]["auroc"] <= 0.01, found["with_privacy"]["pooled"]["auroc"]


def test_the_published_figures_of_heart_disease_are_those_of_their_source() -> None:
    if not TABLES.exists():
        pytest.skip(f"{TABLES} is not here")
    tables = json.loads(TABLES.read_text())
    published = published_results("heart-disease")
    assert published is not None and published.privacy is not None
    theirs = list(tables["fed_heart_disease"]["rows"].values())
    ours = [(row.pooled, row.sites) for row in published.rows]
    assert ours == [(row.get("pooled_test"), row["sites"]) for row in theirs]
    private = {r.claimed_epsilon: r.accuracy for r in published.privacy.rows}
    assert private.pop(None) == tables["fed_heart_disease_dp"]["no_dp"]
    assert {f"{e:g}": a for e, a in private.items()} == tables["fed_heart_disease_dp"]["claimed_epsilon"]


def test_a_study_of_which_nothing_was_published_has_no_table() -> None:
    assert published_results("icu-mortality-demo") is None
