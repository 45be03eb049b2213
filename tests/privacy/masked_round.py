"""A round of secure aggregation played by its functions, for the tests of it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from privacy.secure_sum import Context, Masked, Pair, Seeds, mask, new_mask_key, open_shares, recover

Answers = dict[str, tuple[dict[str, bytes], dict[Pair, bytes]]]


def context_of(sites: int, threshold: int) -> Context:
    """A context with sites sa, sb, ...; after sz come sax, sbx."""
    roster = sorted(f"s{chr(97 + n % 26)}" + "x" * (n // 26) for n in range(sites))
    return Context("tiny", "a" * 64, "b" * 64, 1, tuple(roster), threshold)


class Round:
    """Every site's keys and masked vector; what is asked of whom is up to the test."""

    def __init__(self, context: Context, values: dict[str, np.ndarray]) -> None:
        self.context = context
        pairs = {site: new_mask_key() for site in context.roster}
        self.private = {site: private for site, (private, _) in pairs.items()}
        self.keys = {site: public for site, (_, public) in pairs.items()}
        self.sent: dict[str, Masked] = {
            site: mask(values[site].copy(), context, site, self.private[site], self.keys)
            for site in context.roster
        }

    def bundles(self, holder: str, senders: Iterable[str]) -> dict[str, bytes]:
        """What the senders encrypted for a holder."""
        place = self.context.place(holder)
        return {sender: self.sent[sender].shares[place].tobytes() for sender in senders}

    def answer(
        self, site: str, alive: list[str], dead: list[str]
    ) -> tuple[dict[str, bytes], dict[Pair, bytes]]:
        """One site's answer to a request."""
        bundles = self.bundles(site, alive)
        return open_shares(self.context, site, self.private[site], self.keys, bundles, alive, dead)

    def answers(self, alive: list[str], dead: list[str], of: Iterable[str]) -> Answers:
        """The answers of some of the alive sites."""
        return {site: self.answer(site, alive, dead) for site in of}

    def recover(self, alive: list[str], dead: list[str], answers: Answers) -> Seeds:
        """The coordinator's half."""
        return recover(
            self.context,
            alive,
            dead,
            {site: own for site, (own, _) in answers.items()},
            {site: pairs for site, (_, pairs) in answers.items()},
            {site: self.sent[site].commitments for site in alive},
        )

    def sum(self, alive: Iterable[str]) -> np.ndarray:
        """Sum of the vectors as they were sent."""
        return np.sum([self.sent[site].vector for site in alive], axis=0, dtype=np.uint64)
