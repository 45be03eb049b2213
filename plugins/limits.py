"""How often: a token bucket for each sender, and each token of a hospital once."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

MOST_SENDERS = 10_000  # addresses remembered; who is forgotten starts with a full bucket
MOST_TOKENS = 200_000  # of one site within the window, about 30 MB

Clock = Callable[[], float]


@dataclass
class Buckets:
    """Token buckets (RFC 2697 in requests): `rate` a second on average, `burst` at once, for each sender."""

    rate: float
    burst: int
    clock: Clock = time.monotonic
    _level: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)

    def take(self, sender: str) -> bool:
        """Say whether `sender` may send one more now."""
        now = self.clock()
        level, at = self._level.pop(sender, (float(self.burst), now))
        level = min(float(self.burst), level + (now - at) * self.rate)
        allowed = level >= 1.0
        self._level[sender] = (level - 1.0 if allowed else level, now)
        while len(self._level) > MOST_SENDERS:
            self._level.popitem(last=False)
        return allowed


@dataclass
class Replays:
    """Tokens seen, by site and `jti` (RFC 7519, section 4.1.7), for as long as they could be valid."""

    clock: Clock = time.time
    _seen: dict[str, OrderedDict[str, float]] = field(default_factory=dict)

    def first(self, site: str, jti: str, until: float) -> bool:
        """Say whether this token comes for the first time, and remember it.

        Args:
            until: seconds since the epoch after which it is refused anyhow.
        """
        seen = self._seen.setdefault(site, OrderedDict())
        now = self.clock()
        while seen and next(iter(seen.values())) < now:
            seen.popitem(last=False)
        if jti in seen or len(seen) >= MOST_TOKENS:
            return False
        seen[jti] = until
        return True
