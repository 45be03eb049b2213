"""A hospital's answer to an evaluation plan: the model beside its baselines, on its own holdout."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import save_file
from sklearn.metrics import roc_auc_score

from contracts.evaluation import EvaluationReport, SealedReport
from contracts.plan import RoundPlan
from contracts.refusal import Refusal
from contracts.schedule import last_before_folds
from contracts.signing import SigningKey, open_signed, parse_signed, to_text
from models.registry import initial_state, load_model
from release.export import export_onnx
from site_runtime.cohort import load_cohort
from site_runtime.config import load_site
from site_runtime.evaluator import diagnostics
from site_runtime.local import local_path
from site_runtime.steps import SiteRefused, evaluate
from tasks.exchange import DirectoryExchange
from tasks.federation import coordinator_key
from tasks.sealed import seal_key
from tests.factories import opened_plan, tiny_rows, tiny_simulation, tiny_study

pytestmark = pytest.mark.filterwarnings("ignore")

SCORE = {
    "name": "Age and lactate",
    "source": "Nobody",
    "intercept": -3.0,
    "terms": [{"feature": "age", "coefficient": 0.03}, {"feature": "lactate", "coefficient": 0.2}],
}
PLANNED = {
    "net_benefit": {"low": 0.1, "high": 0.6},
    "reference": SCORE,
    "local_model": True,
    "leave_one_site_out": 3,
}


def study(**changes):
    return tiny_study(**({"validation": PLANNED, "decision_threshold": 0.4} | changes))


def state(protocol, seed):
    """A model that somebody trained: the first state with other weights."""
    draw = np.random.default_rng(seed)
    return {
        name: draw.normal(0, 0.6, array.shape).astype(np.float32) if name.startswith("network.") else array
        for name, array in initial_state(protocol).items()
    }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A federation after intake whose exchange holds a final model, a fold and two earlier releases."""
    root = tmp_path_factory.mktemp("evaluator")
    simulation = tiny_simulation(root, study(), rows=tiny_rows(700))
    protocol, files = simulation.protocol, root / "files"
    files.mkdir()
    store, found = DirectoryExchange(simulation.coordinator.exchange), {}
    for seed, name in enumerate(["model", "other", "fold"]):
        save_file(state(protocol, seed), files / f"{name}.safetensors")
        found[name] = store.put(files / f"{name}.safetensors")
    for name, width in (("previous", 3), ("narrow", 2)):
        write_release(files / f"{name}.onnx", width)
        found[name] = store.put(files / f"{name}.onnx")
    (files / "junk.onnx").write_bytes(b"no model")
    found["junk"] = store.put(files / "junk.onnx")
    return simulation, opened_plan(simulation), found


def write_release(path, width):
    """An earlier release in the form of `release.export`: its risk is sigmoid((age - 60) / 10)."""
    number = TensorProto.FLOAT
    nodes = [
        helper.make_node("Gather", ["features", "first"], ["age"], axis=1),
        helper.make_node("Sub", ["age", "sixty"], ["above"]),
        helper.make_node("Div", ["above", "ten"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["probability"]),
        helper.make_node("IsNaN", ["age"], ["out_of_range"]),
    ]
    constants = [
        helper.make_tensor("first", TensorProto.INT64, [], [0]),
        helper.make_tensor("sixty", number, [], [60.0]),
        helper.make_tensor("ten", number, [], [10.0]),
    ]
    outputs = [
        helper.make_tensor_value_info("probability", number, ["batch"]),
        helper.make_tensor_value_info("out_of_range", TensorProto.BOOL, ["batch"]),
    ]
    inputs = [helper.make_tensor_value_info("features", number, ["batch", width])]
    graph = helper.make_graph(nodes, "release", inputs, outputs, constants)
    opset = [helper.make_opsetid("", 18)]
    path.write_bytes(helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString())


@pytest.fixture
def federation(prepared, tmp_path):
    simulation, plan, found = prepared
    root = tmp_path / "copy"
    shutil.copytree(simulation.root, root, symlinks=True)
    return type(simulation)(root, simulation.protocol), plan, found


def asked(federation, **changes):
    """The plan of an evaluation, signed by the coordinator."""
    simulation, plan, found = federation
    fields = {
        "kind": "evaluation",
        "round": last_before_folds(simulation.protocol),
        "base_model": found["model"],
        "seal_key": seal_key(simulation.coordinator).public,
    }
    document = RoundPlan.model_validate(parse_signed(plan).document).model_copy(update=fields | changes)
    return to_text(coordinator_key(simulation.coordinator).sign(document))


def answered(federation, site="ash", **changes):
    """The report of a site, opened as the coordinator opens it."""
    simulation, plan = federation[0], asked(federation, **changes)
    home = simulation.sites[site]
    public = SigningKey.load(site, home.signing_key).public
    text = evaluate(home, plan, DirectoryExchange(simulation.coordinator.exchange))
    sealed = open_signed(text, SealedReport, site, public)
    inside = seal_key(simulation.coordinator).open(sealed.sealed, sealed.plan)
    return open_signed(inside, EvaluationReport, site, public)


def refused(federation, site="ash", **changes):
    with pytest.raises(SiteRefused) as caught:
        answered(federation, site, **changes)
    key = SigningKey.load(site, federation[0].sites[site].signing_key)
    return open_signed(caught.value.document, Refusal, site, key.public).number


def keep_local(federation, site="ash"):
    simulation = federation[0]
    folder = simulation.sites[site].state("tiny") / "local"
    folder.mkdir(parents=True)
    save_file(state(simulation.protocol, 3), folder / f"{simulation.protocol.hash}.safetensors")


def test_the_model_is_compared_with_everything_that_was_planned(federation):
    found = federation[2]
    keep_local(federation)
    report = answered(
        federation,
        baselines={"previous": found["previous"]},
        folds={"ash": found["fold"], "birch": found["other"]},
    )
    assert not report.suppressed and report.decision_curve and report.calibration
    of = {c.baseline: c for c in report.comparisons}
    assert set(of) == {"reference", "local", "left_out", "previous"}
    for comparison in of.values():
        difference = comparison.differences["auroc"]
        expected = report.metrics["auroc"].value - comparison.metrics["auroc"].value
        assert difference.value == pytest.approx(expected, abs=2e-4)
        assert difference.lower < difference.value < difference.upper
        assert {"auprc", "brier", "observed_expected"} <= set(comparison.metrics)
    assert {"sensitivity", "alert_rate", "net_benefit"} <= set(of["previous"].metrics)


def test_a_release_is_scored_by_its_own_probabilities(federation):
    simulation, _, found = federation
    home = simulation.sites["ash"]
    cohort = load_cohort(home, load_site(home), simulation.protocol, "holdout")
    age, died = cohort.x[:, 0, 0], cohort.y[:, 0]
    (previous,) = answered(federation, baselines={"previous": found["previous"]}).comparisons[1:]
    assert previous.baseline == "previous"
    assert previous.metrics["auroc"].value == pytest.approx(roc_auc_score(died, age), abs=1e-4)
    alerts = 1 / (1 + np.exp(-(age - 60) / 10)) >= 0.4
    assert previous.metrics["alert_rate"].value == pytest.approx(alerts.mean(), abs=1e-4)


@pytest.mark.parametrize("name", ["narrow", "junk"])
def test_a_release_that_does_not_fit_is_left_out_and_the_hospitals_log_says_so(federation, name):
    report = answered(federation, baselines={"previous": federation[2][name]})
    assert [c.baseline for c in report.comparisons] == ["reference"]
    log = federation[0].sites["ash"].log.read_text()
    assert "no comparison with previous" in log and "no comparison with local" in log


def test_one_set_of_baselines_is_answered_for_and_no_other(federation):
    """A coordinator cannot send one crafted "previous" model after another."""
    found = federation[2]
    first = {"baselines": {"previous": found["previous"]}, "folds": {"ash": found["fold"]}}
    answered(federation, **first)
    assert refused(federation, **first | {"baselines": {"previous": found["narrow"]}}, attempt=2) == "E605"
    assert refused(federation, **first | {"baselines": {}}, attempt=2) == "E605"
    assert refused(federation, **first | {"folds": {"ash": found["other"]}}, attempt=2) == "E605"
    again = first | {"folds": {"ash": found["fold"], "birch": found["other"]}}
    assert answered(federation, **again, attempt=2).comparisons  # another hospital's fold is none of ours


def verified(federation, artefact):
    simulation = federation[0]
    plan = asked(federation, kind="verification", artefact=artefact, seal_key=None)
    text = evaluate(simulation.sites["ash"], plan, DirectoryExchange(simulation.coordinator.exchange))
    return EvaluationReport.model_validate(parse_signed(text).document)


def test_one_local_model_is_compared_and_no_other(federation):
    """Without privacy a coordinator could have one local model after another trained from crafted states."""
    keep_local(federation)
    answered(federation)
    assert answered(federation, attempt=2).comparisons
    simulation = federation[0]
    path = local_path(simulation.sites["ash"], simulation.protocol)
    save_file(state(simulation.protocol, 4), path)
    assert refused(federation, attempt=3) == "E605"


def test_a_verification_says_whether_the_export_agrees_and_nothing_else(federation):
    """It is not sealed: with metrics it would show the performance before the diagnostics are looked at."""
    simulation, _, found = federation
    right = simulation.root / "model.onnx"
    path = simulation.root / "model.safetensors"
    save_file(state(simulation.protocol, 0), path)
    export_onnx(load_model(simulation.protocol, path), simulation.protocol, right, {})
    artefact = DirectoryExchange(simulation.coordinator.exchange).put(right)
    report = verified(federation, artefact)
    assert report.parity is not None and report.parity.decisions_flipped == 0
    assert report.suppressed and report.n is None and not report.metrics and not report.subgroups
    assert refused(federation, kind="verification", artefact=found["previous"], seal_key=None) == "E605"


def test_an_export_that_is_another_model_is_told_by_one_bit(federation):
    report = verified(federation, federation[2]["previous"])
    assert report.parity is not None and report.parity.decisions_flipped == 1
    assert report.suppressed and report.n is None and not report.metrics


def test_a_hospital_with_few_events_compares_nothing_and_fetches_no_baseline(tmp_path):
    rows = [row | {"died": int(int(row["patient"][1:]) % 25 == 1)} for row in tiny_rows(200)]
    simulation = tiny_simulation(tmp_path, study(), rows=rows)
    path = tmp_path / "model.safetensors"
    save_file(state(simulation.protocol, 0), path)
    found = {"model": DirectoryExchange(simulation.coordinator.exchange).put(path)}
    federation = (simulation, opened_plan(simulation), found)
    report = answered(federation, folds={"ash": "f" * 64}, baselines={"first": "e" * 64})
    assert report.suppressed and not report.comparisons and not report.decision_curve
    assert set(report.metrics) <= {"accuracy"}


def labelled(events, n, missing=0):
    x = np.column_stack([np.full(n, 50.0), np.ones(n), np.zeros(n)]).astype(np.float32)
    x[:missing, 1] = np.nan
    return x, (np.arange(n) < events).astype(np.float32)


def test_diagnostics_say_what_was_declared_beforehand():
    declared = tiny_study(
        label={"name": "died", "positive": "died", "prevalence": [0.2, 0.5]},
        validation={"diagnostics": {"minimum_events": 12}},
    )
    found = diagnostics(*labelled(30, 100, missing=50), declared, 3)
    assert found.enough_events and found.prevalence and found.missingness
    assert not diagnostics(*labelled(11, 100), declared, 3).enough_events
    assert not diagnostics(*labelled(89, 100), declared, 3).enough_events
    assert not diagnostics(*labelled(15, 100), declared, 3).prevalence
    assert not diagnostics(*labelled(60, 100), declared, 3).prevalence
    assert not diagnostics(*labelled(30, 100, missing=51), declared, 3).missingness


def test_a_protocol_cannot_ask_whether_there_is_a_single_event():
    """All numbers of events under the minimum cell give the same three bits."""
    curious = tiny_study(
        label={"name": "died", "positive": "died", "prevalence": [0.015, 1.0]},
        validation={"diagnostics": {"minimum_events": 1}},
    )
    bits = {json.dumps(diagnostics(*labelled(events, 100), curious, 10).model_dump()) for events in range(10)}
    assert len(bits) == 1
