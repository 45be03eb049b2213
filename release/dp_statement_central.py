"""The parts of the privacy statement that are special to hospital-level privacy (`privacy: {mode: site}`)."""

from __future__ import annotations

from contracts.privacy import HospitalPrivacy
from release.dp_statement_replay import caution, ledger_command, paragraph
from release.facts import ReleaseFacts
from release.ledgers import COORDINATOR, FOLDER


def hospital_statement(facts: ReleaseFacts, privacy: HospitalPrivacy) -> list[str]:
    """Return the Markdown sections: promise, mechanism, what was spent, how to replay."""
    return [part(facts, privacy) for part in (_promise, _mechanism, _spent, _replay)]


def _promise(facts: ReleaseFacts, privacy: HospitalPrivacy) -> str:
    bound = f"{facts.epsilon:.3f}" if facts.epsilon is not None else "**not stated**"
    warning = paragraph(caution(privacy.epsilon if facts.epsilon is None else facts.epsilon))
    return f"""\
## What is promised to a hospital

| | |
|---|---|
| unit of protection | one hospital with all its training patients |
| neighbouring federations | add or remove the updates of one hospital |
| epsilon of this study, the same for every hospital | {bound} (planned: {privacy.epsilon:g}) |
| delta | {privacy.delta:g} |
| protected from | the other hospitals, and whoever holds this release, together |
| **not protected from** | **the coordinator**, which received exact updates and is trusted to add the noise |

**No epsilon is stated for a patient, and against the coordinator there is none.** Every hospital allowed
exact updates to leave (`policy.exact_updates`). From the other hospitals and from whoever holds this release
a patient of one hospital is covered together with that hospital.
{warning}"""


def _mechanism(facts: ReleaseFacts, privacy: HospitalPrivacy) -> str:
    sigma = f"{facts.training_noise:.4f}" if facts.training_noise is not None else "see the ledger"
    clip = f"{privacy.max_update_norm:g}, over all tensors of an update"
    if privacy.clipping == "adaptive":
        quantile = privacy.quantile
        clip = (
            f"adaptive: starts at {privacy.max_update_norm:g}, which it never exceeds, and follows the "
            f"{quantile.target:g} quantile of the norms by a noised count, which takes {quantile.share:.0%} "
            "of the precision of the noise"
        )
    weights = "declared sizes" if facts.protocol.strategy.weights == "declared" else "equal"
    return f"""\
## Mechanism

| | |
|---|---|
| algorithm | DP-FedAvg: each hospital's update clipped, weighted sum noised at the coordinator |
| clip (max_update_norm, C) | {clip} |
| weights (w) | {weights}: public, never counted from data |
| normaliser of the noisy sum | W, the total weight of the plan's roster, whoever answered |
| sensitivity of the mean | largest w x C / W |
| noise multiplier (sigma) | {sigma}: standard deviation of the noise over the sensitivity |
| releases | one a round x {facts.rounds} rounds |
| sampling | none: every hospital is asked in every round |
| epsilon without amplification by sampling | the same: none is claimed |
| normalisation of inputs | constants of the protocol |
| noise from | ChaCha20 keyed by HKDF(coordinator's noise key, plan, set of admitted updates) |
| accountant | exact composition of Gaussians over all plans, cross-checked with RDP |
"""


def _spent(facts: ReleaseFacts, privacy: HospitalPrivacy) -> str:
    rows = "\n".join(
        f"| {p.site} | {p.declared_size} | {_number(p.epsilon_study)} | {_number(p.epsilon_lineage)} "
        f"| {privacy.delta:g} | `{p.ledger_head or 'not stated'}` |"
        for p in facts.site_privacy
    )
    return f"""\
## Spent, by the coordinator's ledger

| hospital | declared size | epsilon, this study | epsilon, whole federation | delta | head of the ledger |
|---|---|---|---|---|---|
{rows}

*Whole federation*: every study with hospital-level privacy that this coordinator ever combined, trials that
led to no release included; counted for every hospital, also for one that joined late. A round counts once it
was reserved, even if its result was lost. Every epsilon of this table is for one hospital added or removed.
The federation's own budget is not shown.

Outside of this epsilon: which hospitals take part and which answered in a round; each hospital's metrics on
its own holdout, which this release shows by name.
"""


def _replay(facts: ReleaseFacts, privacy: HospitalPrivacy) -> str:
    snippet = ""
    if facts.training_noise is not None:
        snippet = f"""
The study as planned:

    from privacy.accountant import Spend, epsilon
    epsilon([Spend(1.0, {facts.training_noise!r}, {facts.rounds})], {privacy.delta!r})
"""
    return f"""\
## How to replay

The coordinator keeps one ledger for all hospitals, of lineage `federation`, signed by the key that signed
this release. `{FOLDER}/{COORDINATOR}.jsonl` is an excerpt of it: every entry's signature, link and triple
(rate, noise multiplier, steps), opened for this study alone. `consilium release verify` checks it and
composes every epsilon above anew, offline. It alone, with the ledger's key from `dp_statement.json`:

    {ledger_command(facts.protocol)}

The coordinator itself runs `consilium ledger verify --coordinator`, and `consilium study replay`, which
repeats every round, noise included, and must reach the recorded models.
{snippet}"""


def _number(value: float | None) -> str:
    return "not stated" if value is None else f"{value:.3f}"
