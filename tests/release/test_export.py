"""The exported file computes what was trained, flags what training could not have seen, and names no path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from contracts.errors import ConsiliumError
from models.registry import build_model, initial_state, load_state
from release.export import (
    IR_VERSION,
    OPSET,
    export_onnx,
    model_metadata,
    parity,
    require_parity,
    traces,
)
from release.golden import golden_difference, golden_document, golden_rows
from release.session import predict
from tests.factories import tiny_study
from tests.model_zoo import rows, zoo

NAN, INF = float("nan"), float("inf")


class Tiny(torch.nn.Module):
    """A logit that depends on every feature; missing counts as 1."""

    def forward(self, x):
        return torch.nan_to_num(x, nan=1.0).sum(-1) / 100 - 0.3


def trained(study):
    """The study's model away from zero weights, which any wrong graph would reproduce."""
    model = build_model(study)
    state = initial_state(study)
    draw = np.random.default_rng(0)
    load_state(model, {k: (v + draw.normal(0, 0.3, v.shape)).astype(np.float32) for k, v in state.items()})
    return model.eval()


def metadata(study):
    """What the file says of itself."""
    return model_metadata(study, release_id="tiny@v1.0.0", model="0" * 64, epsilon=1.25, threshold=0.3)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    study, target = tiny_study(), tmp_path_factory.mktemp("export") / "model.onnx"
    export_onnx(Tiny(), study, target, metadata(study))
    return study, target


@pytest.mark.parametrize(
    ("row", "outside"),
    [
        ([50, 5, 1], False),
        ([0, 20, 0], False),  # limits belong to the range
        ([NAN, 5, 1], False),
        ([NAN, NAN, NAN], True),  # nothing known
        ([100.5, 5, 1], True),
        ([50, -0.1, 1], True),
        ([50, 5, 2], True),  # no declared level
        ([50, 5, 0.5], True),
        ([NAN, NAN, 3], True),
        ([INF, 5, 1], True),
        ([50, -INF, 1], True),
        ([50, 3e38, 1], True),
    ],
)
def test_out_of_range_says_what_training_could_not_have_seen(exported, row, outside):
    probability, flags = predict(exported[1], [row, [50, 5, 1]])
    assert flags.tolist() == [outside, False]
    assert np.isfinite(probability).all()


def test_batch_is_dynamic_and_types_are_as_promised(exported):
    for count in (1, 2, 257):
        probability, flags = predict(exported[1], np.tile([50, 5, 1], (count, 1)))
        assert probability.shape == flags.shape == (count,)
        assert probability.dtype == np.float32 and flags.dtype == np.bool_


def test_versions_are_pinned_and_metadata_is_there(exported):
    proto = onnx.load(exported[1])
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", OPSET)]
    assert proto.ir_version == IR_VERSION
    facts = {p.key: p.value for p in proto.metadata_props}
    assert facts == metadata(exported[0])
    assert facts["release_id"] == "tiny@v1.0.0" and facts["epsilon"] == "1.2500"
    assert facts["protocol_hash"] == exported[0].hash and facts["intended_use"] == "Tests."
    assert facts["input.age"] == "years; numeric; 0 to 100"
    assert facts["input.lactate"] == "mmol/L; numeric; 0 to 20"
    assert facts["input.sex"] == "code; categorical; levels 0, 1"


def test_no_trace_of_the_source_is_left(exported):
    assert found_traces(exported[1]) == []


@pytest.mark.parametrize("part", ["model", "graph", "node", "input", "weights"])
def test_what_an_exporter_leaves_behind_is_found(exported, part):
    proto = onnx.load(exported[1])
    graph = proto.graph
    if part == "weights":
        graph.initializer[0].external_data.add(key="location", value="weights.bin")
    else:
        parts = {"model": proto, "graph": graph, "node": graph.node[0], "input": graph.input[0]}
        parts[part].doc_string = "somewhere/train.py"
    assert traces(proto)


def found_traces(target):
    """Signs of the exporting machine: what `traces` finds, and texts in the file's bytes."""
    data, here = target.read_bytes(), str(Path(__file__).resolve().parents[2])
    texts = (here, "site-packages", ".py", "pkg.torch", "namespace", os.uname().nodename)
    return [*traces(onnx.load(target)), *(text for text in texts if text.encode() in data)]


REGISTERED = zoo() | {
    "mlp, plain": tiny_study(model={"name": "mlp", "hidden": [8, 4]}),
    "cnn, batch": zoo(
        model={"name": "cnn", "image": [4, 16], "hidden": [4, 6], "norm": "batch"}, privacy={"mode": "none"}
    )["cnn"],
}


@pytest.mark.slow
@pytest.mark.parametrize("study", REGISTERED.values(), ids=REGISTERED)
def test_registered_models_agree_with_onnxruntime_for_any_number_of_rows(tmp_path, study):
    model, target = trained(study), tmp_path / "model.onnx"
    export_onnx(model, study, target, metadata(study))
    for x in (golden_rows(study)[1], *(rows(study, count, seed=count) for count in (1, 2, 7, 257))):
        found = parity(model, target, x, study.decision_threshold)
        require_parity(found)
        assert found.max_abs_difference < 1e-6 and found.decisions_flipped == 0
    assert len(set(predict(target, rows(study, 257, seed=1))[0])) > 20  # it depends on the patient
    assert found_traces(target) == []
    # A row's answer is its own: it does not depend on the rows beside it.
    x = rows(study, 7, seed=7)
    alone = np.concatenate([predict(target, x[i : i + 1])[0] for i in range(7)])
    np.testing.assert_allclose(alone, predict(target, x)[0], atol=1e-6)
    golden = {row["case"]: row for row in golden_document(study, target)["rows"]}
    first = study.features[0].name
    assert all(np.isfinite(row["probability"]) for row in golden.values())
    assert golden["all features missing"]["out_of_range"] and golden[f"{first} out of range"]["out_of_range"]
    for within in (f"{first} missing", "every other feature missing", "lower limits", "upper limits"):
        assert not golden[within]["out_of_range"], within


@pytest.mark.slow
def test_an_export_holds_the_head_of_the_label_alone(tmp_path):
    study = zoo()["multitask"]
    model, target = trained(study), tmp_path / "model.onnx"
    export_onnx(model, study, target, {})
    before = target.read_bytes()
    with torch.no_grad():
        for head in model.network.heads[1:]:
            head.weight.fill_(12345.0)
    export_onnx(model, study, target, {})
    assert target.read_bytes() == before


def test_parity_sees_another_model(exported):
    study, target = exported

    class Other(Tiny):
        def forward(self, x):
            return super().forward(x) + 1e-3

    with pytest.raises(ConsiliumError, match="E603"):
        require_parity(parity(Other(), target, golden_rows(study)[1], study.decision_threshold))
    with pytest.raises(ConsiliumError, match="E603"):
        parity(Tiny(), target, np.zeros((0, 3)), 0.5)


def test_parity_treats_nan_as_a_difference(exported):
    class Broken(Tiny):
        def forward(self, x):
            return super().forward(x) * NAN

    found = parity(Broken(), exported[1], [[50, 5, 1]], 0.5)
    assert found.max_abs_difference == 1.0


def test_golden_rows_repeat_and_catch_a_changed_output(exported, tmp_path):
    study, target = exported
    golden = golden_document(study, target)
    cases = {row["case"]: row for row in golden["rows"]}
    assert cases["all features missing"]["out_of_range"] is True
    assert cases["age out of range"]["out_of_range"] is True
    assert cases["age missing"]["out_of_range"] is False and cases["age missing"]["features"][0] is None
    path = tmp_path / "golden.json"
    path.write_text(json.dumps(golden))
    assert golden_difference(path, target) == (0.0, 0)
    golden["rows"][0]["probability"] += 1e-3
    path.write_text(json.dumps(golden))
    assert golden_difference(path, target)[0] == pytest.approx(1e-3, rel=0.01)


_EXPORT = """
import sys; from pathlib import Path
from release.export import export_onnx, model_metadata
from tests.factories import tiny_study
from tests.release.test_export import trained
from tests.model_zoo import zoo
sys.path.insert(0, sys.argv[1])
from mine import Model
facts = {"release_id": "tiny@v1.0.0", "model": "0" * 64, "epsilon": None, "threshold": 0.5}
studies = zoo()
for name, study in studies.items():
    export_onnx(trained(study), study, Path(f"{name}.onnx"), model_metadata(study, **facts))
export_onnx(Model(), tiny_study(), Path("mine.onnx"), model_metadata(tiny_study(), **facts))
"""
_MODEL = (
    "import torch\nclass Model(torch.nn.Module):\n    def forward(self, x):\n        return x.sum(-1) * 0.5\n"
)


@pytest.mark.slow
def test_exports_of_every_model_from_two_folders_and_processes_are_byte_equal(tmp_path):
    root, files = Path(__file__).resolve().parents[2], []
    for name in ("one", "another_longer_name"):
        folder = tmp_path / name
        folder.mkdir()
        # The second copy starts lower in the file: line numbers must not matter either.
        (folder / "mine.py").write_text("\n" * len(files) + _MODEL)
        done = subprocess.run(
            [sys.executable, "-c", _EXPORT, str(folder)],
            cwd=folder, env=os.environ | {"PYTHONPATH": str(root), "PYTHONHASHSEED": str(len(files))},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        files.append({path.name: path.read_bytes() for path in folder.glob("*.onnx")})
    assert files[0] == files[1] and len(files[0]) == len(zoo()) + 1
    for data in files[0].values():
        for trace in (str(tmp_path), str(root), os.uname().nodename, "mine.py"):
            assert trace.encode() not in data
