"""The requests that the gate knows: everything else is refused."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Endpoint:
    """One request that a stock worker or supervisor makes.

    Attributes:
        template: its path with names in place of values, for the audit log.
        audited: whether an accepted one goes into the audit log; signs of life do not.
    """

    name: str
    method: str
    pattern: re.Pattern[str]
    template: str
    audited: bool = True


def find(known: Iterable[Endpoint], method: str, path: str) -> tuple[Endpoint, re.Match[str]] | None:
    """The endpoint of a request with the values in its path, or None for an unknown one."""
    for endpoint in known:
        if endpoint.method == method and (match := endpoint.pattern.fullmatch(path)):
            return endpoint, match
    return None
