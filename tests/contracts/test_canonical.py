"""Canonical JSON: one text per value, and a digest that optional fields of later versions leave alone."""

import json
import random
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from contracts.canonical import canonical_json, digest, sha256
from contracts.ledger import LedgerOpening
from contracts.refusal import Refusal
from tests.factories import ZERO

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(-1e15, 1e15)  # `fields.Finite`: beyond it a whole float reads back as an integer too large
    | st.text(max_size=20)
)
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=8), v, max_size=4)
)
OBJECTS = st.dictionaries(st.text(max_size=8), VALUES, max_size=6)


@given(OBJECTS)
def test_the_text_reads_back_and_is_its_own_canonical_form(value: dict[str, Any]) -> None:
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text


@given(OBJECTS, st.integers(0, 1000))
def test_the_order_of_keys_does_not_matter(value: dict[str, Any], seed: int) -> None:
    keys = random.Random(seed).sample(list(value), len(value))
    assert digest({key: value[key] for key in keys}) == digest(value)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 2**53])
def test_a_number_without_one_json_text_is_refused(number: float) -> None:
    with pytest.raises(rfc8785.CanonicalizationError):
        canonical_json({"x": [number]})


def test_the_example_of_rfc_8785_section_3_2_2() -> None:
    value = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": '\u20ac$\u000f\u000aA\'B"\\\\"/',
        "literals": [None, True, False],
    }
    expected = (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    assert canonical_json(value) == expected.encode()


def test_the_digest_of_the_empty_object_is_that_of_two_braces() -> None:
    assert digest({}) == sha256(b"{}") == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def test_an_optional_field_that_is_none_is_no_part_of_the_digest() -> None:
    class Newer(Refusal):
        hint: str | None = None

    fields = {
        "study": "tiny",
        "site": "ash",
        "stage": "train",
        "number": "E302",
        "sentence": "This hospital has paused its part in the study.",
    }
    assert digest(Newer.model_validate(fields)) == digest(Refusal.model_validate(fields))
    opening = LedgerOpening(purpose="training", time="2026-01-01T00:00:00Z", salt=ZERO)
    assert set(json.loads(canonical_json(opening))) == {"purpose", "time", "salt"}
