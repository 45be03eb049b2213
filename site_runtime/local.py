"""A hospital's own model: trained on its patients alone, with the study's mechanism, and kept here.

It is what the federation's model is compared with on this hospital's holdout. Nothing of it leaves.
"""

from __future__ import annotations

from pathlib import Path

from contracts.study import StudyProtocol
from durable.files import write_atomic
from site_runtime.home import SiteHome
from site_runtime.outbox import tensor_bytes
from strategies.interface import LocalTraining, Tensors


def local_path(home: SiteHome, protocol: StudyProtocol) -> Path:
    """Where the hospital's own model of a study lies (safetensors, a whole state as the global model is)."""
    return home.state(protocol.study) / "local" / f"{protocol.hash}.safetensors"


def train_local(home: SiteHome, protocol: StudyProtocol, start: Tensors, train: LocalTraining) -> None:
    """Train from the state `start` and keep the model reached; a repeated task writes the same bytes."""
    reached = {**start, **train(start)}
    write_atomic(local_path(home, protocol), tensor_bytes(reached))
