"""Two releases side by side: every difference that matters to a deployment is named."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from contracts.errors import ConsiliumError
from contracts.release import Change, Lineage, RoundLineage, SiteData
from release.compare import compare, read_release
from release.directory import write_candidate
from tests.dossiers import tiny_facts, tiny_onnx
from tests.factories import STUDY, ZERO, private_study, tiny_study


def written(folder, study=None, cohort=ZERO, model="1" * 64, **changes):
    folder.mkdir()
    data = [SiteData(site=s, data_sheet=ZERO, cohort=cohort, policy=ZERO) for s in ("ash", "birch")]
    rounds = [RoundLineage(round=1, kind="training", plan=ZERO, model=model, updates={"ash": ZERO})]
    lineage = Lineage(data=data, rounds=rounds, environment=ZERO)
    facts = replace(tiny_facts(study), lineage=lineage, model=model, **changes)
    write_candidate(folder / "release", facts, tiny_onnx(folder / "model.onnx"))
    return read_release(folder / "release")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return written(tmp_path_factory.mktemp("a") / "a", private_study())


def test_a_release_does_not_differ_from_itself(first):
    found = compare(first, first)
    assert found["change"]["level"] == "none"
    assert not any(found[key] for key in ("facts", "protocol", "inputs"))
    assert found["sites"] == {"added": [], "removed": []} and found["files"]["changed"] == []
    assert {row["difference"] for row in found["metrics"]} == {0.0}


def test_what_differs_is_named(first, tmp_path):
    features = [{**STUDY["features"][0], "unit": "months"}, *STUDY["features"][2:0:-1]]
    study = private_study(
        study="tiny-2",
        product="tiny",
        amends="2" * 64,
        features=features,
        decision_threshold=0.4,
        rounds=5,
        gates=[{"metric": "auroc", "at_least": 0.6}],
    )
    found = compare(
        first, written(tmp_path / "b", study, cohort="3" * 64, model="4" * 64, version="2.0.0", gates=())
    )
    assert found["change"]["level"] == "major"
    assert found["change"]["changed"] == ["weights", "data", "threshold", "inputs"]
    assert {"field": "features.age.unit", "a": "years", "b": "months"} in found["protocol"]
    assert {"field": "rounds", "a": 2, "b": 5} in found["protocol"]
    assert not {"study", "product", "amends"} & {row["field"] for row in found["protocol"]}
    inputs = {row["input"]: (row["a"], row["b"]) for row in found["inputs"]}
    assert inputs["age"] == (
        "column 1: numeric, years, 0.0 to 100.0",
        "column 1: numeric, months, 0.0 to 100.0",
    )
    assert set(inputs) == {"age", "lactate", "sex"}  # an order is a difference, too
    assert {"name": "decision_threshold", "a": 0.5, "b": 0.4} in found["facts"]
    assert found["gates"][0]["a"]["passed"] is True and found["gates"][0]["b"] is None
    assert [row["same_cohort"] for row in found["data"]] == [False, False]
    assert found["privacy"][0]["study_a"] > 0
    assert json.loads(json.dumps(found)) == found


def test_differences_on_the_same_patients_are_shown_where_the_hospitals_computed_them(first, tmp_path):
    estimate = {"value": 0.03, "standard_error": 0.01, "lower": 0.01, "upper": 0.05}
    metrics = {
        "pooled": {"comparisons": {"previous": {"auroc": estimate, "worst_site": "ash"}}},
        "ash": {"comparisons": {"previous": {"metrics": {}, "differences": {"auroc": estimate}}}},
    }
    study = private_study(study="tiny-2", product="tiny", amends="2" * 64)
    change = Change(level="patch", since="1.0.0", changed=["weights"])
    second = written(tmp_path / "b", study, version="1.0.1", change=change, model="4" * 64)
    compared = replace(second, metrics=metrics)
    rows = compare(first, compared)["paired"]
    assert [(row["hospital"], row["metric"], row["difference"]) for row in rows] == [
        ("ash", "auroc", estimate),
        ("pooled", "auroc", estimate),
    ]
    # Of a release that was compared with another one, nothing is claimed.
    other = replace(first, manifest=first.manifest.model_copy(update={"version": "0.9.0", "change": change}))
    assert compare(other, compared)["paired"] == []


def test_hospitals_that_came_and_went(first, tmp_path):
    second = written(tmp_path / "b", tiny_study())
    fewer = second.manifest.model_copy(update={"sites": ["birch", "cedar"]})
    assert compare(first, replace(second, manifest=fewer))["sites"] == {
        "added": ["cedar"],
        "removed": ["ash"],
    }


def test_a_folder_that_is_no_release_is_refused(first, tmp_path):
    with pytest.raises(ConsiliumError, match="E703"):
        read_release(tmp_path)
