"""The outbox: a finished result is kept before it is sent, so that a retry sends it again (design 5)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors.numpy import load_file, save

from contracts.canonical import canonical_json
from contracts.fields import Contract
from durable.files import write_atomic
from site_runtime.home import SiteHome
from strategies.interface import Tensors

TENSORS = "update.safetensors"
DOCUMENT = "document.json"
KEPT = "kept.safetensors"
LEDGER = "ledger.jsonl"


@contextlib.contextmanager
def exclusively(home: SiteHome, plan: str) -> Iterator[None]:
    """Hold the plan's lock: a second attempt at the same plan waits and then finds the first one's result."""
    home.outbox(plan).parent.mkdir(parents=True, exist_ok=True)
    with open(home.outbox(plan).parent / f".{plan}.lock", "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def finished(home: SiteHome, plan: str) -> Path | None:
    """Return the folder of the finished result for a plan, or None."""
    folder = home.outbox(plan)
    return folder if (folder / DOCUMENT).exists() else None


def tensor_bytes(tensors: Tensors) -> bytes:
    """Encode an update as safetensors."""
    data: bytes = save({name: array.copy() for name, array in sorted(tensors.items())})
    return data


def keep(
    home: SiteHome,
    plan: str,
    document: Contract,
    tensors: bytes | None,
    state: Tensors,
    ledger: bytes | None = None,
) -> Path:
    """Put a finished result into the outbox in one step: all of it or nothing.

    Args:
        document: what will be signed and sent.
        tensors: the update's safetensors, if it has any.
        state: what the strategy keeps at the site for the next round.
        ledger: the excerpt of the privacy ledger that an evaluation shows.
    """
    target = home.outbox(plan)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".unfinished."))
    try:
        if tensors is not None:
            _write(temporary / TENSORS, tensors)
        if ledger is not None:
            _write(temporary / LEDGER, ledger)
        if state:
            _write(temporary / KEPT, tensor_bytes(state))
        _write(temporary / DOCUMENT, canonical_json(document))
        os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def kept_state(home: SiteHome, study: str) -> Tensors:
    """Return what the strategy kept at this site after its last finished round; empty at first."""
    path = home.state(study) / KEPT
    if not path.exists():
        return {}
    tensors: Tensors = load_file(path)
    return tensors


def restore_state(home: SiteHome, study: str, plan: str) -> None:
    """Make the state kept with a plan's result the newest one; again and again it is the same."""
    source = home.outbox(plan) / KEPT
    if source.exists():
        write_atomic(home.state(study) / KEPT, source.read_bytes())


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
