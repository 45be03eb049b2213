"""What a mutation of a release is, and where all of them are listed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from release.signature import ReleaseKey
from tests.full_release import Sealed

FILES = [
    "README.txt",
    "data_sheets/ash.json",
    "data_sheets/birch.json",
    "dp_statement.json",
    "dp_statement.md",
    "events.jsonl",
    "golden.json",
    "ledgers/ash.jsonl",
    "ledgers/birch.jsonl",
    "model.onnx",
    "sbom.cdx.json",
    "study.json",
    "validation.html",
    "validation.json",
    "vex.cdx.json",
]


class World(NamedTuple):
    """A copy of a sealed release to be changed, and others that an attacker may hold."""

    it: Sealed
    stranger: ReleaseKey
    older: Sealed  # version 0.9.0 by the same key

    @property
    def folder(self) -> Path:
        return self.it.folder


class Mutation(NamedTuple):
    """What is done, and the first check that must fail: its name, number and reason."""

    name: str
    do: Callable[[World], None]
    check: str
    number: str
    reason: str


MUTATIONS: list[Mutation] = []


def mutation(check: str, number: str, reason: str = "", name: str = "") -> Any:
    def add(do: Callable[[World], None]) -> Callable[[World], None]:
        MUTATIONS.append(Mutation(name or do.__name__, do, check, number, reason))
        return do

    return add


def document(world: World, path: str, change: Callable[[Any], None]) -> None:
    """Change a JSON file, with everything signed anew."""
    content = json.loads((world.folder / path).read_bytes())
    change(content)
    world.it.rewrite({path: json.dumps(content).encode()})
