"""A process that ends at any of its writes: what it left must still be one answer."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


class Killed(BaseException):
    """The process ended here."""


def killed_at(number: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """End the process at its n-th replacement of a file, before or after it; says whether it came so far."""
    replace, count, hit = os.replace, itertools.count(), []

    def counting(source: Any, target: Any) -> None:
        at, after = divmod(number, 2)
        if next(count) == at:
            hit.append(True)
            if after:
                replace(source, target)
            raise Killed
        replace(source, target)

    monkeypatch.setattr(os, "replace", counting)
    return lambda: bool(hit)


def moments(step: Callable[[Path], Any], check: Callable[[Path], None], root: Path) -> int:
    """Kill a step at every write, repeat it, check the outcome; returns how many moments there were."""
    for number in itertools.count():
        with pytest.MonkeyPatch.context() as patch:
            hit = killed_at(number, patch)
            target = root / str(number)
            with contextlib.suppress(Killed):
                step(target)
        if not hit():
            return number
        check(target)
    return 0
