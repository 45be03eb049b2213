"""The exchange gives back what was put, under its digest, or refuses."""

from __future__ import annotations

import hashlib

import pytest

from contracts.errors import ConsiliumError
from tasks.exchange import DirectoryExchange


def test_content_comes_back_under_its_digest_and_twice_is_once(tmp_path):
    exchange = DirectoryExchange(tmp_path / "exchange")
    source = tmp_path / "file"
    source.write_bytes(b"update" * 1000)
    digest = exchange.put(source)
    assert digest == hashlib.sha256(source.read_bytes()).hexdigest() == exchange.put(source)
    exchange.get(digest, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    assert sum(path.is_file() for path in exchange.root.rglob("*")) == 1


def test_missing_and_altered_content_are_refused(tmp_path):
    exchange = DirectoryExchange(tmp_path / "exchange")
    with pytest.raises(ConsiliumError, match="E509"):
        exchange.get("0" * 64, tmp_path / "back")
    source = tmp_path / "file"
    source.write_bytes(b"update")
    digest = exchange.put(source)
    exchange.path_of(digest).write_bytes(b"updatf")
    with pytest.raises(ConsiliumError, match="E804"):
        exchange.get(digest, tmp_path / "back")
    assert not (tmp_path / "back").exists()
