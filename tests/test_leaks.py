"""The search finds what was hidden on purpose; otherwise finding nothing would say nothing."""

from __future__ import annotations

import base64
import gzip
import json
import sqlite3
import zipfile
import zlib

import numpy as np
import pytest
from safetensors.numpy import save

from tests.leaks import Planted, search

CANARY = Planted("QX7731942", "1931-07-17", 613.40625, "a caravan of zebras")
NEEDLES = CANARY.needles()
TEXT = f"id {CANARY.identifier}, born {CANARY.date}: {CANARY.sentence}".encode()


def as_git_object(data):
    return zlib.compress(b"blob %d\0" % len(data) + data)


def as_json_base64(data):
    return json.dumps({"x": base64.b64encode(data).decode()}).encode()


def as_url_base64_of_gzip(data):
    return b'{"token":"' + base64.urlsafe_b64encode(gzip.compress(data)).rstrip(b"=") + b'"}'


def as_gzip_after_other_bytes(data):
    return b"header" * 7 + gzip.compress(gzip.compress(data))


@pytest.mark.parametrize(
    "hide", [bytes, as_git_object, as_json_base64, as_url_base64_of_gzip, as_gzip_after_other_bytes]
)
def test_hidden_text_is_found(tmp_path, hide):
    (tmp_path / "file").write_bytes(hide(TEXT))
    assert search(tmp_path, NEEDLES) == [f"file: {name}" for name in ("date", "identifier", "sentence")]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_number_in_tensors_is_found_also_when_encoded(tmp_path, dtype):
    tensors = save({"x": np.array([0.5, CANARY.number, 2.0], dtype=dtype)})
    (tmp_path / "plain").write_bytes(tensors)
    (tmp_path / "encoded").write_bytes(as_json_base64(tensors))
    assert {hit.partition(":")[0] for hit in search(tmp_path, NEEDLES)} == {"plain", "encoded"}


def test_a_number_as_text_an_archive_and_a_file_name_are_found(tmp_path):
    (tmp_path / "log").write_text(f"chol={CANARY.number}")
    with zipfile.ZipFile(tmp_path / "archive", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inside", TEXT)
    (tmp_path / f"{CANARY.identifier}.txt").write_text("")
    files = {hit.partition(":")[0] for hit in search(tmp_path, NEEDLES)}
    assert files == {"log", "archive", f"{CANARY.identifier}.txt"}


def test_a_cell_of_a_database_is_found(tmp_path):
    with sqlite3.connect(tmp_path / "airflow.db") as connection:
        connection.execute("create table xcom (value text)")
        connection.execute("insert into xcom values (?)", (as_json_base64(TEXT * 500).decode(),))
    assert search(tmp_path, NEEDLES)


def test_nothing_is_found_where_nothing_is(tmp_path):
    (tmp_path / "noise").write_bytes(np.random.default_rng(0).bytes(1 << 16))
    (tmp_path / "text").write_bytes(gzip.compress(b"nobody in particular, 1931-07-18, 613.5"))
    assert search(tmp_path, NEEDLES) == []
