"""The example of docs/deploying-a-release.md serves a release that verifies, and no other."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.full_release import Sealed, full_release

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "serve_release.py"


def serve(release: Sealed, public: Path) -> subprocess.Popen[str]:
    public.write_text(release.key.public.pem)
    command = [sys.executable, str(EXAMPLE), str(release.folder), str(public), "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    return full_release(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def address(release: Sealed) -> Iterator[str]:
    process = serve(release, release.folder.parent / "release.pub.pem")
    assert process.stdout is not None
    for line in process.stdout:  # ends when the process does
        if line.startswith("http://"):
            break
    else:
        pytest.fail(process.communicate()[1])
    yield line.strip()
    process.kill()
    process.communicate()


def ask(address: str, body: Any) -> tuple[int, dict[str, Any]]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(address, data), timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refused:
        return refused.code, json.load(refused)


def test_it_is_short_and_needs_nothing_of_this_project_but_the_command() -> None:
    text = EXAMPLE.read_text()
    assert len(text.splitlines()) < 40
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported - sys.stdlib_module_names == {"numpy", "onnxruntime"}


def test_every_golden_row_is_answered_over_http_as_it_was_released(release: Sealed, address: str) -> None:
    golden = json.loads((release.folder / "golden.json").read_bytes())
    threshold = golden["decision_threshold"]
    for row in golden["rows"]:
        status, said = ask(address, dict(zip(golden["features"], row["features"], strict=True)))
        assert status == 200 and said["release"] == "tiny@v1.0.0"
        assert said["probability"] == pytest.approx(row["probability"], abs=1e-6)
        assert said["out_of_range"] == row["out_of_range"]
        expected = None if row["out_of_range"] else row["probability"] >= threshold
        assert said["decision"] == expected


def test_columns_are_found_by_name_and_a_value_left_out_is_missing(address: str) -> None:
    one = ask(address, {"age": 50, "lactate": 5, "sex": 1})
    assert one == ask(address, {"sex": 1, "lactate": 5, "age": 50})
    assert ask(address, {"age": 50}) == ask(address, {"age": 50, "lactate": None, "sex": None})


REFUSED: list[Any] = [
    {"age": 50, "Lactate": 5},
    {"age": 50, "Lactate": None},
    {"age": "50"},
    {"age": True},
    {"age": [1]},
    [50, 5, 1],
    b"no JSON",
    b"",
    7,
]


@pytest.mark.parametrize("body", REFUSED, ids=str)
def test_what_is_not_understood_is_refused_with_the_reason(address: str, body: Any) -> None:
    status, said = ask(address, body)
    assert status == 400 and said["error"] and "probability" not in said


def test_a_changed_release_is_not_served(tmp_path: Path) -> None:
    changed = full_release(tmp_path)
    with (changed.folder / "model.onnx").open("ab") as file:
        file.write(b"\x00")
    process = serve(changed, tmp_path / "release.pub.pem")
    out, errors = process.communicate(timeout=120)
    assert process.returncode != 0 and "http://" not in out and "E701" in errors + out
