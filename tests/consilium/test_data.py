"""A fetched data set is the official one, byte for byte, or it is not there."""

import functools
import http.server
import threading

import pytest

from consilium import data
from contracts.canonical import sha256
from contracts.errors import ConsiliumError
from site_runtime.config import data_folder

FILES = {"a.data": b"1,2\n", "b.data": b"3,4\n"}


@pytest.fixture
def server(tmp_path):
    root = tmp_path / "served"
    root.mkdir()
    for name, content in FILES.items():
        (root / name).write_bytes(content)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield root, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture
def data_set(monkeypatch):
    sums = {name: sha256(content) for name, content in FILES.items()}
    monkeypatch.setitem(data.DATA_SETS, "toy", ("http://127.0.0.1:9", "toy", sums))


def test_files_are_fetched_and_kept(server, data_set, tmp_path):
    root, url = server
    paths = data.fetch_data("toy", tmp_path / "to", url + "/")
    assert {p.name: p.read_bytes() for p in paths} == FILES
    (root / "a.data").unlink()
    assert data.fetch_data("toy", tmp_path / "to", url) == paths  # right ones are not fetched again


def test_a_file_that_changed_at_the_source_is_not_written(server, data_set, tmp_path):
    root, url = server
    (root / "b.data").write_bytes(b"3,5\n")
    with pytest.raises(ConsiliumError, match=r"E108.*b\.data"):
        data.fetch_data("toy", tmp_path / "to", url)
    assert not (tmp_path / "to" / "toy" / "b.data").exists()


def test_a_damaged_copy_is_replaced(server, data_set, tmp_path):
    _, url = server
    path = data.fetch_data("toy", tmp_path / "to", url)[0]
    path.write_bytes(b"damaged")
    data.fetch_data("toy", tmp_path / "to", url)
    assert path.read_bytes() == FILES[path.name]


@pytest.mark.parametrize("source", ["http://127.0.0.1:9", "file:///etc", "ftp://x"])
def test_a_source_that_does_not_answer(data_set, tmp_path, source):
    with pytest.raises(ConsiliumError, match="E108"):
        data.fetch_data("toy", tmp_path / "to", source)


def test_an_unknown_data_set(tmp_path):
    with pytest.raises(ConsiliumError, match=r"E108.*heart-disease"):
        data.fetch_data("hart-disease", tmp_path)


def test_the_checksums_are_those_of_the_files(tmp_path):
    _, folder, files = data.DATA_SETS["heart-disease"]
    here = data_folder() / folder
    if not here.exists():
        pytest.skip(f"{here} is not here: `consilium data fetch heart-disease`")
    for name, expected in files.items():
        assert sha256((here / name).read_bytes()) == expected
