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
from tests.factories import POLICY, ZERO, enrolled_site
from validation.disclosure import Table, covering, rounded, table_metrics
from validation.proportion import wilson

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


def table(true_alerts, events, false_alerts, others):
    """The metrics of decisions that leave when every count may be known."""
    known = Table(events, others, (true_alerts, true_alerts), (false_alerts, false_alerts))
    return plain(table_metrics(known, 0.5))


def plain(metrics):
    return {name: estimate.model_dump() for name, estimate in rounded(metrics).items()}


# 20 events and 80 others. Above .5 lie 12 events and 20 others: the bins and the curve are made of that cut.
DECIDED = table(12, 20, 20, 80)
BINS = [
    {"mean_predicted": 0.2, "observed": round(8 / 68, 4), "n": 68},
    {"mean_predicted": 0.7, "observed": 0.375, "n": 32},
]
CURVE = [{"threshold": 0.5, "model": -0.08, "treat_all": -0.6}]
MISSED = plain(table_metrics(Table(20, 80, (18, 20), (20, 20)), 0.5))  # 0 to 2 of 20 missed, cell 3
SEX = {"subgroup": "sex", "suppressed": False}
GROUPS = [
    SEX | {"group": "0", "n": 45, "events": 10, "metrics": table(6, 10, 9, 35)},
    SEX | {"group": "1", "n": 55, "events": 10, "metrics": table(6, 10, 11, 45)},
]
BASELINE = {"baseline": "reference", "metrics": AUROC | table(10, 20, 30, 80)}


def accuracy(least, most):
    """An accuracy that tells a range of right decisions among 100."""
    low, high = wilson(least, 100), wilson(most, 100)
    return plain({"accuracy": covering(low.value, low.lower, high.upper)})


def full(**changes):
    """A report that says all that it may, with some of its fields changed."""
    fields = {
        "metrics": AUROC | DECIDED,
        "calibration": BINS,
        "decision_curve": CURVE,
        "subgroups": GROUPS,
        "comparisons": [BASELINE],
    }
    return fields | changes


def of_group(number, **changes):
    return [{**group, **(changes if i == number else {})} for i, group in enumerate(GROUPS)]


def without(metrics, *names):
    return {name: estimate for name, estimate in metrics.items() if name not in names}


UNCOUNTED = {"subgroup": "sex", "group": "1", "suppressed": False, "metrics": AUROC}
BENEFIT = DECIDED["net_benefit"]["value"] - BASELINE["metrics"]["net_benefit"]["value"]


@pytest.mark.parametrize(
    "changes",
    [
        full(),
        full(metrics=AUROC | MISSED, subgroups=[]),
        full(calibration=[], decision_curve=[]),
        full(comparisons=[BASELINE | {"differences": {"net_benefit": {"value": round(BENEFIT, 4)}}}]),
        full(subgroups=[{**GROUPS[0], "metrics": AUROC}, UNCOUNTED]),
        {
            "events": None,
            "metrics": accuracy(80, 82),
            "suppressed": True,
        },
    ],
)
def test_what_the_rules_allow_leaves(tmp_path, changes):
    home = enrolled_site(tmp_path)  # minimum cell 3
    send(home, load_site(home), report(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"n": 2, "events": None, "metrics": ACCURACY},
        {"events": 2},
        {"events": 5},  # below twice the cell
        {"n": 100, "events": 98},
        {"n": None, "events": 20},
        {"n": None, "events": None, "metrics": ACCURACY},
        {"events": None},
        {"site": "oak"},
        {"metrics": {"auroc": {"value": 0.81234567}}},  # a fraction whose numbers can be found
        # A suppressed hospital: an accuracy that tells the count, and anything beside it.
        {"events": None, "metrics": plain({"accuracy": wilson(97, 100)})},
        {"events": None, "metrics": accuracy(80, 81)},
        {"events": None, "metrics": {}, "comparisons": [BASELINE]},
        {"events": None, "metrics": {}, "decision_curve": CURVE},
        # Decisions.
        full(metrics=table(18, 20, 20, 80), calibration=[], decision_curve=[]),  # 2 missed
        full(metrics=table(20, 20, 20, 80), calibration=[], decision_curve=[]),  # none missed
        full(metrics=table(12, 20, 78, 80), calibration=[], decision_curve=[]),  # 2 spared an alert
        full(metrics=without(DECIDED, "sensitivity")),  # follows from ppv and the totals
        full(metrics={"alert_rate": DECIDED["alert_rate"]}),
        full(metrics=MISSED | {"ppv": table(19, 20, 20, 80)["ppv"]}, subgroups=[]),  # 1 missed
        full(metrics=MISSED | {"alert_rate": table(19, 20, 20, 80)["alert_rate"]}, subgroups=[]),
        full(metrics=DECIDED | {"sensitivity": {"value": 0.6123}}),
        # Bins, the curve and the decisions, subtracted from one another.
        {"calibration": [{"mean_predicted": 0.1, "observed": 0.1, "n": 2}]},
        {"calibration": [{"mean_predicted": 0.1, "observed": 0.02, "n": 100}]},
        full(calibration=BINS[:1]),
        full(calibration=[{**BINS[0], "mean_predicted": 0.123456789}, BINS[1]]),
        full(metrics=table(13, 20, 20, 80)),  # one event between the threshold and the edge of a bin
        full(decision_curve=[{**CURVE[0], "model": -0.07}]),
        full(decision_curve=[{**CURVE[0], "treat_all": -0.61}]),
        full(calibration=[]),
        # Subgroups.
        {"subgroups": [{"subgroup": "sex", "group": "1", "suppressed": False, "n": 30, "events": 2}]},
        {"subgroups": [{"subgroup": "sex", "group": "1", "suppressed": True, "metrics": ACCURACY}]},
        {"subgroups": [{"subgroup": "sex", "group": "1", "suppressed": False, "n": 98, "events": 19}]},
        full(subgroups=of_group(0, metrics=AUROC)),  # the other's decisions follow from the hospital's
        full(subgroups=of_group(0, metrics=table(8, 10, 9, 35))),  # 2 missed
        full(subgroups=of_group(0, metrics=table(7, 10, 9, 35))),  # the two leave -1 over
        full(subgroups=of_group(0, metrics=plain(table_metrics(Table(10, 35, (8, 10), (9, 9)), 0.5)))),
        full(metrics=AUROC | MISSED),  # of groups although the hospital's own are a range
        full(subgroups=[UNCOUNTED | {"metrics": DECIDED}]),
        full(subgroups=[UNCOUNTED | {"metrics": {"observed_expected": {"value": 1.1}}}]),
        full(subgroups=[UNCOUNTED | {"metrics": {"auroc": {"value": 1.0, "lower": 0.757}}}]),
        full(subgroups=[UNCOUNTED | {"metrics": {"auroc": {"value": 0.8123}}}]),
        full(subgroups=[UNCOUNTED | {"events": 10}]),
        # Baselines on the same patients.
        full(comparisons=[BASELINE | {"metrics": table(18, 20, 20, 80)}]),
        full(comparisons=[BASELINE | {"metrics": without(DECIDED, "specificity")}]),
        full(comparisons=[BASELINE | {"differences": {"net_benefit": {"value": round(BENEFIT + 0.01, 4)}}}]),
        full(
            comparisons=[
                BASELINE
                | {"differences": {"net_benefit": {"value": round(BENEFIT, 4), "standard_error": 0.02}}}
            ]
        ),
        full(comparisons=[{"baseline": "local", "differences": {"net_benefit": {"value": 0.1}}}]),
        full(comparisons=[{"baseline": "local", "differences": {"auroc": {"value": 0.0123456}}}]),
    ],
)
def test_small_cells_and_foreign_names_stay(tmp_path, changes):
    home = enrolled_site(tmp_path)  # minimum cell 3
    with pytest.raises(ConsiliumError, match="E304"):
        send(home, load_site(home), report(**changes))
    assert egress_records(home) == []


def test_the_smallest_cell_that_may_leave_leaves(tmp_path):
    home = enrolled_site(tmp_path)
    send(home, load_site(home), report(n=12, events=6))


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
        home = enrolled_site(tmp_path / name, policy=POLICY | {"exact_updates": exact})
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
