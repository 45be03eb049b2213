"""The text of an amendment: a copy of a study under a new name, which names the hash of the one it amends."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import yaml

from contracts.errors import ConsiliumError
from contracts.study import StudyProtocol, parse_study
from contracts.yaml_text import load_yaml
from validation.tightening import loosened

_OWN = ("schema", "study", "product", "amends")  # what an amendment sets itself


def amendment_of(base: StudyProtocol, name: str, changes: Sequence[str]) -> StudyProtocol:
    """Return the study `name` that amends `base`, with some fields changed.

    Args:
        changes: `path=value`; the path is dotted, a member of a list is named by its number or its `name` or
            `id` (`gates.0.at_least`, `features.age.range`), the value is YAML.

    Raises:
        ConsiliumError: E101, a change that fits no field, or leaves no valid study; E111, the name is the
            amended study's own, or the amendment asks for less than the study before.
    """
    if name == base.study:
        raise ConsiliumError("E111", f"{name!r} is the amended study itself, expected a new name")
    body = copy.deepcopy(base.body())
    for change in changes:
        path, equals, value = change.partition("=")
        if not equals or not path:
            raise ConsiliumError("E101", f"--set {change!r}, expected path=value")
        if path.split(".")[0] in _OWN:
            raise ConsiliumError("E101", f"--set {path}: an amendment sets {', '.join(_OWN)} itself")
        _put(body, path, _parsed(path, value))
    fields = {"schema": body.pop("schema"), "study": name, "product": base.product_name, "amends": base.hash}
    rest = {key: value for key, value in body.items() if key not in _OWN}
    amendment = parse_study({**fields, **rest}, f"amendment {name}")
    problems = loosened(base, amendment)
    if problems:
        raise ConsiliumError("E111", f"{base.study}: {'; '.join(problems)}")
    return amendment


def as_yaml(protocol: StudyProtocol) -> str:
    """Return the study file of a protocol; read again it has the same hash."""
    return yaml.safe_dump(protocol.body(), sort_keys=False, allow_unicode=True, width=110)


def _parsed(path: str, value: str) -> Any:
    try:
        return load_yaml(value)
    except yaml.YAMLError as error:
        raise ConsiliumError("E101", f"--set {path}: {value!r} is no YAML: {error}") from error


def _put(body: dict[str, Any], path: str, value: Any) -> None:
    """Set a field by its path; a mapping on the way that the author did not write is created."""
    *way, last = path.split(".")
    here: Any = body
    for part in way:
        here = here.setdefault(part, {}) if isinstance(here, dict) else here[_number(here, part, path)]
    if isinstance(here, dict):
        here[last] = value
    elif isinstance(here, list) and last == str(len(here)):
        here.append(value)
    else:
        here[_number(here, last, path)] = value


def _number(members: Any, part: str, path: str) -> int:
    """Which member of a list is meant."""
    if not isinstance(members, list):
        raise ConsiliumError("E101", f"--set {path}: {part!r} is no field there")
    names = [str(m.get("name", m.get("id"))) if isinstance(m, dict) else "" for m in members]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(members):
        return int(part)
    known = ", ".join(name for name in names if name not in ("", "None"))
    raise ConsiliumError("E101", f"--set {path}: no member {part!r} of {len(members)} {known}")
