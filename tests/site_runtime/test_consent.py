"""A hospital takes part in exactly what it approved, for as long as it wants to."""

import pytest

from contracts.errors import ConsiliumError
from site_runtime.consent import (
    approve,
    approve_unless_declined,
    check_consent,
    load_approved,
    load_consent,
    pause,
    resume,
    withdraw,
)
from tests.factories import SITE, STUDY, enrolled_site, tiny_study

PROTOCOL = tiny_study()


def refused(home, protocol=PROTOCOL) -> str:
    with pytest.raises(ConsiliumError) as error:
        check_consent(home, protocol.study, protocol.hash)
    return error.value.number


def test_the_life_of_a_consent(tmp_path):
    home = enrolled_site(tmp_path)
    assert refused(home) == "E301"
    approve(home, PROTOCOL)
    check_consent(home, "tiny", PROTOCOL.hash)
    pause(home, "tiny")
    assert refused(home) == "E302"
    resume(home, "tiny")
    check_consent(home, "tiny", PROTOCOL.hash)
    withdraw(home, "tiny")
    assert refused(home) == "E303"
    with pytest.raises(ConsiliumError, match="E303"):
        resume(home, "tiny")
    with pytest.raises(ConsiliumError, match="E303"):
        pause(home, "tiny")
    approve(home, PROTOCOL, by="Dr. Who")
    check_consent(home, "tiny", PROTOCOL.hash)
    states = [(d.state, d.by) for d in load_consent(home, "tiny").decisions]
    assert [s for s, _ in states] == ["approved", "paused", "approved", "withdrawn", "approved"]
    assert states[0][1] == SITE["governance"]["approved_by"] and states[-1][1] == "Dr. Who"


def test_consent_is_for_one_version(tmp_path):
    home = enrolled_site(tmp_path)
    approve(home, PROTOCOL)
    amended = tiny_study(title="Tiny, amended")
    assert refused(home, amended) == "E301"
    approve(home, amended)
    check_consent(home, "tiny", amended.hash)
    assert refused(home) == "E301"
    assert load_approved(home, "tiny").hash == amended.hash


def test_a_pause_outlives_a_new_version_only_until_it_is_approved(tmp_path):
    home = enrolled_site(tmp_path)
    approve(home, PROTOCOL)
    pause(home, "tiny")
    assert refused(home, tiny_study(title="Tiny, amended")) == "E302"


@pytest.mark.parametrize("change", [pause, resume, withdraw])
def test_nothing_to_pause_without_approval(tmp_path, change):
    with pytest.raises(ConsiliumError, match="E301"):
        change(enrolled_site(tmp_path), "tiny")


@pytest.mark.parametrize("name", ["tiny.json", "tiny.consent.json"])
def test_a_damaged_record_is_no_consent(tmp_path, name):
    home = enrolled_site(tmp_path)
    approve(home, PROTOCOL)
    (home.root / "studies" / name).write_text("{")
    assert refused(home) == "E301"


def test_exact_updates_need_the_hospitals_policy(tmp_path):
    home = enrolled_site(tmp_path, policy={"exact_updates": False})
    with pytest.raises(ConsiliumError, match="E304"):
        approve(home, PROTOCOL)
    private = {"mode": "patient", "epsilon": 3, "delta": 1e-4, "max_grad_norm": 1}
    approve(home, tiny_study(privacy=private))


def test_noise_added_by_the_coordinator_needs_the_same_policy_and_says_who_adds_it(tmp_path):
    study = tiny_study(
        privacy={"mode": "site", "epsilon": 3, "delta": 1e-3, "max_update_norm": 1},
        training=STUDY["training"] | {"normalisation": "declared"},
    )
    with pytest.raises(ConsiliumError, match=r"E304.*the coordinator, which adds the noise"):
        approve(enrolled_site(tmp_path / "one", policy={"exact_updates": False}), study)
    approve(enrolled_site(tmp_path / "two"), study)


def test_starting_everything_again_ends_no_pause_and_no_withdrawal(tmp_path):
    home = enrolled_site(tmp_path)
    assert approve_unless_declined(home, PROTOCOL) and approve_unless_declined(home, PROTOCOL)
    for decision, number in ((pause, "E302"), (withdraw, "E303")):
        decision(home, "tiny")
        assert not approve_unless_declined(home, PROTOCOL)
        assert refused(home) == number
