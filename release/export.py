"""Export a trained model to one ONNX file that takes raw clinical units, and check that it agrees.

The file is a function of weights, protocol and metadata alone: exported in two places it is the same bytes,
and no path of the exporting machine is in it (torch writes the source line of every node; it is removed).

The number of rows is free. The number of time steps of a recurrent model is not: the protocol names a column
for each measurement at each step, so it is fixed with the protocol. No tree model is registered yet; one
would need an exporter of its own beside `export_onnx`, with the same inputs, outputs and metadata.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from contracts.errors import ConsiliumError
from contracts.evaluation import Parity
from contracts.study import CategoricalFeature, Feature, StudyProtocol
from release.session import predict

if TYPE_CHECKING:
    from torch import nn

OPSET = 20
IR_VERSION = 10  # onnxruntime 1.18 and later
TOLERANCE = 1e-5  # largest difference in probability between torch and onnxruntime
# Above this a value cannot be a measurement, and float32 arithmetic in the model could overflow to NaN.
_ABSURD = 1e30


def export_onnx(model: nn.Module, protocol: StudyProtocol, target: Path, metadata: dict[str, str]) -> None:
    """Write `model` as one ONNX file.

    Input `features` float32 [batch, F], raw units, NaN for missing. Outputs `probability` float32 [batch] and
    `out_of_range` bool [batch]: True when a value lies outside its protocol range or is no declared level, or
    when every feature is missing. A value beyond 1e30 or infinite is computed as 1e30 (and flagged).

    Args:
        model: forward(x float32 [batch, F]) -> logits [batch]; preprocessing inside (models.registry).
        protocol: feature order, ranges and levels.
        target: the file to write.
        metadata: facts stored in the file (`model_metadata`); no path, no host name.
    """
    import onnx
    import torch

    # Two rows: torch specialises a dimension of size 0 or 1 even when it is marked dynamic.
    example = torch.zeros(2, len(protocol.features), dtype=torch.float32)
    served = _served(model, protocol).eval()
    with _quiet():
        program = torch.onnx.export(
            served,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            input_names=["features"],
            output_names=["probability", "out_of_range"],
            dynamic_shapes={"features": {0: torch.export.Dim("batch", min=1, max=2**20)}},
        )
    assert program is not None
    proto = program.model_proto
    _strip(proto)
    proto.ir_version = IR_VERSION
    proto.producer_name, proto.producer_version = "consilium", ""
    proto.graph.name = "consilium"
    del proto.metadata_props[:]
    for key in sorted(metadata):
        proto.metadata_props.add(key=key, value=metadata[key])
    onnx.checker.check_model(proto, full_check=True)
    target.write_bytes(proto.SerializeToString(deterministic=True))


def model_metadata(
    protocol: StudyProtocol, *, release_id: str, model: str, epsilon: float | None, threshold: float
) -> dict[str, str]:
    """Return what the file says of itself (`metadata_props`), for whoever meets it without its directory.

    `features` is the order of the columns; `input.<name>` says of each its unit, kind, and range or levels.

    Args:
        protocol: the study.
        release_id: `heart-disease@v1.0.0`.
        model: digest of the trained safetensors.
        epsilon: the largest over the hospitals (`release.facts.largest_epsilon`); None: `none`.
        threshold: the decision threshold that applies.
    """
    return {
        "release_id": release_id,
        "study": protocol.study,
        "protocol_hash": protocol.hash,
        "model": model,
        "epsilon": "none" if epsilon is None else f"{epsilon:.4f}",
        "intended_use": protocol.intended_use,
        "decision_threshold": repr(float(threshold)),
        "features": ",".join(protocol.feature_names),
    } | {f"input.{feature.name}": _described(feature) for feature in protocol.features}


def _described(feature: Feature) -> str:
    if isinstance(feature, CategoricalFeature):
        levels = ", ".join(f"{level:.12g}" for level in feature.levels)
        return f"{feature.unit}; categorical; levels {levels}"
    low, high = feature.range
    return f"{feature.unit}; numeric; {low:.12g} to {high:.12g}"


def traces(proto: Any) -> list[str]:
    """Return what an ONNX file holds of the machine that made it, or of files beside it: nothing should be.

    Exporters write source lines, file names and module paths into doc strings and the properties of nodes.
    """
    found = [f"{name} of the file" for name in ("doc_string", "domain") if getattr(proto, name)]
    if (proto.producer_name, proto.producer_version) != ("consilium", ""):
        found.append(f"producer {proto.producer_name!r}")
    if proto.training_info:
        found.append("training information")
    for graph in _graphs(proto):
        parts = (*graph.input, *graph.output, *graph.value_info, *graph.initializer, *graph.node)
        for part in (graph, *parts):
            if part.doc_string or part.metadata_props:
                found.append(f"notes on {part.name or 'a node'!r}")
        for tensor in graph.initializer:
            if tensor.external_data or tensor.data_location:
                found.append(f"data of {tensor.name!r} in another file")
        if graph.sparse_initializer:
            found.append("sparse tensors")
    for function in proto.functions:
        if function.doc_string or function.metadata_props or any(n.doc_string for n in function.node):
            found.append(f"notes on function {function.name!r}")
    return found


def _graphs(proto: Any) -> Iterator[Any]:
    """The graph of a file, and the graphs inside its nodes at any depth."""
    waiting = [proto.graph]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    waiting.append(attribute.g)
                waiting.extend(attribute.graphs)


def parity(model: nn.Module, onnx_path: Path, x: ArrayLike, threshold: float) -> Parity:
    """Compare torch and onnxruntime on the same patients.

    Args:
        model: the trained module.
        onnx_path: its export.
        x: float [patients, F], raw units, NaN for missing.
        threshold: the study's decision threshold.
    """
    import torch

    features = np.ascontiguousarray(x, dtype=np.float32)
    if len(features) == 0:
        raise ConsiliumError("E603", "parity over 0 patients, expected at least 1")
    model.eval()
    with torch.inference_mode():
        expected = torch.sigmoid(model(torch.from_numpy(features))).numpy().astype(np.float64)
    found = predict(onnx_path, features)[0].astype(np.float64)
    difference = np.abs(expected - found)
    worst = float(difference.max())
    return Parity(
        max_abs_difference=worst if np.isfinite(worst) else 1.0,
        decisions_flipped=int(((expected >= threshold) != (found >= threshold)).sum()),
        tolerance=TOLERANCE,
    )


def require_parity(found: Parity, where: str = "the coordinator") -> None:
    """Refuse an export that does not agree with the trained model.

    Raises:
        ConsiliumError: E603, the difference is over the tolerance or a decision is flipped.
    """
    if found.max_abs_difference > found.tolerance or found.decisions_flipped:
        raise ConsiliumError(
            "E603",
            f"at {where}: largest difference {found.max_abs_difference:.2e} (at most {found.tolerance:.0e}), "
            f"{found.decisions_flipped} decisions flipped (expected 0)",
        )


def _served(model: nn.Module, protocol: StudyProtocol) -> nn.Module:
    """Wrap the trained module: probability instead of logit, and the range check."""
    import torch

    numeric = [i for i, f in enumerate(protocol.features) if not isinstance(f, CategoricalFeature)]
    low, high = np.full(len(protocol.features), -np.inf), np.full(len(protocol.features), np.inf)
    levels: list[tuple[int, list[float]]] = []
    for i, feature in enumerate(protocol.features):
        if isinstance(feature, CategoricalFeature):
            levels.append((i, list(feature.levels)))
        else:
            low[i], high[i] = feature.range
    width = max((len(v) for _, v in levels), default=0)
    # Shorter lists are padded with their first level, which admits nothing new.
    table = [v + [v[0]] * (width - len(v)) for _, v in levels]

    class Served(torch.nn.Module):
        """What the file holds; limits are float32, as the values they are compared with."""

        low: torch.Tensor
        high: torch.Tensor
        levels: torch.Tensor
        numeric: torch.Tensor
        coded: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.register_buffer("low", torch.tensor(low[numeric], dtype=torch.float32))
            self.register_buffer("high", torch.tensor(high[numeric], dtype=torch.float32))
            self.register_buffer("levels", torch.tensor(table, dtype=torch.float32))
            self.register_buffer("numeric", torch.tensor(numeric, dtype=torch.long))
            self.register_buffer("coded", torch.tensor([i for i, _ in levels], dtype=torch.long))

        def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            missing = torch.isnan(features)
            outside = missing.all(dim=-1)
            if len(numeric):
                values = features.index_select(-1, self.numeric)
                # A comparison with NaN is false, so a missing value is not outside.
                outside = outside | ((values < self.low) | (values > self.high)).any(dim=-1)
            if levels:
                codes = features.index_select(-1, self.coded)
                known = (codes.unsqueeze(-1) == self.levels).any(dim=-1)
                outside = outside | ~(known | torch.isnan(codes)).all(dim=-1)
            absurd = features.abs() > _ABSURD
            # Not clamp: its ONNX form need not keep NaN.
            usable = torch.where(absurd, torch.sign(features) * _ABSURD, features)
            return torch.sigmoid(self.model(usable)), outside

    return Served()


def _strip(proto: Any) -> None:
    """Remove what torch writes about its source from every node, value and function, at any depth."""
    proto.doc_string = ""
    for graph in _graphs(proto):
        graph.doc_string = ""
        del graph.metadata_props[:]
        for part in (*graph.input, *graph.output, *graph.value_info, *graph.initializer, *graph.node):
            part.doc_string = ""
            del part.metadata_props[:]
        # The types of inner values are for reading only; onnxruntime infers them.
        del graph.value_info[:]
        for node in graph.node:
            for attribute in node.attribute:
                attribute.doc_string = ""
    for function in proto.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        for node in function.node:
            node.doc_string = ""
            del node.metadata_props[:]


@contextlib.contextmanager
def _quiet() -> Any:
    """Keep the exporter's progress lines and deprecation warnings off the page."""
    names = ("torch.onnx", "onnxscript", "onnx_ir")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
