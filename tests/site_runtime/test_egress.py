"""Only agreed documents leave, under the hospital's own policy, each of them on record."""

import json

import pytest

from contracts.errors import SENTENCES, ConsiliumError
from contracts.evaluation import EvaluationReport
from contracts.plan import RosterEntry
from contracts.refusal import Refusal
from contracts.signing import open_signed
from contracts.update import UpdateEnvelope
from site_runtime.config import load_site
from site_runtime.egress import egress_records, refuse, send
from site_runtime.enrol import site_card
from tests.factories import ZERO, enrolled_site

AUROC = {"auroc": {"value": 0.8}}
ACCURACY = {"accuracy": {"value": 0.8}}


def report(**changes) -> EvaluationReport:
    fields = {
        "study": "tiny",
        "protocol_hash": ZERO,
        "plan": ZERO,
        "kind": "evaluation",
        "created": "2026-01-01T00:00:00Z",
        "site": "ash",
        "model": ZERO,
        "cohort": ZERO,
        "n": 100,
        "events": 20,
        "metrics": AUROC,
        "suppressed": False,
    }
    return EvaluationReport.model_validate(fields | changes)


def update(policy: str, **changes) -> UpdateEnvelope:
    fields = {
        "study": "tiny",
        "protocol_hash": ZERO,
        "plan": ZERO,
        "round": 1,
        "site": "ash",
        "base_model": ZERO,
        "tensors": ZERO,
        "tensor_bytes": 10,
        "planned_steps": 3,
        "data_sheet": ZERO,
        "cohort": ZERO,
        "policy": policy,
        "code_version": "0",
    }
    return UpdateEnvelope.model_validate(fields | changes)


def test_what_leaves_is_signed_and_on_record_word_for_word(tmp_path):
    home = enrolled_site(tmp_path)
    text = send(home, load_site(home), report())
    assert open_signed(text, EvaluationReport, "ash", site_card(home).sign_key) == report()
    (record,) = egress_records(home)
    signed = json.loads(text)
    assert record["document"] == signed["document"] and record["signature"] == signed["signature"]
    assert record["bytes"] == len(text)
    assert home.egress_log.stat().st_mode & 0o077 == 0


def test_a_suppressed_report_survives_the_way_through_canonical_json(tmp_path):
    home = enrolled_site(tmp_path)
    suppressed = report(n=None, events=None, metrics={}, suppressed=True)
    text = send(home, load_site(home), suppressed)
    assert open_signed(text, EvaluationReport, "ash", site_card(home).sign_key) == suppressed


@pytest.mark.parametrize(
    "changes",
    [
        {"n": 2, "events": None, "metrics": ACCURACY},
        {"events": 2},
        {"n": 100, "events": 98},
        {"n": None, "events": 20},
        {"events": None},
        {"site": "oak"},
        {"calibration": [{"mean_predicted": 0.1, "observed": 0.1, "n": 2}]},
        {"subgroups": [{"subgroup": "sex", "group": "1", "suppressed": False, "n": 30, "events": 2}]},
        {"subgroups": [{"subgroup": "sex", "group": "1", "suppressed": True, "metrics": ACCURACY}]},
    ],
)
def test_small_cells_and_foreign_names_stay(tmp_path, changes):
    home = enrolled_site(tmp_path)  # minimum cell 3
    with pytest.raises(ConsiliumError, match="E304"):
        send(home, load_site(home), report(**changes))
    assert egress_records(home) == []


def test_the_smallest_cell_that_may_leave_leaves(tmp_path):
    home = enrolled_site(tmp_path)
    send(home, load_site(home), report(n=6, events=3))


def test_a_document_that_was_made_past_its_validation_stays(tmp_path):
    home = enrolled_site(tmp_path)
    forged = report().model_copy(update={"n": "100 patients, Mrs Smith among them"})
    with pytest.raises(ConsiliumError, match="E304"):
        send(home, load_site(home), forged)
    smuggled = report().model_copy(update={"note": "Mrs Smith"})
    assert "Smith" not in send(home, load_site(home), smuggled)
    with pytest.raises(ConsiliumError, match="E304"):
        send(home, load_site(home), RosterEntry(site="ash", data_sheet=ZERO, declared_size=1))


def test_an_update_without_noise_needs_the_hospitals_policy(tmp_path):
    for name, exact in (("open", True), ("closed", False)):
        home = enrolled_site(tmp_path / name, policy={"exact_updates": exact})
        config = load_site(home)
        send(home, config, update(config.policy_digest, noise_multiplier=1.0))
        if exact:
            send(home, config, update(config.policy_digest))
        else:
            with pytest.raises(ConsiliumError, match="E304"):
                send(home, config, update(config.policy_digest))


def test_a_refusal_carries_its_sentence_and_nothing_else(tmp_path):
    home = enrolled_site(tmp_path)
    key = site_card(home).sign_key
    error = ConsiliumError("E205", "17 patients, Mrs Smith among them")
    text = refuse(home, "ash", error, "tiny", "intake")
    assert open_signed(text, Refusal, "ash", key).sentence == SENTENCES["E205"][1]
    assert "Smith" not in text and "17" not in json.dumps(json.loads(text)["document"])
    assert "Mrs Smith" in home.log.read_text()
    assert "Smith" not in home.egress_log.read_text()


def test_any_other_error_is_internal_outside_and_traced_inside(tmp_path):
    home = enrolled_site(tmp_path)
    home.config.write_text("not: [valid")
    try:
        raise ValueError("row 7: Mrs Smith")
    except ValueError as error:
        text = refuse(home, "ash", error, "tiny", "train", ZERO)
    document = json.loads(text)["document"]
    assert document["number"] == "E899" and document["plan"] == ZERO
    assert "Smith" not in text
    assert "row 7: Mrs Smith" in home.log.read_text() and "Traceback" in home.log.read_text()


def test_zero_patients_and_one_too_few_are_told_alike(tmp_path):
    home = enrolled_site(tmp_path)
    texts = [
        json.loads(refuse(home, "ash", ConsiliumError("E205", f"{n} patients"), "tiny", "intake"))["document"]
        for n in (0, 9)
    ]
    assert texts[0] == texts[1]
