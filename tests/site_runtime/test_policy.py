"""Every rule of a hospital's policy refuses by its own number, before any data are touched."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import ConsiliumError
from contracts.refusal import Refusal
from contracts.signing import SigningKey, open_signed
from contracts.study import StudyProtocol
from site_runtime.config import load_site, load_site_file
from site_runtime.consent import approve_by_scripts
from site_runtime.policy import check_policy, verdicts
from site_runtime.policy_rules import Purpose, first_refusal, study_purposes, study_rules
from site_runtime.policy_terms import Policy
from site_runtime.steps import SiteRefused, intake
from tests.factories import POLICY, enrolled_site, private_study, site_fields, tiny_study, write_site

NOON = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)  # a Wednesday
IRB, DUA = POLICY["irb"], POLICY["dua"]
PRIVATE = private_study()


def refusal(policy: dict[str, Any], protocol: StudyProtocol, *purposes: Purpose) -> ConsiliumError | None:
    """What a policy that differs so says of a study, from intake to release or for some purposes."""
    folder = site_fields(policy={k: v for k, v in (POLICY | policy).items() if v is not None})
    from site_runtime.config import SiteConfig

    config = SiteConfig.model_validate(folder)
    try:
        first_refusal(study_rules(config, protocol, purposes or study_purposes(protocol), NOON))
    except ConsiliumError as error:
        return error
    return None


# The policy's difference, the study's, the number.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str | None]] = {
    "everything is permitted": ({}, {}, None),
    "no ethics approval": ({"irb": None}, {}, "E307"),
    "expired": ({"irb": IRB | {"expires": "2026-03-03"}}, {}, "E308"),
    "on its last day": ({"irb": IRB | {"expires": "2026-03-04"}}, {}, None),
    "not in force yet": ({"irb": IRB | {"approved": "2026-03-05"}}, {}, "E308"),
    "another study": ({"irb": IRB | {"scope": ["other"]}}, {}, "E309"),
    "another version": ({"irb": IRB | {"scope": [tiny_study(title="Old").hash]}}, {}, "E309"),
    "by name": ({"irb": IRB | {"scope": ["other", "tiny"]}}, {}, None),
    "by hash": ({"irb": IRB | {"scope": [tiny_study().hash]}}, {}, None),
    "no agreement": ({"dua": None}, {}, "E310"),
    "agreement expired": ({"dua": DUA | {"expires": "2026-03-03"}}, {}, "E311"),
    "no training": ({"dua": DUA | {"purposes": ["evaluation"]}}, {}, "E312"),
    "no updates": ({"dua": DUA | {"permitted_outputs": ["sums", "evaluation"]}}, {}, "E313"),
    "no sums": ({"dua": DUA | {"permitted_outputs": ["updates", "evaluation"]}}, {}, "E313"),
    "no sums needed": (
        {"dua": DUA | {"permitted_outputs": ["updates", "evaluation"]}},
        {"training": {"steps": 3, "sample_rate": 0.2, "learning_rate": 0.5, "normalisation": "declared"}},
        None,
    ),
    "no ledger": (
        {"dua": DUA | {"permitted_outputs": ["updates", "sums", "evaluation"]}},
        {"privacy": PRIVATE.body()["privacy"]},
        "E313",
    ),
    "no assessment": ({"dpia": None}, {}, "E314"),
    "smaller cohorts": ({"minimum_cohort": 11}, {}, "E315"),
    "the study asks for more": ({"minimum_cohort": 9}, {}, None),
    "the study's cell is smaller, and the hospital's is kept": ({"minimum_cell": 50}, {}, None),
    "another model": ({"models": ["mlp"]}, {}, "E316"),
    "no model at all": ({"models": []}, {}, "E316"),
    "another strategy": ({"strategies": ["fedadam"]}, {}, "E317"),
    "another aggregation": ({"aggregation": ["secure"]}, {}, "E318"),
    "the one that is named": ({"aggregation": ["secure", "norm_bound"]}, {}, None),
    "too long": ({"resources": {"max_seconds": 599}}, {}, "E320"),  # an intake may take 600 s
    "rounds that are too long": ({"resources": {"max_seconds": 600}}, {"deadline_seconds": 601}, "E320"),
    "too many steps": ({"resources": {"max_steps": 2}}, {}, "E320"),
    "enough": ({"resources": {"max_seconds": 600, "max_steps": 3}}, {}, None),
    "exact updates": ({"exact_updates": False}, {}, "E304"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_rule_refuses_by_its_number(case: str) -> None:
    policy, study, number = CASES[case]
    error = refusal(policy, tiny_study(**study))
    assert (error.number if error else None) == number
    if error is not None:
        assert error.detail  # for the hospital's own log


def test_a_policy_that_says_nothing_permits_nothing(tmp_path: Path) -> None:
    file = write_site(tmp_path, policy={})
    first = study_rules(load_site_file(file), tiny_study(), study_purposes(tiny_study()), NOON)
    numbers = {v.error.number for v in first if v.error}
    assert numbers == {"E304", "E307", "E310", "E314", "E315", "E316", "E317", "E318"}


def test_who_permits_evaluation_alone_is_not_asked_to_train() -> None:
    policy = {"dua": DUA | {"purposes": ["evaluation"], "permitted_outputs": ["evaluation"]}}
    for purpose, number in (
        ("training", "E312"),
        ("statistics", "E312"),
        ("evaluation", None),
        ("intake", None),
    ):
        error = refusal(policy, tiny_study(), purpose)  # type: ignore[arg-type]
        assert (error.number if error else None) == number, purpose


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"exact_updates": "sometimes"}, "exact_updates"),
        ({"models": "all"}, "models"),
        ({"irb": IRB | {"expires": "2019-01-01"}}, "irb"),
        ({"irb": IRB | {"scope": []}}, "irb.scope"),
        ({"irb": IRB | {"chair": "Dr. X"}}, "irb.chair"),
        ({"dua": DUA | {"permitted_outputs": ["rows"]}}, "dua.permitted_outputs"),
        ({"hours": ["at night"]}, "hours"),
        ({"hours": ["Mon-Fri 25:00-06:00"]}, "hours"),
        ({"time_zone": "Mars/Olympus"}, "time_zone"),
        ({"require_two_aprovals": False}, "require_two_aprovals"),
        ({"minimum_cohort": 0}, "minimum_cohort"),
    ],
)
def test_a_mistake_in_a_policy_is_named(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    with pytest.raises(ConsiliumError, match="E103") as refused:
        load_site_file(write_site(tmp_path, policy=POLICY | change))
    assert f"policy.{field}" in refused.value.detail


@pytest.mark.parametrize(
    ("hours", "zone", "moment", "opens"),
    [
        ([], "UTC", NOON, True),
        (["Mon-Fri 08:00-18:00"], "UTC", NOON, True),
        (["Mon-Fri 08:00-12:00"], "UTC", NOON, False),  # the end is no part of it
        (["Sat 08:00-18:00"], "UTC", NOON, False),
        (["Sat-Mon 00:00-00:00"], "UTC", datetime(2026, 3, 2, 23, 59, tzinfo=UTC), True),
        (["Sat-Mon 00:00-00:00"], "UTC", datetime(2026, 3, 3, 0, 0, tzinfo=UTC), False),
        (["Mon-Fri 20:00-06:00"], "UTC", datetime(2026, 3, 4, 20, 0, tzinfo=UTC), True),
        (["Mon-Fri 20:00-06:00"], "UTC", datetime(2026, 3, 7, 5, 59, tzinfo=UTC), True),  # since Friday
        (["Mon-Fri 20:00-06:00"], "UTC", datetime(2026, 3, 7, 20, 0, tzinfo=UTC), False),
        (["Mon-Fri 20:00-06:00"], "UTC", datetime(2026, 3, 2, 5, 0, tzinfo=UTC), False),  # since Sunday
        (["Wed 13:00-14:00"], "Europe/Paris", NOON, True),  # UTC+1
        (["Wed 14:00-15:00"], "Europe/Paris", datetime(2026, 7, 1, 12, 0, tzinfo=UTC), True),  # UTC+2
        (["Sat 08:00-18:00", "Wed 11:00-12:01"], "UTC", NOON, True),
    ],
)
def test_hours_are_the_hospitals_own(hours: list[str], zone: str, moment: datetime, opens: bool) -> None:
    assert Policy(hours=hours, time_zone=zone).opens(moment) is opens  # type: ignore[arg-type]


def test_the_day_is_the_hospitals_own() -> None:
    late = datetime(2026, 3, 4, 23, 30, tzinfo=UTC)
    assert Policy(time_zone="Asia/Tokyo").today(late) == date(2026, 3, 5)


def test_outside_of_the_hours_nothing_is_touched(tmp_path: Path) -> None:
    home = enrolled_site(tmp_path, policy=POLICY | {"hours": ["Wed 08:00-10:00"]})
    approve_by_scripts(home, tiny_study())
    config = load_site(home)
    check_policy(home, config, tiny_study(), "intake", moment=NOON.replace(hour=9))
    with pytest.raises(ConsiliumError, match="E319"):
        check_policy(home, config, tiny_study(), "intake", moment=NOON)


@pytest.mark.parametrize("purpose", ["intake", "training", "evaluation"])
def test_what_lapses_after_the_approval_is_refused_at_the_next_step(tmp_path: Path, purpose: Purpose) -> None:
    home = enrolled_site(tmp_path, policy=POLICY | {"irb": IRB | {"expires": "2098-12-31"}})
    approve_by_scripts(home, tiny_study())
    config = load_site(home)
    check_policy(home, config, tiny_study(), purpose)
    with pytest.raises(ConsiliumError, match="E308"):
        check_policy(home, config, tiny_study(), purpose, moment=datetime(2099, 1, 1, tzinfo=UTC))


def test_a_refusal_says_its_number_and_its_sentence_and_no_detail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = enrolled_site(tmp_path)
    approve_by_scripts(home, tiny_study())
    later = datetime(2100, 1, 1, tzinfo=UTC)
    monkeypatch.setattr("site_runtime.policy.utc_now", lambda: later)
    monkeypatch.setattr("site_runtime.connectors.read", lambda *a: pytest.fail("the source was read"))
    with pytest.raises(SiteRefused) as caught:
        intake(home, "tiny")
    key = SigningKey.load("ash", home.signing_key).public
    said = open_signed(caught.value.document, Refusal, "ash", key)
    assert said.number == "E308" and "2100" not in caught.value.document
    assert "2099-12-31" in home.log.read_text()


def test_the_verdicts_name_every_rule_and_read_no_data(tmp_path: Path) -> None:
    home = enrolled_site(tmp_path)
    (tmp_path / "source" / "data.csv").unlink()
    found = verdicts(home, load_site(home), tiny_study(), study_purposes(tiny_study()))
    assert [v.rule for v in found if v.error] == ["approval"]  # E301: nobody decided yet
    assert {"ethics approval", "purposes", "what leaves", "smallest count", "hours"} <= {
        v.rule for v in found
    }
