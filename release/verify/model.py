"""The ONNX file: its form, what it says of itself, and what it computes on this machine."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from contracts.errors import ConsiliumError
from release.export import IR_VERSION, OPSET, model_metadata, traces
from release.golden import TOLERANCE, fixed_rows, golden_difference
from release.verify.check import Opened


def form(release: Opened) -> str:
    """One valid ONNX file of the pinned versions, with no operator, file or path from elsewhere (E802)."""
    import onnx

    proto = onnx.load_model_from_string(release.read("model.onnx"))
    onnx.checker.check_model(proto, full_check=True)
    opsets = [(opset.domain, opset.version) for opset in proto.opset_import]
    if opsets != [("", OPSET)] or release.manifest.opset != OPSET or proto.ir_version != IR_VERSION:
        raise ConsiliumError("E802", f"operators {opsets}, IR version {proto.ir_version}")
    found = traces(proto)
    if found:
        raise ConsiliumError("E802", f"it holds {'; '.join(found[:5])}")
    inputs, outputs = [i.name for i in proto.graph.input], [o.name for o in proto.graph.output]
    if inputs != ["features"] or outputs != release.manifest.outputs:
        raise ConsiliumError("E802", f"inputs {inputs}, outputs {outputs}")
    return f"opset {OPSET}, IR version {IR_VERSION}, one file"


def facts(release: Opened) -> str:
    """What the file says of itself is what the manifest says (E701)."""
    import onnx

    proto = onnx.load_model_from_string(release.read("model.onnx"))
    manifest = release.manifest
    found = {entry.key: entry.value for entry in proto.metadata_props}
    expected = model_metadata(
        release.protocol,
        release_id=manifest.release_id,
        model=manifest.model,
        epsilon=manifest.epsilon,
        threshold=manifest.decision_threshold,
    )
    wrong = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    if wrong or len(found) != len(proto.metadata_props):
        raise ConsiliumError("E701", f"model.onnx says otherwise of {', '.join(wrong[:5])}")
    return f"{found['release_id']}, {len(found)} facts"


def golden(release: Opened) -> str:
    """The model answers the golden rows as it did when it was released (E603)."""
    _rows_are_the_protocols(release)
    difference, flags = golden_difference(release.folder / "golden.json", release.folder / "model.onnx")
    detail = (
        f"largest difference {difference:.1e} (at most {TOLERANCE:.0e}), {flags} flags or decisions differ"
    )
    if difference > TOLERANCE or flags:
        raise ConsiliumError("E603", detail)
    return detail


def _rows_are_the_protocols(release: Opened) -> None:
    """A golden file that lost its difficult cases would prove little."""
    document: dict[str, Any] = json.loads(release.read("golden.json"))
    names, rows = fixed_rows(release.protocol)
    first = document["rows"][: len(names)]
    x = np.array(
        [[np.nan if v is None else v for v in row["features"]] for row in first], dtype=np.float32
    ).reshape(len(first), -1)
    complete = (
        document["features"] == release.protocol.feature_names
        and [row["case"] for row in first] == names
        and np.array_equal(x, rows, equal_nan=True)
        and all(0 <= row["probability"] <= 1 for row in document["rows"])
    )
    if not complete:
        raise ConsiliumError("E603", "golden.json lacks cases of the protocol")
