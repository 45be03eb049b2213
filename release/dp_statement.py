"""The privacy statement of a release: what is promised to whom, and what is not (design section 5)."""

from __future__ import annotations

from contracts.study import HospitalPrivacy, PatientPrivacy, StudyProtocol
from release.dp_statement_central import hospital_statement
from release.facts import ReleaseFacts


def dp_statement(facts: ReleaseFacts) -> str:
    """Return the Markdown statement for a release."""
    privacy = facts.protocol.privacy
    parts = [f"# Privacy statement: {facts.protocol.study} {facts.version}\n"]
    if isinstance(privacy, PatientPrivacy):
        parts += [_holdout(facts.protocol), _promise(facts, privacy), _mechanism(facts, privacy)]
        parts += [_spent(facts, privacy), _not_covered(), _replay(facts, privacy)]
    elif isinstance(privacy, HospitalPrivacy):
        parts += [_holdout(facts.protocol), *hospital_statement(facts, privacy), _not_covered()]
    else:
        parts += [_none(facts), _holdout(facts.protocol), _not_covered()]
    return "\n".join(parts)


def _none(facts: ReleaseFacts) -> str:
    return f"""\
## No differential privacy

**This model was trained without differential privacy (`privacy: none`). No epsilon is stated and none may
be claimed.** The hospitals ({", ".join(facts.sites)}) sent exact model updates{_exact_statistics(facts)} to
the coordinator. No patient record left a hospital, but an update or the released model may allow
conclusions about a single patient in training (membership inference, reconstruction).
"""


def _exact_statistics(facts: ReleaseFacts) -> str:
    federated = facts.protocol.training.normalisation == "federated"
    return " and exact normalisation statistics" if federated else ""


def _holdout(protocol: StudyProtocol) -> str:
    cell = protocol.cohort.minimum_cell
    return f"""\
## Holdout patients: suppression, not epsilon

The patients of the holdout were not used in training. **They are protected by suppression, not by
epsilon.** Each hospital computed the metrics from its own scores and sent only metrics with standard
errors, class totals, and calibration bins merged to at least {cell} patients of each class (more where the
hospital's own policy asks for more). A hospital with fewer than {2 * cell} patients in a class sent
accuracy and the number of patients only; a subgroup with fewer than {cell} in a class was withheld,
with the counts of others from which it could be computed. These numbers are exact functions of the holdout:
someone who already knows all other holdout patients of a hospital could learn something of the last one.
"""


def _promise(facts: ReleaseFacts, privacy: PatientPrivacy) -> str:
    # Without a stated epsilon this file must not read as if there were one.
    bound = (
        f"at most {facts.epsilon:.3f}" if facts.epsilon is not None else "**not stated by every hospital**"
    )
    return f"""\
## What is promised to a patient in training

| | |
|---|---|
| unit of protection | one patient with all records (at most {facts.protocol.cohort.max_records} in a step) |
| neighbouring data sets | add or remove one patient |
| epsilon of this study, largest over hospitals | {bound} (planned: {privacy.epsilon:g}) |
| delta | {privacy.delta:g} |
| protected from | the coordinator, the other hospitals, and whoever holds this release, together |
| not protected from | the patient's own hospital, which holds the record |

Patients of different hospitals are taken as different people. A patient treated at two hospitals is protected
by the sum of what the two spent.
"""


def _mechanism(facts: ReleaseFacts, privacy: PatientPrivacy) -> str:
    training = facts.protocol.training
    sigma = f"{facts.training_noise:.4f}" if facts.training_noise is not None else "see the ledgers"
    if training.normalisation == "declared":
        statistics = "none: centre and scale are constants of the protocol"
    else:
        noise = f"{facts.statistics_noise:.4f}" if facts.statistics_noise is not None else "see the ledgers"
        statistics = (
            "one Gaussian release of clipped sums, squares and missing counts, before training "
            f"(rate 1, one step, noise multiplier {noise}, planned "
            f"{privacy.statistics_fraction:.0%} of epsilon)"
        )
    return f"""\
## Mechanism

| | |
|---|---|
| algorithm | DP-SGD: subsampled Gaussian mechanism, per-patient gradients clipped |
| sampling | Poisson over patients, rate {training.sample_rate:g} |
| clip (max_grad_norm) | {privacy.max_grad_norm:g} |
| noise multiplier (sigma) | {sigma} |
| steps | {training.steps} a round x {facts.rounds} rounds = {training.steps * facts.rounds} |
| normaliser of the noisy sum | rate x declared size (frozen at enrolment), never a count of the cohort |
| normalisation statistics | {statistics} |
| sampling and noise from | ChaCha20 keyed by HKDF(site noise key, plan, cohort, code version) |
| accountant | PRV composition over all plans of the hospital's lineage, cross-checked with RDP |
"""


def _spent(facts: ReleaseFacts, privacy: PatientPrivacy) -> str:
    rows = [
        f"| {p.site} | {p.declared_size} | {_number(p.epsilon_study)} | {_number(p.epsilon_lineage)} "
        f"| {privacy.delta:g} | `{p.ledger_head or 'not stated'}` |"
        for p in facts.site_privacy
    ]
    table = "\n".join(rows)
    return f"""\
## Spent, by each hospital's own ledger

| hospital | declared size | epsilon, this study | epsilon, whole lineage | delta | head of its ledger |
|---|---|---|---|---|---|
{table}

*Lineage*: the same source population over all studies and all time. A reservation counts even if its update
never arrived.
"""


def _not_covered() -> str:
    return """\
## Not covered

- Holdout patients (see above).
- The data-quality verdicts of intake: one bit per check, exact.
- Timing, sizes of messages, and whether a hospital answered or refused.
- The declared size of a hospital, rounded to two significant figures when it enrolled.
- What a hospital or a clinician publishes elsewhere.
"""


def _replay(facts: ReleaseFacts, privacy: PatientPrivacy) -> str:
    training = facts.protocol.training
    spends = [f"Spend({training.sample_rate!r}, {facts.training_noise!r}, {training.steps * facts.rounds})"]
    if facts.statistics_noise is not None:
        spends.insert(0, f"Spend(1.0, {facts.statistics_noise!r}, 1)")
    if facts.training_noise is None:
        snippet = ""
    else:
        snippet = f"""
The study as planned, for a hospital that took part once in every round:

    from privacy.accountant import Spend, epsilon
    epsilon([{", ".join(spends)}], {privacy.delta!r})
"""
    return f"""\
## How to replay

Each hospital holds its ledger and runs `consilium ledger verify`: it checks the chain and signatures of
every entry and composes (rate, noise multiplier, steps) anew. The head it prints is the one in the table
above, or a later one that follows from it.
{snippet}"""


def _number(value: float | None) -> str:
    return "not stated" if value is None else f"{value:.3f}"
