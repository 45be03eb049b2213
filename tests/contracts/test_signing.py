"""Signed documents: what was signed opens under the enrolled key, and nothing else opens."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from contracts.canonical import canonical_json, digest
from contracts.errors import ConsiliumError
from contracts.evaluation import EvaluationReport
from contracts.plan import RoundPlan
from contracts.refusal import Refusal
from contracts.signing import MAX_DOCUMENT_BYTES, SigningKey, open_signed, parse_signed, to_text
from tests.instances import one_of_each

KEY = SigningKey.generate("ash")
INSTANCES = one_of_each()
SMALL = next(i for i in INSTANCES if isinstance(i, Refusal))
TEXT = to_text(KEY.sign(SMALL))

every_contract = pytest.mark.parametrize("document", INSTANCES, ids=lambda d: type(d).__name__)


def opened(text: str | bytes, kind: type[BaseModel] = Refusal) -> BaseModel:
    return open_signed(text, kind, "ash", KEY.public)


def refused(text: str | bytes, number: str, kind: type[BaseModel] = Refusal, public: str = KEY.public) -> str:
    with pytest.raises(ConsiliumError) as caught:
        open_signed(text, kind, "ash", public)
    assert caught.value.number == number, caught.value
    return caught.value.detail


def resigned(**changes: Any) -> str:
    """The small document with other fields, honestly signed by the site: only its content is wrong."""
    signed = KEY.sign(SMALL)
    altered = signed.model_copy(update={"document": signed.document | changes})
    return to_text(altered.model_copy(update={"signature": KEY.sign_bytes(altered.signed_bytes())}))


@every_contract
def test_what_was_signed_opens_to_the_same_document(document: BaseModel) -> None:
    text = to_text(KEY.sign(document))
    assert opened(text, type(document)) == document
    assert parse_signed(text).digest == digest(document)
    assert parse_signed(text.encode()) == KEY.sign(document)  # Ed25519 is deterministic


@every_contract
def test_a_document_that_another_key_signs_again_keeps_its_bytes_and_digest(document: BaseModel) -> None:
    new, old = SigningKey.generate("ash"), KEY.sign(document)
    again = new.sign_again(old)
    assert (again.document, again.digest, again.type) == (old.document, old.digest, old.type)
    assert open_signed(to_text(again), type(document), "ash", new.public) == document
    refused(to_text(again), "E803", type(document))
    # One of an earlier version, which lacks a field that has a default by now, is not filled up.
    short = old.model_copy(update={"document": {"one": 1}})
    assert new.sign_again(short).digest == short.digest != old.digest


@every_contract
def test_no_other_key_no_other_signer_no_other_type(document: BaseModel) -> None:
    kind = type(document)
    refused(to_text(SigningKey.generate("ash").sign(document)), "E803", kind)
    refused(to_text(SigningKey("oak", KEY._private).sign(document)), "E803", kind)
    refused(to_text(KEY.sign(document)), "E803", kind, SigningKey.generate("ash").public)
    other = RoundPlan if kind is not RoundPlan else EvaluationReport
    refused(to_text(KEY.sign(document)), "E802", other)


@settings(max_examples=400)
@given(st.integers(0, len(TEXT) - 1), st.integers(0, 255))
@example(TEXT.index('"signature":"') + 13 + 85, ord("B"))  # only bits that decoding would drop
def test_every_change_of_one_byte_is_refused(place: int, byte: int) -> None:
    data = bytearray(TEXT.encode())
    if data[place] == byte:
        return
    data[place] = byte
    with pytest.raises(ConsiliumError) as caught:
        opened(bytes(data))
    assert caught.value.number in ("E802", "E803")


def test_every_other_last_character_of_a_signature_is_refused() -> None:
    signed = KEY.sign(SMALL)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    accepted = []
    for last in alphabet:
        text = TEXT.replace(signed.signature, signed.signature[:-1] + last)
        try:
            opened(text)
            accepted.append(last)
        except ConsiliumError:
            pass
    assert accepted == [signed.signature[-1]]


@pytest.mark.parametrize(
    "spelling",
    [
        lambda text: json.dumps(json.loads(text), indent=1),
        lambda text: text + "\n",
        lambda text: text.replace('"stage"', '"\\u0073tage"'),
        lambda text: text.replace('{"document"', '{"type":"Refusal","document"'),
        lambda text: "\ufeff" + text,
    ],
    ids=["indented", "newline", "escaped", "key twice", "byte order mark"],
)
def test_a_document_has_one_spelling(spelling: Any) -> None:
    assert spelling(TEXT) != TEXT
    refused(spelling(TEXT), "E802")


@every_contract
def test_an_extra_field_is_refused_even_when_signed(document: BaseModel) -> None:
    signed = KEY.sign(document)
    altered = signed.model_copy(update={"document": signed.document | {"patients": 17}})
    text = to_text(altered.model_copy(update={"signature": KEY.sign_bytes(altered.signed_bytes())}))
    assert "'patients'" in refused(text, "E802", type(document))
    beside = canonical_json(json.loads(TEXT) | {"note": "x"})
    refused(beside, "E802")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "9007199254740993", '"\\ud800"'])
def test_a_value_without_canonical_json_is_a_malformed_document_and_no_crash(value: str) -> None:
    refused(TEXT.replace('"number":"E302"', f'"number":{value}'), "E802")
    refused(TEXT.replace('"number":"E302"', f'"number":"E302","zz":[{value}]'), "E802")


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", "\x00", "\ud800", "[" * 10_000, b"\xff\xfe"])
def test_what_is_no_document_is_malformed(text: str | bytes) -> None:
    refused(text, "E802")


def test_a_document_above_256_kb_is_refused_before_it_is_read() -> None:
    room = MAX_DOCUMENT_BYTES - len(resigned(padding=""))
    assert "'padding'" in refused(resigned(padding="x" * room), "E802")  # just fits: read, and found wrong
    assert "bytes" in refused(resigned(padding="x" * (room + 1)), "E802")
    assert "bytes" in refused(resigned(padding="\u00e9" * (room // 2 + 1)), "E802")  # bytes, not characters


def test_a_refusal_carries_a_known_number_with_its_own_sentence() -> None:
    refused(resigned(sentence="17 patients are too few."), "E802")
    refused(resigned(number="E303"), "E802")
    refused(resigned(number="E999"), "E802")
    refused(resigned(stage="17"), "E802")


@given(st.text(max_size=400))
def test_a_refusal_drops_the_detail_of_its_error(detail: str) -> None:
    bare = Refusal.of(ConsiliumError("E205"), study="tiny", site="ash", stage="intake")
    assert Refusal.of(ConsiliumError("E205", detail), study="tiny", site="ash", stage="intake") == bare


def test_a_key_file_is_private_is_never_overwritten_and_loads_to_the_same_key(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "sign.pem"
    KEY.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert SigningKey.load("ash", path).public == KEY.public
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        SigningKey.generate("ash").save(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [None, b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n"])
def test_a_missing_or_damaged_key_file_is_e801(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "sign.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConsiliumError, match="E801") as caught:
        SigningKey.load("ash", path)
    assert re.search("sign.pem", caught.value.detail)
