"""With the key: the release contradicts the protocol, or its gates did not hold."""

from __future__ import annotations

import json
from typing import Any

from contracts.canonical import canonical_json
from tests.full_release import full_study
from tests.release.mutations.world import MUTATIONS, Mutation, World, document, mutation


@mutation("protocol", "E701", "not the protocol")
def another_protocol(world: World) -> None:
    world.it.rewrite({"study.json": canonical_json(full_study(rounds=3))})


for field, value in {
    "intended_use": "Anything.",
    "title": "Better",
    "sign_off": ["clinician"],
    "epsilon": 0.5,
    "delta": 1e-6,
    "privacy_mode": "none",
    "inputs": [],
    "rounds": 1,
    "product": "another-product",
}.items():
    MUTATIONS.append(
        Mutation(
            f"manifest otherwise than protocol: {field}",
            lambda world, field=field, value=value: world.it.rewrite(**{field: value}),
            "manifest and protocol",
            "E701",
            field,
        )
    )


@mutation("manifest and protocol", "E426", "expected 0.5")
def another_threshold(world: World) -> None:
    world.it.rewrite(decision_threshold=0.4)


@mutation("manifest and protocol", "E701", "dp_statement.json")
def a_lower_epsilon_in_the_statement(world: World) -> None:
    document(world, "dp_statement.json", lambda d: d.update(epsilon=0.1))


@mutation("ledgers", "E408", "ash")
def a_lower_epsilon_everywhere_but_in_the_ledger(world: World) -> None:
    manifest = world.it.read()
    less = [p.model_copy(update={"epsilon_study": 0.5}) for p in manifest.site_privacy]
    content = json.loads((world.folder / "dp_statement.json").read_bytes()) | {"epsilon": 0.5}
    world.it.rewrite({"dp_statement.json": json.dumps(content).encode()}, site_privacy=less, epsilon=0.5)


@mutation("gates", "E601", "other gates")
def a_gate_flipped_to_passed_in_the_manifest_alone(world: World) -> None:
    document(world, "validation.json", lambda d: d["_gates"][0].update(passed=False))


@mutation("gates", "E601", "outside its limit")
def a_gate_flipped_to_passed_everywhere(world: World) -> None:
    gates(world, passed=True, margin=-0.05)


@mutation("gates", "E601", "outside its limit")
def a_gate_that_passed_with_a_value_below_its_floor(world: World) -> None:
    gates(world, passed=True, value=0.59, margin=0.05)


@mutation("gates", "E601", "outside its limit")
def a_gate_that_passed_without_a_value(world: World) -> None:
    gates(world, passed=True, value=None, margin=None)


@mutation("gates", "E601", "failed")
def a_failed_gate(world: World) -> None:
    gates(world, passed=False)


@mutation("gates", "E602", "not testable")
def an_undecided_gate(world: World) -> None:
    gates(world, passed=None)


@mutation("gates", "E602", "not decided: pooled auroc >= 0.6")
def a_gate_left_out(world: World) -> None:
    content = json.loads((world.folder / "validation.json").read_bytes()) | {"_gates": []}
    world.it.rewrite({"validation.json": json.dumps(content).encode()}, gates=[])


def gates(world: World, **changes: Any) -> None:
    results = [gate.model_copy(update=changes) for gate in world.it.read().gates]
    content = json.loads((world.folder / "validation.json").read_bytes())
    content["_gates"] = [gate.model_dump(mode="json") for gate in results]
    world.it.rewrite({"validation.json": json.dumps(content).encode()}, gates=results)
