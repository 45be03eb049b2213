"""The same inputs give the same candidate, byte for byte, in another process with other hashes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SAME_KEYS = """
import hashlib, itertools, sys
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

numbers = itertools.count()
Ed25519PrivateKey.generate = lambda: Ed25519PrivateKey.from_private_bytes(
    hashlib.sha256(str(next(numbers)).encode()).digest()
)
from release.directory import write_candidate
from tests.dossiers import metadata_of, tiny_facts, tiny_onnx
from tests.factories import tiny_study

facts = tiny_facts(tiny_study())  # without a ledger: its salts are drawn anew each time
"""
MODEL = "tiny_onnx(Path(sys.argv[2]), metadata=metadata_of(facts))\n"
MAKE = "print(write_candidate(Path(sys.argv[1]), facts, Path(sys.argv[2])).candidate_digest)"


def run(code: str, seed: str, *arguments: Path) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_make_the_same_candidate(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    made = {
        run(SAME_KEYS + MODEL + MAKE, "1", tmp_path / "1" / "candidate", model),
        run(SAME_KEYS + MAKE, "77777", tmp_path / "77777" / "candidate", model),
    }
    found = [
        {p.relative_to(tmp_path / seed): p.read_bytes() for p in (tmp_path / seed).rglob("*") if p.is_file()}
        for seed in ("1", "77777")
    ]
    assert found[0] == found[1]
    assert len(made) == 1
