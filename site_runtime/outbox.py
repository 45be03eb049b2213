"""The outbox: a finished result is kept before it is sent, so that a retry sends it again (design 5)."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

from safetensors.numpy import load_file, save

from contracts.canonical import canonical_json
from contracts.fields import Contract
from contracts.study import StudyProtocol
from durable.files import locked, sync, write_atomic
from site_runtime.home import SiteHome
from strategies.interface import Tensors

TENSORS = "update.safetensors"
DOCUMENT = "document.json"
KEPT = "kept.safetensors"
LEDGER = "ledger.jsonl"
_PATTERN = "round-*.safetensors"


def exclusively(home: SiteHome, what: str) -> AbstractContextManager[None]:
    """Hold the lock of a study, or of a request: who comes second waits, and finds the first one's result.

    A study's is held while one of its plans is answered, from the first check to the note of the answer: no
    two plans pass a check before either is noted. Other studies have locks of their own, and a process that
    ends gives its lock back.
    """
    return locked(home.outbox(f".{what}.lock"))


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
        sync(temporary)
        os.replace(temporary, target)
        sync(target.parent)  # or a power cut could leave a committed plan without its update
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def kept_state(
    home: SiteHome, protocol: StudyProtocol, round_number: int, fold: str | None = None
) -> Tensors:
    """Return what the strategy kept after the last round before this one; empty at first.

    It is kept by round, so that a task which is run again finds what it found before, and apart for every
    fold: its model begins with nothing.
    """
    folder = _kept(home, protocol, fold)
    rounds = [int(path.stem.rpartition("-")[2]) for path in folder.glob(_PATTERN)]
    before = [number for number in rounds if number < round_number]
    if not before:
        return {}
    tensors: Tensors = load_file(folder / f"round-{max(before)}.safetensors")
    return tensors


def restore_state(
    home: SiteHome, protocol: StudyProtocol, round_number: int, plan: str, fold: str | None = None
) -> None:
    """Lay what was kept with a plan's result out for the next round; again and again it is the same."""
    source = home.outbox(plan) / KEPT
    if source.exists():
        target = _kept(home, protocol, fold) / f"round-{round_number}.safetensors"
        write_atomic(target, source.read_bytes())


def _kept(home: SiteHome, protocol: StudyProtocol, fold: str | None) -> Path:
    folder = home.state(protocol.study) / "kept" / protocol.hash[:16]
    return folder if fold is None else folder / f"without-{fold}"


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
