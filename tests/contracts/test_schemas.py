"""The JSON Schema that a hospital reviews describes what really crosses, and refuses what does not."""

import json
from typing import Any, get_args

import jsonschema
import pytest
from pydantic import BaseModel, ValidationError

from contracts.canonical import canonical_json
from contracts.schemas import CONTRACTS, json_schemas
from tests.instances import one_of_each

INSTANCES = one_of_each()
SCHEMAS = json_schemas()

every_contract = pytest.mark.parametrize("document", INSTANCES, ids=lambda d: type(d).__name__)


def as_crossed(document: BaseModel) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(canonical_json(document))
    return value


def models_in(kind: type[BaseModel]) -> set[type[BaseModel]]:
    """A contract and every model inside it."""
    found = {kind}
    waiting: list[Any] = [f.annotation for f in kind.model_fields.values()]
    while waiting:
        annotation = waiting.pop()
        waiting += get_args(annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation not in found:
            found.add(annotation)
            waiting += [f.annotation for f in annotation.model_fields.values()]
    return found


def test_there_is_an_example_of_every_contract() -> None:
    assert sorted(type(i).__name__ for i in INSTANCES) == sorted(CONTRACTS) == sorted(SCHEMAS)


@every_contract
def test_the_schema_accepts_what_crosses_and_refuses_an_extra_field(document: BaseModel) -> None:
    schema = SCHEMAS[type(document).__name__]
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(as_crossed(document))
    assert not validator.is_valid(as_crossed(document) | {"patients": 17})
    for field in schema["required"]:
        assert not validator.is_valid({k: v for k, v in as_crossed(document).items() if k != field})


@pytest.mark.parametrize("kind", CONTRACTS.values(), ids=lambda k: k.__name__)
def test_every_model_that_crosses_is_frozen_and_forbids_extra_fields(kind: type[BaseModel]) -> None:
    for model in models_in(kind):
        assert model.model_config["extra"] == "forbid", model
        assert model.model_config["frozen"] is True, model


def numbers(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of the numbers in a JSON value."""
    if isinstance(value, dict):
        return [p for k, v in value.items() for p in numbers(v, (*path, k))]
    if isinstance(value, list):
        return [p for i, v in enumerate(value) for p in numbers(v, (*path, i))]
    return [path] if isinstance(value, int | float) and not isinstance(value, bool) else []


@every_contract
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_no_number_of_a_contract_may_be_nan_or_infinite(document: BaseModel, number: float) -> None:
    accepted = []
    for path in numbers(as_crossed(document)):
        value = as_crossed(document)
        inner: Any = value
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = number
        try:
            type(document).model_validate(value)
            accepted.append(path)
        except ValidationError:
            pass
    assert accepted == []


@every_contract
def test_every_text_and_list_of_a_contract_is_bounded(document: BaseModel) -> None:
    """Unbounded texts or lists are a channel: every one has a pattern, an enumeration or a length."""
    schema = SCHEMAS[type(document).__name__]
    unbounded = []

    def walk(node: Any, path: str) -> None:
        if not isinstance(node, dict):
            return
        if node.get("type") == "string" and not {"pattern", "enum", "const", "maxLength"} & set(node):
            unbounded.append(path)
        if node.get("type") == "array" and "maxItems" not in node:
            unbounded.append(path)
        for key in ("properties", "$defs"):
            for name, child in node.get(key, {}).items():
                walk(child, f"{path}.{name}")
        for key in ("anyOf", "oneOf"):
            for child in node.get(key, []):
                walk(child, path)
        walk(node.get("items"), f"{path}[]")

    walk(schema, type(document).__name__)
    assert unbounded == []
