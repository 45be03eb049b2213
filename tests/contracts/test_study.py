"""The study protocol: its hash is that of what the author wrote, and a mistake in a file is named."""

import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from contracts.canonical import digest
from contracts.errors import ConsiliumError
from contracts.study import StudyProtocol, load_study, parse_study, threshold_of
from tests.factories import STUDY, study_fields, tiny_study

AGE = STUDY["features"][0]
SEX = STUDY["features"][2]
HOSPITAL = {"mode": "site", "epsilon": 3, "delta": 1e-3, "max_update_norm": 1}
REFERENCE = {"name": "score", "source": "a paper", "intercept": 0.0}
PATIENT = {"mode": "patient", "epsilon": 3.0, "delta": 1e-4, "max_grad_norm": 1.0}


def shuffled(value: Any, draw: random.Random) -> Any:
    """The same value with the keys of every mapping in another order."""
    if isinstance(value, dict):
        return {k: shuffled(value[k], draw) for k in draw.sample(list(value), len(value))}
    return [shuffled(v, draw) for v in value] if isinstance(value, list) else value


def test_the_hash_is_that_of_the_fields_the_author_wrote() -> None:
    assert tiny_study().body() == STUDY
    assert tiny_study().hash == digest(STUDY)


@given(st.integers(0, 1000))
def test_the_order_of_keys_does_not_change_the_hash(seed: int) -> None:
    assert parse_study(shuffled(study_fields(), random.Random(seed))).hash == tiny_study().hash


def test_the_order_of_features_changes_the_hash() -> None:
    # It is the order of the model's input.
    assert tiny_study(features=STUDY["features"][::-1]).hash != tiny_study().hash


@pytest.mark.parametrize(
    "written",
    [
        {"decision_threshold": 0.5},
        {"quality": {}},
        {"amends": None},
        {"training": STUDY["training"] | {"momentum": 0.0}},
        {"features": [AGE | {"max_missing": 0.5}, *STUDY["features"][1:]]},
    ],
    ids=lambda w: next(iter(w)),
)
def test_a_default_that_is_written_out_is_another_protocol(written: dict[str, Any]) -> None:
    # It no longer follows a changed default, so it promises something else.
    assert tiny_study(**written).hash != tiny_study().hash


def test_a_new_optional_field_of_the_model_changes_no_old_hash() -> None:
    class Newer(StudyProtocol):
        reviewers: list[str] = []
        embargo_days: int | None = None

    assert Newer.model_validate(STUDY).hash == tiny_study().hash
    assert Newer.model_validate(study_fields(embargo_days=30)).hash != tiny_study().hash


@pytest.mark.parametrize(
    "changes",
    [
        {"rounds": 3},
        {"privacy": PATIENT},
        {"gates": [{"metric": "auroc", "at_least": 0.7}]},
        {"amends": "0" * 64},
        {"title": "Tiny "},
    ],
    ids=lambda c: next(iter(c)),
)
def test_every_change_of_content_changes_the_hash(changes: dict[str, Any]) -> None:
    assert tiny_study(**changes).hash != tiny_study().hash


def test_a_number_is_the_same_however_it_is_spelled() -> None:
    spelled = yaml.safe_load("[1.0e-4, 0.0001, 1e-4]")  # the last is a text to YAML 1.1
    assert len({tiny_study(privacy=PATIENT | {"delta": delta}).hash for delta in spelled}) == 1


def test_a_protocol_that_crossed_as_json_has_the_same_hash() -> None:
    study = tiny_study(privacy=PATIENT)
    assert parse_study(study.body()).hash == study.hash


# changed fields, and what the error must say: the field, and the value or the expectation
MISTAKES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "balanced without counts": (
        {"training": STUDY["training"] | {"class_weights": "balanced", "normalisation": "declared"}},
        ["class_weights", "normalisation: federated"],
    ),
    "two rules": ({"decision_threshold": {"sensitivity": 0.9, "alert_rate": 0.1}}, ["exactly one"]),
    "a rule without noise": (
        {
            "decision_threshold": {"sensitivity": 0.9},
            "training": STUDY["training"] | {"normalisation": "declared"},
            "privacy": {"mode": "site", "epsilon": 5.0, "delta": 0.01, "max_update_norm": 1.0},
        },
        ["threshold", "mode site"],
    ),
    "unknown key": ({"epsilon": 3}, ["'epsilon'", "not permitted", "3"]),
    "unknown key inside": ({"training": STUDY["training"] | {"epochs": 4}}, ["'training.epochs'", "4"]),
    "missing key": ({"label": {"name": "died"}}, ["'label.positive'", "required"]),
    "wrong type": ({"rounds": "ten"}, ["'rounds'", "integer", "'ten'"]),
    "fraction of a round": ({"rounds": 2.5}, ["'rounds'", "2.5"]),
    "too few": ({"min_sites": 0}, ["'min_sites'", "greater than or equal to 1", "0"]),
    "rate": ({"training": STUDY["training"] | {"sample_rate": 2}}, ["'training.sample_rate'", "2"]),
    "not finite": (
        {"training": STUDY["training"] | {"learning_rate": float("inf")}},
        ["'training.learning_rate'", "finite", "inf"],
    ),
    "range reversed": ({"features": [AGE | {"range": [100, 0]}]}, ["range of age", "low < high", "100"]),
    "range of one": ({"features": [AGE | {"range": [100]}]}, ["features.0.numeric.range", "1"]),
    "unknown kind": ({"features": [AGE | {"kind": "text"}]}, ["features.0", "'text'", "'categorical'"]),
    "no feature": ({"features": []}, ["'features'", "at least 1"]),
    "name": ({"features": [AGE | {"name": "Age (years)"}]}, ["features.0.numeric.name", "'Age (years)'"]),
    "level twice": ({"features": [SEX | {"levels": [0, 1, 1]}]}, ["levels of sex", "differ", "1.0"]),
    "feature twice": ({"features": [AGE, AGE]}, ["named twice", "age"]),
    "label a feature": ({"label": {"name": "age", "positive": "x"}}, ["label 'age'", "also a feature"]),
    "prevalence reversed": (
        {"label": STUDY["label"] | {"prevalence": [0.6, 0.1]}},
        ["prevalence", "low < high", "0.6"],
    ),
    "subgroup of nothing": (
        {"subgroups": [{"name": "race", "feature": "race"}]},
        ["'race'", "unknown feature"],
    ),
    "subgroup without edges": ({"subgroups": [{"name": "age", "feature": "age"}]}, ["'age'", "needs edges"]),
    "edges": (
        {"subgroups": [{"name": "age", "feature": "age", "edges": [80, 50]}]},
        ["edges of age", "increase", "80"],
    ),
    "subgroup twice": ({"subgroups": [{"name": "sex", "feature": "sex"}] * 2}, ["subgroups", "same name"]),
    "gate without limits": (
        {"gates": [{"metric": "auroc"}]},
        ["'gates.0'", "needs at_least or at_most", "'auroc'"],
    ),
    "gate that nothing passes": (
        {"gates": [{"metric": "auroc", "at_least": 0.9, "at_most": 0.1}]},
        ["'gates.0'", "0.9", "0.1"],
    ),
    "gate of no metric": ({"gates": [{"metric": "f1", "at_least": 0.7}]}, ["'gates.0.metric'", "'f1'"]),
    "gap of no subgroup": (
        {"gates": [{"metric": "subgroup_gap", "at_most": 0.1}]},
        ["'gates.0'", "subgroup_gap and subgroup go together"],
    ),
    "gap of an unknown subgroup": (
        {"gates": [{"metric": "subgroup_gap", "at_most": 0.1, "subgroup": "race"}]},
        ["unknown subgroup 'race'"],
    ),
    "a limit for a fact": (
        {"gates": [{"metric": "parity", "at_most": 0}]},
        ["'gates.0'", "parity takes neither at_least nor at_most"],
    ),
    "difference to nothing": (
        {"gates": [{"metric": "difference", "at_least": 0}]},
        ["'gates.0'", "difference or non_inferiority and against go together"],
    ),
    "non-inferiority without a margin": (
        {"gates": [{"metric": "non_inferiority", "against": "first"}]},
        ["'gates.0'", "non_inferiority and margin go together"],
    ),
    "a gate on a comparison that is not planned": (
        {"gates": [{"metric": "difference", "against": "local", "at_least": 0}]},
        ["a gate compares with 'local', which validation does not plan"],
    ),
    "a reference of an unknown feature": (
        {"validation": {"reference": REFERENCE | {"terms": [{"feature": "shoe", "coefficient": 1}]}}},
        ["validation.reference names unknown feature 'shoe'"],
    ),
    "a term of two kinds": (
        {
            "validation": {
                "reference": REFERENCE | {"terms": [{"feature": "age", "coefficient": 1, "levels": {"1": 2}}]}
            }
        },
        ["'validation.reference.terms.0'", "exactly one of coefficient and levels"],
    ),
    "thresholds in the wrong order": (
        {"validation": {"net_benefit": {"low": 0.5, "high": 0.1}}},
        ["'validation.net_benefit'", "low < high"],
    ),
    "local models without a noise of their own": (
        {
            "privacy": HOSPITAL,
            "training": STUDY["training"] | {"normalisation": "declared"},
            "validation": {"local_model": True},
        },
        ["validation.local_model", "mode site"],
    ),
    "one person in two roles": (
        {"sign_off": {"roles": ["clinician", "clinician"]}},
        ["'sign_off'", "two different people"],
    ),
    "another product without the study it amends": (
        {"product": "other"},
        ["product 'other'", "needs amends"],
    ),
    "no privacy mode": ({"privacy": {"epsilon": 3}}, ["'privacy'", "'mode'"]),
    "epsilon without mode patient": (
        {"privacy": {"mode": "none", "epsilon": 3}},
        ["'privacy.none.epsilon'", "not permitted", "3"],
    ),
    "huge epsilon": ({"privacy": PATIENT | {"epsilon": 100}}, ["'privacy.patient.epsilon'", "20", "100"]),
    "hospital-level privacy with statistics": (
        {"privacy": HOSPITAL},
        ["training.normalisation 'federated'", "expected 'declared'", "mode site"],
    ),
    "hospital-level privacy with label counts": (
        {
            "privacy": HOSPITAL,
            "training": STUDY["training"] | {"normalisation": "declared", "class_weights": "balanced"},
        },
        ["training.class_weights 'balanced'", "expected 'none'"],
    ),
    "hospital-level privacy with a threshold from data": (
        {
            "privacy": HOSPITAL,
            "training": STUDY["training"] | {"normalisation": "declared"},
            "decision_threshold": {"sensitivity": 0.9},
        },
        ["decision_threshold is a rule", "expected a number"],
    ),
    "cron without cadence": ({"cron": "0 3 * * *"}, ["cadence", "cron", "together"]),
    "cadence without cron": ({"cadence": "cron"}, ["cadence", "cron", "together"]),
    "another schema": ({"schema": "consilium/study/9"}, ["'schema'", "consilium/study/9"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_field_value_and_expectation(name: str, tmp_path: Path) -> None:
    changes, said = MISTAKES[name]
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(study_fields(**changes)))
    with pytest.raises(ConsiliumError) as caught:
        load_study(file)
    assert caught.value.number == "E101"
    assert [text for text in ["mine.yaml", *said] if text not in caught.value.detail] == [], caught.value


@pytest.mark.parametrize(
    "content", [None, b"", b"- a list", b"a: [1", b"a: !!python/name:os.system", b"\xff"]
)
def test_a_file_that_holds_no_mapping_is_e101(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConsiliumError, match="E101") as caught:
        load_study(file)
    assert "mine.yaml" in caught.value.detail


def test_the_threshold_is_the_protocols_number_or_the_locked_one() -> None:
    fixed, rule = tiny_study(decision_threshold=0.3), tiny_study(decision_threshold={"alert_rate": 0.1})
    assert threshold_of(fixed, None) == threshold_of(fixed, 0.3) == 0.3
    assert threshold_of(rule, 0.42) == 0.42
    for protocol, locked in ((fixed, 0.31), (rule, None)):
        with pytest.raises(ConsiliumError, match="E426"):
            threshold_of(protocol, locked)


def test_a_rule_adds_one_exchange_after_the_last_round() -> None:
    fixed, rule = tiny_study(), tiny_study(decision_threshold={"alert_rate": 0.1})
    assert (fixed.last_round, rule.last_round) == (2, 3)
