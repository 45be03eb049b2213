"""With the key: a model of another form, that says or computes something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import onnx
from onnx import helper

from contracts.canonical import sha256
from tests.dossiers import metadata_of, tiny_onnx
from tests.full_release import full_facts
from tests.release.mutations.documents import card
from tests.release.mutations.world import MUTATIONS, Mutation, World, document, mutation


def replace_model(world: World, data: bytes) -> None:

    content = json.loads((world.folder / "sbom.cdx.json").read_bytes())
    card(content)["hashes"][0]["content"] = sha256(data)
    world.it.rewrite({"model.onnx": data, "sbom.cdx.json": json.dumps(content).encode()})


def model(world: World, change: Callable[[onnx.ModelProto], None]) -> None:
    """Another model.onnx, with everything that names its digest made anew."""
    proto = onnx.load_model_from_string((world.folder / "model.onnx").read_bytes())
    change(proto)
    replace_model(world, proto.SerializeToString(deterministic=True))


@mutation("golden rows", "E603", "largest difference")
def a_model_that_answers_otherwise(world: World) -> None:
    target = tiny_onnx(world.folder.parent / "other.onnx", scale=0.011, metadata=metadata_of(full_facts()))
    replace_model(world, target.read_bytes())


@mutation("model file", "E802", "ParseError|DecodeError|Error")
def a_model_that_is_no_onnx(world: World) -> None:
    replace_model(world, b"\x80pickle")


@mutation("model file", "E802", "21")
def a_model_of_another_opset(world: World) -> None:
    model(world, lambda proto: setattr(proto.opset_import[0], "version", 21))


@mutation("model file", "E802", "IR version 9")
def a_model_of_another_format(world: World) -> None:
    model(world, lambda proto: setattr(proto, "ir_version", 9))


@mutation("model file", "E802", "other.domain")
def a_model_with_foreign_operators(world: World) -> None:
    model(world, lambda proto: proto.opset_import.append(helper.make_opsetid("other.domain", 1)))


@mutation("model file", "E802", "notes on")
def a_model_with_a_path_in_it(world: World) -> None:
    model(world, lambda proto: setattr(proto.graph.node[0], "doc_string", "/somewhere/train.py"))


@mutation("model file", "E802", "")
def a_model_with_weights_elsewhere(world: World) -> None:
    def change(proto: onnx.ModelProto) -> None:
        tensor = proto.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights.bin")

    model(world, change)


@mutation("model file", "E802", "inputs")
def a_model_with_another_input(world: World) -> None:
    def change(proto: onnx.ModelProto) -> None:
        proto.graph.input[0].name = "x"
        for node in proto.graph.node:
            node.input[:] = ["x" if name == "features" else name for name in node.input]

    model(world, change)


for prop, said in {
    "epsilon": "0.1000",
    "release_id": "tiny@v2.0.0",
    "protocol_hash": "1" * 64,
    "intended_use": "Anything.",
    "input.age": "months; numeric; 0 to 100",
    "decision_threshold": "0.3",
    "note": "more",
}.items():

    def _says(world: World, prop: str = prop, said: str = said) -> None:
        def change(proto: onnx.ModelProto) -> None:
            props = {entry.key: entry.value for entry in proto.metadata_props} | {prop: said}
            helper.set_model_props(proto, props)

        model(world, change)

    MUTATIONS.append(Mutation(f"the model says otherwise of {prop}", _says, "model facts", "E701", prop))


def golden(world: World, change: Callable[[Any], None]) -> None:
    document(world, "golden.json", change)


@mutation("golden rows", "E603", "1.0e-03")
def a_golden_output_off_by_a_thousandth(world: World) -> None:
    def change(content: Any) -> None:
        content["rows"][3]["probability"] += 1e-3

    golden(world, change)


@mutation("golden rows", "E603", "1 flags")
def a_golden_flag_turned(world: World) -> None:
    golden(world, lambda d: d["rows"][0].update(out_of_range=not d["rows"][0]["out_of_range"]))


@mutation("golden rows", "E603", "lacks cases")
def golden_rows_left_out(world: World) -> None:
    golden(world, lambda d: d.update(rows=d["rows"][:2]))


@mutation("manifest and protocol", "E701", "golden.json")
def another_threshold_in_the_golden_rows(world: World) -> None:
    golden(world, lambda d: d.update(decision_threshold=0.9))


@mutation("golden rows", "E603", "lacks cases")
def a_golden_row_of_easier_values(world: World) -> None:
    golden(world, lambda d: d["rows"][4].update(features=[50.0, 5.0, 1.0]))
