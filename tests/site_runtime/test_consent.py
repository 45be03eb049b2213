"""A hospital takes part in exactly what two of its people approved, for as long as it wants to."""

import json

import pytest
import yaml

from contracts.errors import ConsiliumError
from site_runtime.config import load_site
from site_runtime.consent import (
    SCRIPTS,
    approval_code,
    approve,
    approve_by_scripts,
    approve_unless_declined,
    check_consent,
    load_approved,
    pause,
    resume,
    withdraw,
)
from site_runtime.decisions import load_consent
from tests.factories import POLICY, SITE, STUDY, enrolled_site, tiny_study

PROTOCOL = tiny_study()
PEOPLE = ["Dr. A. Smith", "Dr. B. Jones", "C. Meier"]


def hospital(root, **changes):
    """A site whose approvers have names."""
    return enrolled_site(root, governance={**SITE["governance"], "approvers": PEOPLE}, **changes)


def check(home, protocol=PROTOCOL) -> None:
    check_consent(home, load_site(home), protocol.study, protocol.hash)


def refused(home, protocol=PROTOCOL) -> str:
    with pytest.raises(ConsiliumError) as error:
        check(home, protocol)
    return error.value.number


def code(home, protocol=PROTOCOL) -> str:
    return approval_code(protocol.hash, load_site(home).policy_digest)


def say_yes(home, by, protocol=PROTOCOL) -> str:
    """One person's approval with the right code; returns the state it comes to."""
    return approve(home, protocol, by, code(home, protocol)).state


def change_policy(home, **changes) -> None:
    value = yaml.safe_load(home.config.read_text())
    home.config.write_text(yaml.safe_dump(value | {"policy": value["policy"] | changes}))


def test_the_life_of_a_consent(tmp_path):
    home = hospital(tmp_path)
    assert refused(home) == "E301"
    assert say_yes(home, "Dr. A. Smith") == "proposed" and refused(home) == "E321"
    assert say_yes(home, "Dr. B. Jones") == "approved"
    check(home)
    pause(home, "tiny")
    assert refused(home) == "E302"
    resume(home, "tiny")
    check(home)
    withdraw(home, "tiny")
    assert refused(home) == "E303"
    for decision in (resume, pause):
        with pytest.raises(ConsiliumError, match="E303"):
            decision(home, "tiny")
    assert say_yes(home, "C. Meier") == "proposed" and refused(home) == "E303"
    assert say_yes(home, "Dr. A. Smith") == "approved"
    check(home)
    consent = load_consent(home, "tiny")
    states = [d.state for d in consent.decisions]
    assert states == [*("proposed", "approved", "paused", "approved", "withdrawn", "proposed", "approved")]
    assert consent.people == "C. Meier and Dr. A. Smith" and not any(d.script for d in consent.decisions)


@pytest.mark.parametrize("again", ["Dr. A. Smith", "  dr. a.  SMITH "])
def test_one_person_is_not_two(tmp_path, again):
    home = hospital(tmp_path)
    say_yes(home, "Dr. A. Smith")
    with pytest.raises(ConsiliumError, match=r"E322.*second person"):
        say_yes(home, again)
    assert refused(home) == "E321"


def test_only_named_people_with_the_code_of_this_page_approve(tmp_path):
    home = hospital(tmp_path)
    for by, given in (
        ("Dr. Who", code(home)),
        ("Dr. A. Smith", code(home, tiny_study(title="Another"))),
        ("Dr. A. Smith", ""),
    ):
        with pytest.raises(ConsiliumError, match="E322"):
            approve(home, PROTOCOL, by, given)
    assert not home.approval("tiny").exists() and load_consent(home, "tiny") is None


def test_a_policy_may_ask_for_one_approval(tmp_path):
    home = hospital(tmp_path, policy=POLICY | {"require_two_approvals": False})
    assert say_yes(home, "C. Meier") == "approved"
    check(home)


def test_consent_is_for_one_version(tmp_path):
    home = hospital(tmp_path)
    for by in PEOPLE[:2]:
        say_yes(home, by)
    amended = tiny_study(title="Tiny, amended")
    assert refused(home, amended) == "E301"
    say_yes(home, "C. Meier", amended)
    assert refused(home, amended) == "E321"
    check(home)  # a proposal stops nothing that runs
    say_yes(home, "Dr. A. Smith", amended)
    check(home, amended)
    assert refused(home) == "E301"
    assert load_approved(home, "tiny").hash == amended.hash


def test_two_people_who_saw_different_versions_have_approved_neither(tmp_path):
    home, other = hospital(tmp_path), tiny_study(title="Tiny, amended")
    say_yes(home, "Dr. A. Smith")
    say_yes(home, "Dr. B. Jones", other)
    assert refused(home) == refused(home, other) == "E321"


def test_another_policy_needs_new_approvals_and_so_does_the_earlier_one_back(tmp_path):
    home = hospital(tmp_path)
    for by in PEOPLE[:2]:
        say_yes(home, by)
    before = code(home)
    change_policy(home, minimum_cell=2)
    assert refused(home) == "E323" and code(home) != before
    say_yes(home, "Dr. A. Smith")
    assert refused(home) == "E323"
    say_yes(home, "C. Meier")
    check(home)
    change_policy(home, minimum_cell=3)
    assert refused(home) == "E323"


def test_an_approval_under_the_old_policy_does_not_count_for_the_new_one(tmp_path):
    home = hospital(tmp_path)
    say_yes(home, "Dr. A. Smith")
    change_policy(home, minimum_cell=2)
    assert say_yes(home, "Dr. B. Jones") == "proposed"


def test_a_pause_keeps_the_policy_that_was_approved(tmp_path):
    home = hospital(tmp_path)
    for by in PEOPLE[:2]:
        say_yes(home, by)
    pause(home, "tiny")
    change_policy(home, minimum_cell=2)
    resume(home, "tiny")
    assert refused(home) == "E323"


def test_the_hospital_as_a_whole_pauses_and_resumes(tmp_path):
    home = hospital(tmp_path)
    resume(home, None)  # nothing to end
    approve_by_scripts(home, PROTOCOL)
    pause(home, None)
    assert refused(home) == "E302"
    with pytest.raises(ConsiliumError, match="E302"):
        check(home)
    resume(home, None)
    check(home)


def test_a_pause_outlives_a_new_version_only_until_it_is_approved(tmp_path):
    home = hospital(tmp_path)
    approve_by_scripts(home, PROTOCOL)
    pause(home, "tiny")
    assert refused(home, tiny_study(title="Tiny, amended")) == "E302"


@pytest.mark.parametrize("change", [pause, resume, withdraw])
def test_nothing_to_pause_without_approval(tmp_path, change):
    with pytest.raises(ConsiliumError, match="E301"):
        change(hospital(tmp_path), "tiny")


@pytest.mark.parametrize("name", ["tiny.json", "tiny.consent.json"])
def test_a_damaged_record_is_no_consent(tmp_path, name):
    home = hospital(tmp_path)
    approve_by_scripts(home, PROTOCOL)
    (home.root / "studies" / name).write_text("{")
    assert refused(home) == "E301"


@pytest.mark.parametrize("fault", ["by", "state", "first", "middle", "study"])
def test_a_record_that_somebody_edited_is_no_consent(tmp_path, fault):
    home = hospital(tmp_path)
    for by in PEOPLE[:2]:
        say_yes(home, by)
    withdraw(home, "tiny")
    path = home.root / "studies" / "tiny.consent.json"
    record = json.loads(path.read_text())
    decisions = record["decisions"]
    if fault == "by":
        decisions[0]["by"] = "C. Meier"
    elif fault == "state":
        decisions[2]["state"] = "approved"
    elif fault in ("first", "middle"):
        del decisions[0 if fault == "first" else 1]
    path.write_text(json.dumps(record))
    study = "tiny"
    if fault == "study":  # the same record under another study's name
        study = "other"
        path.rename(path.with_name("other.consent.json"))
    with pytest.raises(ConsiliumError, match="E301"):
        check_consent(home, load_site(home), study, PROTOCOL.hash)


def test_exact_updates_need_the_hospitals_policy(tmp_path):
    home = enrolled_site(tmp_path, policy=POLICY | {"exact_updates": False})
    with pytest.raises(ConsiliumError, match="E304"):
        approve_by_scripts(home, PROTOCOL)
    private = {"mode": "patient", "epsilon": 3, "delta": 1e-4, "max_grad_norm": 1}
    approve_by_scripts(home, tiny_study(privacy=private))


def test_noise_added_by_the_coordinator_needs_the_same_policy_and_says_who_adds_it(tmp_path):
    study = tiny_study(
        privacy={"mode": "site", "epsilon": 3, "delta": 1e-3, "max_update_norm": 1},
        training=STUDY["training"] | {"normalisation": "declared"},
    )
    with pytest.raises(ConsiliumError, match=r"E304.*the coordinator, which adds the noise"):
        approve_by_scripts(enrolled_site(tmp_path / "one", policy=POLICY | {"exact_updates": False}), study)
    approve_by_scripts(enrolled_site(tmp_path / "two"), study)


def test_exact_updates_under_secure_aggregation_alone(tmp_path):
    home = enrolled_site(tmp_path, policy=POLICY | {"exact_updates": "summed"})
    with pytest.raises(ConsiliumError, match="E304"):
        approve_by_scripts(home, PROTOCOL)
    approve_by_scripts(home, tiny_study(strategy={"aggregation": {"method": "secure"}}))


def test_starting_everything_again_ends_no_pause_and_no_withdrawal(tmp_path):
    home = enrolled_site(tmp_path)
    assert approve_unless_declined(home, PROTOCOL) and approve_unless_declined(home, PROTOCOL)
    decisions = load_consent(home, "tiny").decisions
    assert [(d.by, d.script) for d in decisions] == [(by, True) for by in SCRIPTS]
    for decision, number in ((pause, "E302"), (withdraw, "E303")):
        decision(home, "tiny")
        assert not approve_unless_declined(home, PROTOCOL)
        assert refused(home) == number
