"""What one masked exchange is about, and what every party refuses before it takes part (`secure_sum`)."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from contracts.canonical import canonical_json
from contracts.errors import ConsiliumError
from contracts.strategy import MAX_SECURE_SITES

SCHEME = "consilium/secure-sum/1"
LEAST_SITES = 3  # with two, each knows the other's vector from the sum


@dataclass(frozen=True)
class Context:
    """What one masked exchange is about. Every key and commitment of it is bound to all of this.

    Args:
        study: the study's name.
        protocol_hash: of the approved protocol.
        plan: digest of the signed plan, which names every site's ephemeral key.
        exchange: number of the exchange in the study.
        roster: names of all the sites, sorted.
        threshold: sites that must be alive, and shares that open a seed.

    Raises:
        ConsiliumError: E432, fewer than 3 sites, more than 64, names not sorted or repeated, or a threshold
            that is not above half of them and at most all.
    """

    study: str
    protocol_hash: str
    plan: str
    exchange: int
    roster: tuple[str, ...]
    threshold: int

    def __post_init__(self) -> None:
        n = len(self.roster)
        if not LEAST_SITES <= n <= MAX_SECURE_SITES:
            raise ConsiliumError(
                "E432", f"roster of {n} hospitals, expected {LEAST_SITES} to {MAX_SECURE_SITES}"
            )
        if list(self.roster) != sorted(set(self.roster)):
            raise ConsiliumError("E432", f"roster {list(self.roster)}, expected sorted, every name once")
        if not n < 2 * self.threshold <= 2 * n:
            raise ConsiliumError(
                "E432",
                f"threshold {self.threshold} of {n} hospitals, expected above one half and at most all",
            )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all the fields."""
        fields = {
            "scheme": SCHEME,
            "study": self.study,
            "protocol_hash": self.protocol_hash,
            "plan": self.plan,
            "exchange": self.exchange,
            "roster": list(self.roster),
            "threshold": self.threshold,
        }
        return hashlib.sha256(canonical_json(fields)).hexdigest()

    @property
    def smallest_sum(self) -> int:
        """Fewest sites whose sum can be opened, even by a coordinator that tells sites different lists."""
        return smallest_sum(len(self.roster), self.threshold)

    def place(self, site: str) -> int:
        """Row of a site in the roster.

        Raises:
            ConsiliumError: E432, it is not on the roster.
        """
        if site not in self.roster:
            raise ConsiliumError("E432", f"hospital {site!r} is not on the roster {list(self.roster)}")
        return self.roster.index(site)

    def check_lists(self, alive: Collection[str], dead: Collection[str]) -> None:
        """Hold a request to the roster: every site once, alive or dead, and enough of them alive.

        Raises:
            ConsiliumError: E432.
        """
        if both := sorted(set(alive) & set(dead)):
            raise ConsiliumError("E432", f"{both} are said to be both alive and dead")
        if sorted([*alive, *dead]) != list(self.roster):
            raise ConsiliumError(
                "E432",
                f"alive {sorted(alive)} and dead {sorted(dead)}, expected every hospital of "
                f"{list(self.roster)} once",
            )
        if len(alive) < self.threshold:
            raise ConsiliumError("E432", f"{len(alive)} hospitals alive, expected at least {self.threshold}")


def smallest_sum(sites: int, threshold: int) -> int:
    """Fewest of so many sites whose sum can be opened; `privacy.secure_sum` derives it."""
    return -(-sites * (2 * threshold - sites) // threshold)
