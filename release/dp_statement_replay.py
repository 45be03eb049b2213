"""How a reader comes to the numbers of a privacy statement, and what a large one is worth."""

from __future__ import annotations

import math

from contracts.study import NoPrivacy, StudyProtocol
from privacy.calibration import adjacency_of
from release.ledgers import FOLDER, keeper

WEAK = 10.0  # an epsilon above it promises little to anybody


def ledger_command(protocol: StudyProtocol, site: str = "HOSPITAL", public: str | None = "KEY") -> str:
    """Return the command that gives a hospital's epsilon of the study from its ledger in the release.

    It is at the study's delta and in its adjacency: the defaults of the command are others.
    """
    privacy = protocol.privacy
    assert not isinstance(privacy, NoPrivacy)
    adjacency = adjacency_of(protocol)
    return (
        f"consilium ledger verify --file {FOLDER}/{keeper(protocol, site)}.jsonl --public {public} --excerpt "
        f"--delta {privacy.delta!r}" + (f" --adjacency {adjacency}" if adjacency == "replace-one" else "")
    )


def caution(epsilon: float) -> str | None:
    """Return a sentence for an epsilon so large that its number is no protection; None for others."""
    if epsilon <= WEAK:
        return None
    return (
        f"An epsilon of {epsilon:.3g} promises little: it allows the odds of a guess who took part to change "
        f"by a factor of e^{epsilon:.3g}, about 10^{epsilon / math.log(10):.0f}."
    )
