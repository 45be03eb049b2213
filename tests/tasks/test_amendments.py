"""An amendment is checked when it is registered: against the study that it names and the release in use."""

from __future__ import annotations

import json

import pytest

from contracts.canonical import canonical_json
from contracts.errors import ConsiliumError
from contracts.release import ReleaseManifest
from tasks.amendments import check_amendment
from tasks.baselines import baselines_of
from tasks.events import record_event
from tasks.exchange import DirectoryExchange
from tasks.head import load_head, register_study, registered_studies
from tasks.home import CoordinatorHome
from tasks.versions import earlier_looks, earlier_releases, previous_release
from tests.factories import tiny_study
from tests.instances import one_of_each

GATE = {"metric": "auroc", "at_least": 0.7}
FIRST = tiny_study(gates=[GATE])


def amendment(name="tiny-2", amends=FIRST, **changes):
    return tiny_study(**{"study": name, "product": "tiny", "amends": amends.hash, "gates": [GATE], **changes})


def publish(home: CoordinatorHome, protocol, version: str) -> None:
    """A release as far as versions are decided on it: its manifest, protocol and model."""
    manifest = next(d for d in one_of_each() if isinstance(d, ReleaseManifest))
    folder = home.releases / protocol.product_name / version
    folder.mkdir(parents=True)
    fields = {"study": protocol.study, "version": version, "protocol_hash": protocol.hash}
    (folder / "manifest.json").write_bytes(canonical_json(manifest.model_copy(update=fields)))
    (folder / "study.json").write_bytes(canonical_json(protocol))
    (folder / "model.onnx").write_bytes(f"model of {version}".encode())


@pytest.fixture
def home(tmp_path):
    home = CoordinatorHome(tmp_path)
    register_study(home, FIRST)
    return home


def test_an_amendment_of_a_registered_study_is_registered(home):
    head = register_study(home, amendment(training={**FIRST.body()["training"], "steps": 9}))
    assert register_study(home, amendment(training={**FIRST.body()["training"], "steps": 9})) == head
    assert registered_studies(home) == ["tiny", "tiny-2"]


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        (amendment(amends=tiny_study(rounds=9)), "no study registered here"),
        (amendment(product="other"), "product 'other'"),
        (tiny_study(study="tiny-2", amends=FIRST.hash, gates=[GATE]), "product 'tiny-2'"),
        (amendment(gates=[]), "gate dropped"),
        (amendment(gates=[{**GATE, "at_least": 0.6}]), "gate loosened"),
        (amendment(sign_off={"roles": ["statistician"]}), "lacks 'clinician'"),
    ],
)
def test_a_refused_amendment_leaves_nothing_behind(home, refused, said):
    with pytest.raises(ConsiliumError, match=f"E111.*{said}"):
        register_study(home, refused)
    assert not home.study("tiny-2").exists()


def test_what_is_registered_is_never_changed_even_by_an_amendment_of_itself(home):
    with pytest.raises(ConsiliumError, match="E101"):
        register_study(home, amendment(name="tiny"))
    assert load_head(home, "tiny").protocol_hash == FIRST.hash


def test_gates_of_a_product_do_not_loosen_by_amending_an_older_study(home):
    stricter = amendment(gates=[{**GATE, "at_least": 0.8}])
    register_study(home, stricter)
    publish(home, FIRST, "1.0.0")
    publish(home, stricter, "1.0.1")
    with pytest.raises(ConsiliumError, match=r"E111.*tiny-2: gate loosened"):
        register_study(home, amendment("tiny-3"))
    register_study(home, amendment("tiny-3", gates=[{**GATE, "at_least": 0.8}]))


def test_an_older_study_does_not_follow_a_stricter_release_of_its_product(home):
    stricter = amendment(gates=[{**GATE, "at_least": 0.8}])
    register_study(home, stricter)
    publish(home, stricter, "1.0.0")
    with pytest.raises(ConsiliumError, match=r"E111.*tiny-2: gate loosened"):
        check_amendment(home, FIRST)


def test_a_major_change_is_refused_before_patients_pay_for_it(home):
    publish(home, FIRST, "1.0.0")
    with pytest.raises(ConsiliumError, match=r"E710.*intended_use changed since 1\.0\.0"):
        register_study(home, amendment(intended_use="Something else."))
    # Before there is a release, there is nothing that it could be a change of.
    assert previous_release(CoordinatorHome(home.root / "new"), FIRST) is None


def test_a_change_control_plan_does_not_grow_by_the_release_that_it_would_govern(home):
    def plan(*kinds, by="FDA"):
        change = {"id": "M1", "title": "T", "changes": list(kinds), "description": "D"}
        return {"dossier": {"change_control": {"modifications": [change], "authorised_by": by}}}

    publish(home, FIRST, "1.0.0")
    with pytest.raises(ConsiliumError, match=r"E111.*change_control would allow intended_use"):
        register_study(home, amendment(**plan("weights", "intended_use")))
    register_study(home, amendment(**plan("weights", "data")))
    first = tiny_study(study="other", gates=[GATE], **plan("threshold", by=None))
    register_study(home, first)
    publish(home, first, "1.0.0")
    authorised = {"product": "other", **plan("threshold")}
    register_study(home, amendment("other-2", first, **authorised))  # authorised later: no growth


def test_baselines_are_the_previous_and_the_first_release_of_the_product(home):
    studies = [FIRST, amendment("tiny-2"), amendment("tiny-3")]
    assert baselines_of(home, FIRST) == {} and earlier_releases(home, FIRST) == 0
    for study, version in zip(studies, ("1.0.0", "1.0.9", "1.0.10"), strict=True):
        publish(home, study, version)
    publish(home, tiny_study(study="other"), "7.0.0")
    fourth = amendment("tiny-4")
    found = baselines_of(home, fourth)
    exchange = DirectoryExchange(home.exchange)
    read = {name: exchange.path_of(digest).read_text() for name, digest in found.items()}
    assert read == {"previous": "model of 1.0.10", "first": "model of 1.0.0"}
    assert earlier_releases(home, fourth) == 3
    # A study that is published already does not count itself: a repeated step finds what it found before.
    assert earlier_releases(home, studies[2]) == 2
    assert previous_release(home, studies[2]).manifest.version == "1.0.9"


def test_every_look_at_the_holdouts_uses_the_error_budget_released_or_not(home):
    publish(home, FIRST, "1.0.0")
    for name in ("tiny-2", "tiny-3", "tiny-4"):
        register_study(home, amendment(name))
    third = amendment("tiny-4")
    assert earlier_looks(home, third) == 1  # the release
    for name in ("tiny-2", "tiny-3", "tiny-4"):
        record_event(home, name, "unsealed", "0" * 64)  # rejected afterwards, or not yet released
    assert earlier_looks(home, third) == 3 and earlier_releases(home, third) == 1


def test_an_evaluation_plan_names_the_baselines_and_a_training_plan_does_not(tmp_path):
    from tasks.head import advance
    from tasks.roster import eligible_sites, make_plan
    from tests.factories import ZERO, TinyFederation

    federation = TinyFederation(tmp_path, FIRST)
    second = amendment()
    publish(federation.home, FIRST, "1.0.0")
    head = register_study(federation.home, second)
    head = advance(federation.home, head, model=ZERO)
    eligible, _ = eligible_sites(federation.home, FIRST, set(federation.keys))
    plans = {
        kind: make_plan(federation.home, second, head, kind, eligible) for kind in ("training", "evaluation")
    }
    assert plans["training"].baselines == {}
    assert set(plans["evaluation"].baselines) == {"previous", "first"}
    assert json.loads(canonical_json(plans["evaluation"]))["baselines"]
