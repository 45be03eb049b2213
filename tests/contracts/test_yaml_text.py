"""Reading YAML that a person wrote."""

from __future__ import annotations

import pytest
import yaml

from contracts.yaml_text import load_yaml


def test_a_key_twice_in_one_mapping_is_refused_and_named() -> None:
    assert load_yaml("a: {b: 1}\nc: {b: 2}") == {"a": {"b": 1}, "c": {"b": 2}}
    with pytest.raises(yaml.YAMLError, match=r"'b' appears twice \(line 3\)"):
        load_yaml("a:\n  b: 1\n  b: 2")


def test_a_key_that_is_no_word_is_refused() -> None:
    with pytest.raises(yaml.YAMLError, match="a key must be a word"):
        load_yaml("{[1, 2]: 3}")


def test_aliases_that_multiply_are_looked_at_once() -> None:
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40))]
    assert len(load_yaml("\n".join(lines))) == 40


def test_a_list_that_holds_itself_does_not_end_the_program() -> None:
    value = load_yaml("&a [*a]")
    assert value[0] is value
