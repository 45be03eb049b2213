"""What exchange number N is: the same for coordinator and hospitals, and nothing beyond the protocol."""

from __future__ import annotations

import pytest

from contracts.schedule import (
    deadline_of,
    last_exchange,
    longest_deadline,
    most_exchanges,
    slot_at,
    slots,
    title_of,
)
from tests.factories import STUDY, tiny_study

RULE = {"alert_rate": 0.1}
DECLARED = STUDY["training"] | {"normalisation": "declared"}


def test_a_study_without_options_is_its_rounds() -> None:
    study = tiny_study()
    assert [(s.number, s.purpose) for s in slots(study, 0)] == [
        (0, "statistics"),
        (1, "training"),
        (2, "training"),
    ]
    assert slot_at(study, 3) is None and slot_at(study, -1) is None
    assert slot_at(tiny_study(training=DECLARED), 0) is None


def test_everything_planned_comes_in_one_order() -> None:
    study = tiny_study(decision_threshold=RULE, validation={"local_model": True, "leave_one_site_out": 3})
    planned = [(s.purpose, s.round, s.fold) for s in slots(study, 2)]
    assert planned == [
        ("statistics", 0, None),
        ("training", 1, None),
        ("training", 2, None),
        ("histogram", 2, None),
        ("local", 2, None),
        ("fold", 1, 0),
        ("fold", 2, 0),
        ("fold", 1, 1),
        ("fold", 2, 1),
    ]
    assert [s.number for s in slots(study, 2)] == list(range(9)) and last_exchange(study, 2) == 8
    assert most_exchanges(study) == 11 and slot_at(study, 10) is not None and slot_at(study, 11) is None
    assert [title_of(study, n, ["ash", "birch"]) for n in (0, 2, 3, 4, 6, 7)] == [
        "round 0 of 2",
        "round 2 of 2",
        "decision threshold",
        "local models",
        "without ash: round 2 of 2",
        "without birch: round 1 of 2",
    ]


@pytest.mark.parametrize("rule", [RULE, 0.5])
@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("folds", [None, 4])
@pytest.mark.parametrize("training", [STUDY["training"], DECLARED])
def test_counting_one_by_one_and_looking_a_number_up_agree(rule, local, folds, training) -> None:
    validation = {"local_model": local, "leave_one_site_out": folds}
    study = tiny_study(decision_threshold=rule, validation=validation, training=training)
    planned = list(slots(study, folds or 0))
    assert [s.number for s in planned] == list(
        range(study.first_round, study.first_round + most_exchanges(study))
    )
    kinds = [s.purpose for s in planned]
    assert kinds.count("training") == study.rounds and kinds.count("local") == local
    assert kinds.count("histogram") == (rule == RULE) and kinds.count("fold") == (folds or 0) * study.rounds
    assert planned[-1].number == last_exchange(study, folds or 0)


def test_a_local_model_may_take_as_long_as_all_rounds_together() -> None:
    local = tiny_study(rounds=5, validation={"local_model": True})
    assert (deadline_of(local, "training"), deadline_of(local, "local")) == (30, 150)
    assert longest_deadline(local) == 150 and longest_deadline(tiny_study(rounds=5)) == 30
