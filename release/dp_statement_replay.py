"""How a reader comes to the numbers of a privacy statement, and what a large one is worth."""

from __future__ import annotations

import math
import textwrap

from contracts.privacy import NoPrivacy, PatientPrivacy
from contracts.study import StudyProtocol
from privacy.calibration import adjacency_of, models_trained
from release.facts import ReleaseFacts
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


def paragraph(text: str | None) -> str:
    """Return a sentence as a bold paragraph of Markdown; nothing for None."""
    return "" if text is None else "\n" + textwrap.fill(f"**{text}**", 110) + "\n"


def replay_section(facts: ReleaseFacts, privacy: PatientPrivacy) -> str:
    """Return the Markdown section of a study with patient-level privacy."""
    training = facts.protocol.training
    steps = training.steps * facts.rounds * models_trained(facts.protocol)
    spends = [f"Spend({training.sample_rate!r}, {facts.training_noise!r}, {steps})"]
    if facts.statistics_noise is not None:
        spends.insert(0, f"Spend(1.0, {facts.statistics_noise!r}, 1)")
    if facts.histogram_noise is not None:
        spends.append(f"Spend(1.0, {facts.histogram_noise!r}, 1)")
    if facts.training_noise is None:
        snippet = ""
    else:
        snippet = f"""
The study as planned, for a hospital that took part once in every exchange:

    from privacy.accountant import Spend, epsilon
    epsilon([{", ".join(spends)}], {privacy.delta!r}, {privacy.adjacency!r})
"""
    return f"""\
## How to replay

`ledgers/` holds an excerpt of each hospital's ledger: every entry's signature, link and triple (rate, noise
multiplier, steps), opened for this study alone. `consilium release verify` checks them and composes every
epsilon above anew, offline. One of them alone, with the hospital's key from `dp_statement.json`:

    {ledger_command(facts.protocol)}

The hospital itself runs `consilium ledger verify`; the head it prints is the one in the table above, or a
later one that follows from it.
{snippet}"""
