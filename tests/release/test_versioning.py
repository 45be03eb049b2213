"""Which version a release gets follows from what changed, and a major change needs a plan."""

from __future__ import annotations

import pytest

from contracts.errors import ConsiliumError
from contracts.release import Lineage, RoundLineage, SiteData
from release.versioning import classify, next_version, require_allowed
from tests.dossiers import tiny_candidate
from tests.factories import STUDY, ZERO, tiny_study

ONE, TWO = "1" * 64, "2" * 64


def lineage(model: str = ONE, **cohorts: str) -> Lineage:
    digests = {"ash": ZERO, "birch": ZERO} | cohorts
    data = [SiteData(site=s, data_sheet=ZERO, cohort=c, policy=ZERO) for s, c in digests.items()]
    fold = RoundLineage(round=2, kind="training", fold="ash", plan=ZERO, model=TWO, updates={})
    last = RoundLineage(round=1, kind="training", plan=ZERO, model=model, updates={})
    return Lineage(data=data, rounds=[last, fold], environment=ZERO)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The product's first release, trained at ash and birch."""
    _, manifest = tiny_candidate(tmp_path_factory.mktemp("first"))
    return manifest.model_copy(update={"lineage": lineage(ZERO)})


def features(**changes):
    return [{**STUDY["features"][0], **changes}, *STUDY["features"][1:]]


def changed(first, sites=("ash", "birch"), given=None, **fields):
    return classify(first, tiny_study(), tiny_study(**fields), given or lineage(), sites)


def test_the_first_release_is_1_0_0(first):
    change = classify(None, None, tiny_study(), lineage(), ["ash"])
    assert (change.level, change.changed, next_version(None, change)) == ("first", [], "1.0.0")


@pytest.mark.parametrize(
    ("fields", "kinds", "version"),
    [
        ({}, ["weights"], "1.0.1"),
        ({"training": {**STUDY["training"], "steps": 9}}, ["weights"], "1.0.1"),
        ({"gates": [{"metric": "auroc", "at_least": 0.9}]}, ["weights"], "1.0.1"),
        ({"sites": ["ash"]}, ["weights", "sites"], "1.1.0"),
        ({"given": lineage(ash=TWO)}, ["weights", "data"], "1.1.0"),
        ({"model": {"name": "mlp", "hidden": [4]}}, ["weights", "architecture"], "1.1.0"),
        ({"decision_threshold": 0.4}, ["weights", "threshold"], "2.0.0"),
        ({"features": features(unit="months")}, ["weights", "inputs"], "2.0.0"),
        ({"features": features(range=[0, 110])}, ["weights", "inputs"], "2.0.0"),
        ({"features": STUDY["features"][::-1]}, ["weights", "inputs"], "2.0.0"),
        ({"features": features(description="at admission", max_missing=0.1)}, ["weights"], "1.0.1"),
        ({"label": {"name": "died", "positive": "died within 30 days"}}, ["weights", "outputs"], "2.0.0"),
        ({"intended_use": "Wards."}, ["weights", "intended_use"], "2.0.0"),
    ],
)
def test_the_version_follows_from_what_changed(first, fields, kinds, version):
    change = changed(first, **fields)
    assert (list(change.changed), next_version(first, change), change.since) == (kinds, version, "1.0.0")


def test_the_fold_of_another_hospital_is_not_the_model(first):
    assert changed(first, given=lineage(model=first.model)).changed == []


def test_a_hospital_whose_data_are_not_known_counts_as_changed(first):
    without = first.model_copy(update={"lineage": lineage().model_copy(update={"data": []})})
    assert "data" in changed(without).changed
    # A hospital that is new is new, not changed.
    assert changed(first, ("ash", "birch", "cedar"), lineage(cedar=TWO)).changed == ["weights", "sites"]


def test_a_purpose_that_was_open_may_be_stated_but_not_restated(first):
    stated = tiny_study(dossier={"patients": "Adults."})
    assert classify(first, tiny_study(), stated, lineage(), ["ash", "birch"]).level == "patch"
    other = tiny_study(dossier={"patients": "Children."})
    assert classify(first, stated, other, lineage(), ["ash", "birch"]).level == "major"
    assert classify(first, stated, tiny_study(), lineage(), ["ash", "birch"]).level == "major"


def test_the_version_is_above_the_newest_even_after_a_rollback(first):
    newest = first.model_copy(update={"version": "1.4.9"})
    assert next_version(newest, changed(first)) == "1.4.10"


def plan(*modifications, authorised_by="Dr Plan"):
    listed = [
        {"id": name, "title": name, "changes": changes, "description": "."} for name, changes in modifications
    ]
    return tiny_study(dossier={"change_control": {"modifications": listed, "authorised_by": authorised_by}})


@pytest.mark.parametrize(
    ("before", "modification", "allowed"),
    [
        (tiny_study(), None, False),
        (plan(("retrain", ["weights", "data"])), None, False),
        (plan(("retrain", ["weights"]), ("retune", ["weights", "threshold"])), "retune", True),
        (plan(("retune", ["weights", "threshold"]), authorised_by=None), None, False),
        (plan(("retrain", ["weights"]), ("move", ["threshold"])), None, True),  # allowed; which one: open
    ],
)
def test_a_major_change_needs_an_authorised_plan_that_names_it(first, before, modification, allowed):
    moved = tiny_study(decision_threshold=0.4, dossier=before.dossier.model_dump())
    change = classify(first, before, moved, lineage(), ["ash", "birch"])
    assert change.modification == modification
    if allowed:
        require_allowed(change, before)
        return
    with pytest.raises(ConsiliumError, match=r"E710.*threshold changed since 1\.0\.0"):
        require_allowed(change, before)


def test_a_plan_in_the_amendment_itself_allows_nothing(first):
    planned = plan(("retune", ["weights", "threshold"]))
    moved = tiny_study(decision_threshold=0.4, dossier=planned.dossier.model_dump())
    change = classify(first, tiny_study(), moved, lineage(), ["ash", "birch"])
    with pytest.raises(ConsiliumError, match="E710"):
        require_allowed(change, tiny_study())


def test_without_the_protocol_before_nothing_is_decided(first):
    with pytest.raises(ConsiliumError, match="E710"):
        classify(first, None, tiny_study(), lineage(), ["ash"])
