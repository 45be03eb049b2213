"""A sealed report opens with the coordinator's key, under its own plan, unchanged, and not otherwise."""

import base64

import pytest

from contracts.errors import ConsiliumError
from contracts.sealing import SealKey, seal

PLAN, OTHER_PLAN = "a" * 64, "b" * 64
TEXT = '{"auroc": 0.8}'


@pytest.fixture
def key(tmp_path):
    return SealKey.load_or_make(tmp_path / "seal.key")


def test_what_was_sealed_opens_again(key, tmp_path):
    assert key.open(seal(TEXT, key.public, PLAN), PLAN) == TEXT
    assert (tmp_path / "seal.key").stat().st_mode & 0o777 == 0o600
    assert SealKey.load_or_make(tmp_path / "seal.key").public == key.public


def test_two_seals_of_one_text_look_different_and_do_not_show_it(key):
    first, second = seal(TEXT, key.public, PLAN), seal(TEXT, key.public, PLAN)
    assert first != second
    assert b"auroc" not in base64.b64decode(first)


def test_another_key_or_another_plan_does_not_open_it(key, tmp_path):
    sealed = seal(TEXT, key.public, PLAN)
    for opener, plan in ((SealKey.load_or_make(tmp_path / "other.key"), PLAN), (key, OTHER_PLAN)):
        with pytest.raises(ConsiliumError, match="E802"):
            opener.open(sealed, plan)


def test_no_byte_of_it_can_be_changed(key):
    data = base64.b64decode(seal(TEXT, key.public, PLAN))
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1
        with pytest.raises(ConsiliumError, match="E802"):
            key.open(base64.b64encode(bytes(changed)).decode(), PLAN)


@pytest.mark.parametrize("sealed", ["", "AAAA", "not base64!", base64.b64encode(bytes(48)).decode()])
def test_what_is_no_seal_is_refused(key, sealed):
    with pytest.raises(ConsiliumError, match="E802"):
        key.open(sealed, PLAN)


@pytest.mark.parametrize("public", ["", "AAAA", "A" * 43])
def test_a_plan_without_a_real_key_gets_nothing(public):
    with pytest.raises(ConsiliumError, match="E802"):
        seal(TEXT, public, PLAN)


def test_a_damaged_key_file_is_never_replaced(tmp_path):
    (tmp_path / "seal.key").write_bytes(b"short")
    with pytest.raises(ConsiliumError, match="E801"):
        SealKey.load_or_make(tmp_path / "seal.key")
    assert (tmp_path / "seal.key").read_bytes() == b"short"
