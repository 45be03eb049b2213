"""Federations after their intake, made once by each test process and copied for every test that wants one."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from consilium.simulation import Simulation
from contracts.canonical import sha256
from contracts.study import StudyProtocol

_made: dict[str, Simulation] = {}


def copied_world(
    root: Path, make: Callable[[Path, StudyProtocol], Simulation], protocol: StudyProtocol, **described: Any
) -> Simulation:
    """Copy what `make(folder, protocol)` makes to `root`: homes with their keys, cohorts and data sheets.

    Args:
        described: whatever else the world depends on. One like it is not made again.
    """
    name = sha256(json.dumps([make.__qualname__, protocol.hash, described], sort_keys=True).encode())
    if name not in _made:
        _made[name] = make(Path(_folder().name) / name[:16], protocol)
    master = _made[name].root
    shutil.copytree(master, root, symlinks=True, dirs_exist_ok=True)
    for config in root.glob("sites/*/site.yaml"):  # it says where the hospital's source lies
        config.write_text(config.read_text().replace(str(master.resolve()), str(root.resolve())))
    return Simulation(root, protocol)


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Where they lie; removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="consilium-worlds-")
